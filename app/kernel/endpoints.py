"""An address of another service that may be called: https, a host on a list, and a secret to sign with."""

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_MIN_SECRET_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A checked address; the target (path and query) may hold a token, so like the secret it is in no repr."""

    host: str
    port: int
    target: str = field(repr=False)
    secret: str = field(repr=False)


def endpoint(url: str, hosts: Collection[str], secret: str) -> Endpoint:
    """The endpoint that the settings name. Raises ValueError that says what is wrong, and does not repeat the URL."""
    # The hosts limit where the service can be made to send requests; an address could also point to an inner network.
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port
    if parts.scheme != "https":
        raise ValueError("the URL must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL must not hold a user or password")
    if parts.fragment:
        raise ValueError("the URL must not have a fragment")
    if port == 0:
        raise ValueError("the URL must not name the port 0")
    if not _is_name(host):
        raise ValueError("the URL must name a host in ASCII (xn--...), not an address")
    if host not in {name.strip().lower() for name in hosts}:
        raise ValueError(f"the host {host} is not among those that are allowed")
    if len(secret) < _MIN_SECRET_LENGTH:
        raise ValueError(f"the secret must have {_MIN_SECRET_LENGTH} characters or more")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(host=host, port=443 if port is None else port, target=target, secret=secret)


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # In the other letters of an international name no request can say whom it is for.
        return bool(host) and host.isascii()
    return False
