"""Rules of webhooks: which addresses may be called, how a message is signed, and when an attempt is repeated.

The URL is the operator's, but what answers there may not be: so only https, only to hosts on a list, and never to an
address that is not public, which is how a service behind the firewall would be reached through this one.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

# Mapped and translated addresses stand for the IPv4 address within them (RFC 4291, RFC 6052); tunnels (6to4, Teredo)
# end where their address says, which nobody checks here.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_TUNNELS = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicy:
    """Seconds; attempts with full jitter `U(0, min(cap, base 2^k))`: twelve of them take about an hour on the mean.

    A claim must outlast an attempt, or somebody else begins the same.
    """

    attempts: int = 12
    base: float = 5.0
    cap: float = 900.0
    claim_seconds: float = 60.0
    at_once: int = 4


def is_public(address: str) -> bool:
    """Whether the address is one of the public Internet, by the registries of IANA."""
    try:
        parsed_address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed_address, ipaddress.IPv6Address):
        if parsed_address.scope_id is not None or any(parsed_address in tunnel for tunnel in _TUNNELS):
            return False
        inner = parsed_address.ipv4_mapped
        if parsed_address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(parsed_address) & 0xFFFF_FFFF)
        parsed_address = inner or parsed_address
    return parsed_address.is_global and not parsed_address.is_multicast and not parsed_address.is_reserved


def refusal_reason(addresses: Iterable[str]) -> str | None:
    """Reason not to call a host that resolves to these addresses; None when it may be called.

    A single address that is not public refuses the host: whoever answers with both hopes that it is taken.
    """
    resolved_addresses = list(addresses)
    if not resolved_addresses:
        return "the host has no address"
    private = next((address for address in resolved_addresses if not is_public(address)), None)
    return f"the host resolves to {private}, which is not a public address" if private is not None else None


def signature(secret: str, at: datetime, body: bytes) -> str:
    """Value of the header `Convener-Signature`: the time in seconds, and the HMAC-SHA256 of `<time>.<body>`.

    A receiver compares it in constant time, and refuses what is older than a few minutes.
    """
    seconds = int(at.timestamp())
    code = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={code}"


def retry_at(attempts: int, chance: float, now: datetime, policy: WebhookPolicy) -> datetime | None:
    """Time of the next attempt after so many; None: give up. `chance` is drawn evenly from 0 to 1."""
    if attempts >= policy.attempts:
        return None
    wait = chance * min(policy.cap, policy.base * 2 ** (attempts - 1))
    return now + timedelta(seconds=wait)
