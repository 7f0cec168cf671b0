"""HTTP clients of the control plane: at `unix:/path`, `https://` or `http://` on this machine, or several of these."""

import ipaddress
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx

from worker_agent.connections.several import SeveralAsyncTransports, SeveralTransports
from worker_agent.connections.trust import Trust

# The path of a socket may hold commas.
_BETWEEN = re.compile(r",\s*(?=unix:|https?://)")
# Of a client with several addresses, each of which its transport puts in.
_NOBODY = "http://convener"
_SCHEME = "unix:"
# The size of sun_path, less its final zero.
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_NO_LIMITS = httpx.Limits()


def check_address(address: str, trust: Trust) -> str:
    """The address, or several with commas between them, in plain form.

    Raises ValueError with a sentence when no key may be sent there.
    """
    return ",".join(_check_one(one, trust) for one in addresses(address))


def addresses(address: str) -> list[str]:
    """The addresses that stand with commas between them, in the order in which they are tried."""
    return _BETWEEN.split(address)


def _check_one(address: str, trust: Trust) -> str:
    path = socket_path(address)
    if path is not None:
        if not path.startswith("/") or len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"{address!r} is no unix: and an absolute path of {MAX_SOCKET_PATH_BYTES} bytes at most")
        return address
    try:
        url = httpx.URL(address)
        usable = url.scheme in ("http", "https") and bool(url.host) and (url.port or 80) < 65536
    except httpx.InvalidURL:
        usable = False
    if not usable or url.userinfo:
        raise ValueError(f"{address!r} is not an address like https://host:8765, http://127.0.0.1:8765 or unix:/path")
    if url.scheme == "http" and not (is_local(address) or trust.allow_plain_http):
        raise ValueError(
            f"{address} would carry the key over the network in clear: use https://, or set "
            "CONVENER_ALLOW_PLAIN_HTTP=1 where the network itself is protected"
        )
    return address.rstrip("/")


def socket_path(address: str) -> str | None:
    """The path of the unix socket that an address names; None for another kind of address."""
    return address.removeprefix(_SCHEME) if address.startswith(_SCHEME) else None


def default_socket(state_directory: Path) -> Path | None:
    """The socket on which `convener up` serves; None where its path would be too long for the system."""
    path = state_directory.absolute() / "api.sock"
    return path if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES else None


def is_local(address: str) -> bool:
    """Whether what is sent to the address stays on this machine."""
    if socket_path(address) is not None:
        return True
    host = httpx.URL(address).host
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return ip.is_loopback or ip.is_unspecified


def open_client(
    address: str,
    trust: Trust,
    *,
    limits: httpx.Limits = _NO_LIMITS,
    transport: httpx.BaseTransport | None = None,
    **options: Any,
) -> httpx.Client:
    """A client that follows no redirects and reads nothing from the environment. Raises ValueError, OSError."""
    if transport is None:
        each = [(_base(one), httpx.HTTPTransport(**terms)) for one, terms in _terms(address, trust, limits)]
        transport = each[0][1] if len(each) == 1 else SeveralTransports(each)
    return httpx.Client(base_url=_base_url(address), transport=transport, trust_env=False, **options)


def open_async_client(
    address: str, trust: Trust, *, limits: httpx.Limits = _NO_LIMITS, **options: Any
) -> httpx.AsyncClient:
    """The same for asyncio."""
    each = [(_base(one), httpx.AsyncHTTPTransport(**terms)) for one, terms in _terms(address, trust, limits)]
    transport = each[0][1] if len(each) == 1 else SeveralAsyncTransports(each)
    return httpx.AsyncClient(base_url=_base_url(address), transport=transport, trust_env=False, **options)


def advice(error: Exception, address: str) -> str | None:
    """One sentence about a failed connection where TLS, or its absence, is the likely cause."""
    text = str(error)
    if "certificate verify failed" in text.lower() or "CERTIFICATE_VERIFY_FAILED" in text:
        if "expired" in text or "not yet valid" in text:
            return (
                "the server is not trusted: its certificate is not valid now; renew it there, or set this clock right"
            )
        if "mismatch" in text:
            return (
                "the server is not trusted: its certificate is not for this name; use one of its own, or renew it there"
            )
        return (
            "the server is not trusted: name its authority by CONVENER_CA_FILE (--ca-file), "
            "or its key by CONVENER_TLS_PIN (--pin)"
        )
    if any(word in text for word in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")):
        return "the server does not speak TLS at this address; look at its port and certificate again"
    if isinstance(error, httpx.ProtocolError | httpx.ReadError) and address.startswith("http://"):
        return "the server hung up on plain HTTP; if it has a certificate, write https://"
    return None


def _base_url(address: str) -> str:
    return _NOBODY if len(addresses(address)) > 1 else str(_base(address))


def _base(address: str) -> httpx.URL:
    return httpx.URL(address if socket_path(address) is None else "http://localhost")


def _terms(address: str, trust: Trust, limits: httpx.Limits) -> list[tuple[str, dict[str, Any]]]:
    check_address(address, trust)
    return [(one, _transport(one, trust, limits)) for one in addresses(address)]


def _transport(address: str, trust: Trust, limits: httpx.Limits) -> dict[str, Any]:
    # Reading certificates takes longer than all other preparations; without TLS they serve for nothing.
    verify: ssl.SSLContext | bool = trust.context() if address.startswith("https:") else False
    proxy = None if is_local(address) else trust.proxy
    return {"uds": socket_path(address), "verify": verify, "limits": limits, "proxy": proxy, "trust_env": False}
