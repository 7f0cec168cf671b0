"""PostgreSQL as it may be: the oldest version, and URLs, with a password or none, told without showing any of it."""

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

# The oldest major version of PostgreSQL that has all we need.
OLDEST_POSTGRES = 15
_SCHEMES = ("postgresql", "postgres")
_REMEDY = (
    "cannot be read: no part of a host's name is empty or has over 63 characters, a port is at most 65535, and one "
    "for all hosts or one for each, and a password with other characters than letters and digits is given apart, as "
    "CONVENER_DATABASE_PASSWORD, or with # as %23, / as %2F, ? as %3F, @ as %40 and % as %25"
)


def check_database_url(url: str) -> None:
    """Raise ValueError for what is no URL of a PostgreSQL; its words hold nothing of the URL, which has a password."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.split("+")[0] not in _SCHEMES:
        raise ValueError("must begin with postgresql://")
    try:
        parts = urlsplit(url)
        for server in server_urls(url):
            _check_host(urlsplit(server).netloc.rpartition("@")[2])
    except ValueError:
        raise ValueError(_REMEDY) from None
    if parts.fragment or ("@" in parts.path and "@" not in parts.netloc):
        raise ValueError(_REMEDY)


def with_password(url: str, password: str) -> str:
    """The URL with this password. Raises ValueError where it has one already, or no user."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if not at or not user or ":" in user:
        raise ValueError("must name a user and no password where database_password is set")
    return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{slash}{path}"


def server_urls(url: str) -> list[str]:
    """One URL for each server that a URL names, in their order: `a:1,b:2`, or `?host=a,b&port=1,2`. Raises ValueError.

    Of several servers those are taken that take writes, unless `target_session_attrs` says otherwise.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query))
    named_hosts = query.get("host", "")
    # As the driver has it: hosts of the query count where there are no others.
    names = (hosts or named_hosts).split(",")
    if len(names) == 1:
        return [url]
    if not all(names):
        raise ValueError("a host without a name")
    query.setdefault("target_session_attrs", "read-write")
    if hosts:
        return [parts._replace(netloc=f"{user}{at}{name}", query=urlencode(query)).geturl() for name in names]
    ports = query.pop("port", "").split(",")
    ports = ports * len(names) if len(ports) == 1 else ports
    queries = [
        urlencode({**query, "host": name} | ({"port": str(int(port))} if port else {}))
        for name, port in zip(names, ports, strict=True)
    ]
    return [parts._replace(query=one).geturl() for one in queries]


def _check_host(host: str) -> None:
    place = urlsplit(f"//{host}")
    # A port is looked at when it is asked for, and a name when it is looked up; one with a % is a directory.
    if place.port == 0:
        raise ValueError
    if place.hostname and "%" not in place.hostname:
        place.hostname.encode("idna")
