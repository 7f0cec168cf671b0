"""Telling another service of alerts: where that may be, how it knows that it is us, and how often we try.

The address is the operator's, but what answers there may not be: so only https, only to hosts on a list, and never to
an address that is not public, which is how a service behind the firewall would be reached through us.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

# Mapped and translated addresses stand for the IPv4 address within them (RFC 4291, RFC 6052); tunnels (6to4, Teredo)
# end where their address says, which is nowhere that we would look.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """After an attempt that failed: when to try again, None when it is given up."""

    due_at: datetime | None


def is_public(address: str) -> bool:
    """Whether the address is one of the public Internet, by the registries of IANA."""
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None or any(found in tunnel for tunnel in _TUNNELS):
            return False
        inner = found.ipv4_mapped
        if found in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        found = inner or found
    return found.is_global and not found.is_multicast and not found.is_reserved


def refusal_reason(addresses: Iterable[str]) -> str | None:
    """Why a host must not be called that resolves to these addresses; None when it may.

    One that is not public spoils all: who answers with both hopes that the other is taken.
    """
    known = list(addresses)
    if not known:
        return "the host has no address"
    wrong = [address for address in known if not is_public(address)]
    return f"the host resolves to {wrong[0]}, which is not a public address" if wrong else None


def signature(secret: str, at: datetime, body: bytes) -> str:
    """What the header `Convener-Signature` says: the time in seconds, and the HMAC-SHA256 of `<time>.<body>`.

    Whoever checks it compares in constant time, and refuses what is older than a few minutes.
    """
    seconds = int(at.timestamp())
    code = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={code}"


def retry_at(attempts: int, chance: float, now: datetime, policy: WebhookPolicy) -> Plan:
    """What becomes of a delivery after so many attempts; `chance` is drawn evenly from 0 to 1."""
    if attempts >= policy.attempts:
        return Plan(due_at=None)
    wait = chance * min(policy.cap, policy.base * 2 ** (attempts - 1))
    return Plan(due_at=now + timedelta(seconds=wait))
