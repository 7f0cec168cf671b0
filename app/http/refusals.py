"""Refused requests: counted by reason, logged within bounds, and slowed down for addresses that keep failing.

A valid key is always let in, whatever others do at its address; only answers to failures change.
"""

import ipaddress
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http import problems
from app.http.callers import Authenticator
from app.http.security import secured
from app.http.services import Services
from app.kernel.access import RefusalReason
from app.kernel.errors import TooManyFailures

log = logging.getLogger(__name__)
# All others share one label, as callers may make up any.
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_KEY_ID = re.compile(r"bearer +cvn_([0-9a-f]{12})_", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalPolicy:
    """An address may fail so often at once, and once more every `seconds`; bounds on log lines and memory.

    Whoever has failed more often has its unknown keys looked up together with those of others, every `gather_seconds`.
    """

    failures: int = 10
    seconds: float = 6.0
    gather_seconds: float = 0.05
    lines_per_second: int = 5
    max_addresses: int = 10_000


class Refusals:
    """Counts and addresses of this process."""

    def __init__(self, policy: RefusalPolicy = RefusalPolicy()) -> None:
        self.policy = policy
        self.totals: Counter[RefusalReason] = Counter()
        self._unwritten: Counter[RefusalReason] = Counter()
        # When the failures of an address are forgiven, the latest last; those who fail least recently are dropped.
        self._forgiven_at: dict[str, float] = {}
        self._second, self._lines, self._unlogged = 0, 0, 0

    @property
    def has_failures(self) -> bool:
        """Whether any address has failed, and is not forgotten."""
        return bool(self._forgiven_at)

    def retry_after(self, address: str) -> float:
        """Seconds until a failure of this address is answered as such again; 0 where one is now."""
        debt = self._forgiven_at.get(address, 0.0) - time.monotonic()
        return max(0.0, debt - (self.policy.failures - 1) * self.policy.seconds)

    def fail(self, address: str) -> None:
        """Count a failure of an address against it."""
        forgiven_at = max(self._forgiven_at.pop(address, 0.0), time.monotonic())
        self._forgiven_at[address] = forgiven_at + self.policy.seconds
        if len(self._forgiven_at) > self.policy.max_addresses:
            del self._forgiven_at[next(iter(self._forgiven_at))]

    def record(self, reason: RefusalReason, request: str, address: str, key_id: str) -> None:
        """Count a refusal, and log it as long as this second has room for a line."""
        self.totals[reason] += 1
        self._unwritten[reason] += 1
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= self.policy.lines_per_second:
            self._unlogged += 1
            return
        self._lines += 1
        more = f", and {self._unlogged} others before" if self._unlogged else ""
        self._unlogged = 0
        log.warning("refused %s from %s: %s%s", request, address, reason, more, extra={"key": key_id})

    def refuse(self, status: int, request: str, host: str, authorization: str) -> float:
        """Record a 401 or 403; return the seconds to wait where the address has failed too often, else 0."""
        address = _network(host)
        wait = self.retry_after(address) if status == 401 else 0.0
        if status == 401 and not wait:
            self.fail(address)
        key_id = _KEY_ID.match(authorization)
        self.record(_reason(status, authorization, wait), request, address, key_id[1] if key_id else "-")
        return wait

    def take_unwritten(self) -> Counter[RefusalReason]:
        """Counts since the last call."""
        counts, self._unwritten = self._unwritten, Counter()
        return counts

    def put_back(self, counts: Counter[RefusalReason]) -> None:
        """Keep counts that could not be written for the next time."""
        self._unwritten += counts


class RefusalWatch:
    """ASGI: records 401 and 403, and answers 429 instead of 401 to addresses that have failed too often."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        services: Services = scope["app"].state.services
        refusals = services[Refusals]
        watched_send = _Answer(scope, send, refusals).send
        if refusals.has_failures and refusals.retry_after(_network(client_host(scope))):
            return self._serve_gathered(services, scope, receive, watched_send)
        return self._app(scope, receive, watched_send)

    async def _serve_gathered(self, services: Services, scope: Scope, receive: Receive, send: Send) -> None:
        await services[Authenticator].gather(_authorization(scope), services[Refusals].policy.gather_seconds)
        await self._app(scope, receive, send)


class _Answer:
    """The answer to one request, replaced where it is a failure too many."""

    __slots__ = ("_is_replaced", "_refusals", "_scope", "_send")

    def __init__(self, scope: Scope, send: Send, refusals: Refusals) -> None:
        self._scope, self._send, self._refusals = scope, send, refusals
        self._is_replaced = False

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI."""
        if self._is_replaced or (message["type"] == "http.response.start" and message["status"] in (401, 403)):
            return self._send_watched(message)
        return self._send(message)

    async def _send_watched(self, message: Message) -> None:
        if self._is_replaced:
            return
        wait = self._record(message["status"])
        if wait:
            self._is_replaced = True
            error = TooManyFailures(retry_after_seconds=ceil(wait))
            await secured(problems.from_error(error))(self._scope, _nothing, self._send)
        else:
            await self._send(message)

    def _record(self, status: int) -> float:
        method = method_label(self._scope["method"])
        path = getattr(self._scope.get("route"), "path", "an unknown address")
        host, authorization = client_host(self._scope), _authorization(self._scope)
        return self._refusals.refuse(status, f"{method} {path}", host, authorization)


def method_label(method: str) -> str:
    """The method of a request as one of few labels."""
    return method if method in _METHODS else "other"


def _reason(status: int, authorization: str, wait: float) -> RefusalReason:
    if status == 403:
        return RefusalReason.FORBIDDEN
    if wait:
        return RefusalReason.TOO_MANY
    return RefusalReason.UNKNOWN_KEY if authorization else RefusalReason.NO_KEY


def client_host(scope: Scope) -> str:
    """The host that sent a request; "" for a unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


def _authorization(scope: Scope) -> str:
    return Headers(scope=scope).get("authorization", "")


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    """The address; of IPv6 its /64, which one subscriber has; `local` for a unix socket."""
    if not host:
        return "local"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
