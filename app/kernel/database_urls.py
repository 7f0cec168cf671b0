"""PostgreSQL as it may be: the oldest version, and URLs, whether one can be read, told without showing any of it."""

from urllib.parse import urlsplit

# The oldest major version of PostgreSQL that has all we need.
OLDEST_POSTGRES = 15
_SCHEMES = ("postgresql", "postgres")
_REMEDY = (
    "cannot be read: no part of a host's name is empty or has over 63 characters, the port is at most 65535, and a "
    "password with other characters than letters and digits is given apart, as CONVENER_DATABASE_PASSWORD, or with # "
    "as %23, / as %2F, ? as %3F, @ as %40 and % as %25"
)


def check_database_url(url: str) -> None:
    """Raise ValueError for what is no URL of a PostgreSQL; its words hold nothing of the URL, which has a password."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.split("+")[0] not in _SCHEMES:
        raise ValueError("must begin with postgresql://")
    try:
        parts = urlsplit(url)
        # Several hosts are tried one after the other.
        for host in parts.netloc.rpartition("@")[2].split(","):
            _check_host(host)
    except ValueError:
        raise ValueError(_REMEDY) from None
    if parts.fragment or ("@" in parts.path and "@" not in parts.netloc):
        raise ValueError(_REMEDY)


def _check_host(host: str) -> None:
    place = urlsplit(f"//{host}")
    # A port is looked at when it is asked for, and a name when it is looked up; one with a % is a directory.
    if place.port == 0:
        raise ValueError
    if place.hostname and "%" not in place.hostname:
        place.hostname.encode("idna")
