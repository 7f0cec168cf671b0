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

# Not for the public Internet, by the registries of IANA (special-purpose addresses, RFC 6890). Named here, because
# Python's `is_global` differs between versions and lacks some.
_CLOSED_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
# Everything in IPv6 but global unicast is closed; within that, protocol assignments with Teredo and ORCHID, 6to4,
# documentation, and the former 6bone.
_OPEN_IPV6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_IPV6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20")))
# Stands for the IPv4 address within it, as mapped addresses do (RFC 6052).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


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
    """Whether the address is a unicast address of the public Internet."""
    try:
        parsed_address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed_address, ipaddress.IPv4Address):
        return _is_public_ipv4(parsed_address)
    if parsed_address.scope_id is not None:
        return False
    if parsed_address.ipv4_mapped is not None:
        return _is_public_ipv4(parsed_address.ipv4_mapped)
    if parsed_address in _TRANSLATED:
        return _is_public_ipv4(ipaddress.IPv4Address(int(parsed_address) & 0xFFFF_FFFF))
    return parsed_address in _OPEN_IPV6 and not any(parsed_address in network for network in _CLOSED_IPV6)


def _is_public_ipv4(address: ipaddress.IPv4Address) -> bool:
    return not any(address in network for network in _CLOSED_IPV4)


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
