"""Permits for calls, asked of the control plane, and what is said to it about them."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx

from worker_agent.llm.endings import cancelled_once
from worker_agent.llm.hints import Hints
from worker_agent.llm.outcomes import Outcome, Tokens
from worker_agent.llm.tickets import Ticket
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
_LONGEST_PAUSE_SECONDS = 2.0
_RENEWALS_PER_TTL = 3
# A service that starts anew must not cost a call, so a renewal that failed is tried again sooner.
_TRIES_PER_TTL = 12
# Of a time to live, what is left for hanging up, and for clocks that do not run alike.
_MARGIN = 0.02
# What the control plane keeps of one answer; a longer one is not worth losing the settlement for.
_MOST_KEPT_BYTES = 200 << 10
# The request id stands for a permit that is over: the next try needs a new one.
OVER = "over"
# The control plane will say the same to the same body, however often it is sent.
_UNFIT = frozenset({400, 413, 422})


class PlaneAway(Exception):
    """The control plane gave no usable answer; without a permit there is no call."""


class Unfit(Exception):
    """The control plane cannot take the wish as it is, now or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """One call may be made, until it is settled or the time to live is over.

    That was so many seconds when it was granted or renewed, which was asked for at `since`, on the loop's clock.
    """

    permit_id: str
    token: str
    ttl_seconds: float
    since: float

    @property
    def ends_at(self) -> float:
        """When the call must be over, as others may have the permit soon after."""
        return self.since + self.ttl_seconds * (1 - _MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRefused:
    """Not now. `cached` is an earlier answer to the same request, with `answer` and `stored_at`."""

    reason: str
    retry_after: float
    fallback_models: Sequence[str] = ()
    cached: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a permit is asked for."""

    request_id: UUID
    model: str
    ticket: Ticket
    estimated_tokens: int
    cache_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a call went; an answer to keep has its digest beside it."""

    outcome: Outcome
    status: int | None = None
    tokens: Tokens = field(default_factory=Tokens)
    latency_seconds: float | None = None
    hints: Hints = field(default_factory=Hints)
    cache_key: str | None = None
    answer: JsonObject | None = None


class Plane:
    """The control plane as far as permits go; `key` gives the credential of the moment, None while there is none."""

    def __init__(self, http: httpx.AsyncClient, key: Callable[[], str | None]) -> None:
        self._http = http
        self._key = key

    async def acquire(self, wish: Wish) -> Permit | PermitRefused:
        """At once one or the other. Repeat with the same request id when the answer was lost.

        Raises PlaneAway, and Unfit for a wish that can never be granted.
        """
        ticket = wish.ticket
        body = {
            "request_id": str(wish.request_id),
            "model": wish.model,
            "agent_type": ticket.agent_type,
            "goal_id": ticket.goal_id,
            "task_id": ticket.task_id,
            "priority": ticket.priority,
            "estimated_tokens": wish.estimated_tokens,
            "cache_key": wish.cache_key,
        }
        since = _clock()
        status, answer = await self._call("POST", "/llm/permits", body)
        if status == 429 and answer.get("code") == "permit_refused":
            return _read_refusal(answer)
        if status == 409:
            return PermitRefused(reason=OVER, retry_after=0.0)
        if status != 201:
            why = f"asked for a permit, answered {status}: {answer.get('detail') or answer.get('title')}"
            raise Unfit(why) if status in _UNFIT else PlaneAway(why)
        return Permit(
            permit_id=str(answer["permit_id"]),
            token=str(answer["token"]),
            ttl_seconds=float(answer["ttl_seconds"]),
            since=since,
        )

    async def keep(self, permit: Permit) -> None:
        """Renew it until cancelled. Returns when it is lost: its time is nearly over, or the control plane says so."""
        tries = _RENEWALS_PER_TTL
        while True:
            try:
                async with asyncio.timeout_at(permit.ends_at):
                    await asyncio.sleep(permit.ttl_seconds / tries)
                    renewed = await self._renew(permit)
            except TimeoutError:
                return
            except PlaneAway:
                tries = _TRIES_PER_TTL
                continue
            if renewed is None:
                return
            permit, tries = renewed, _RENEWALS_PER_TTL

    async def _renew(self, permit: Permit) -> Permit | None:
        """As it lives on; None when it is over. Raises PlaneAway."""
        since = _clock()
        status, answer = await self._call("POST", f"/llm/permits/{permit.permit_id}/renew", {"token": permit.token})
        if status in (404, 409):
            return None
        if status >= 400:
            raise PlaneAway(f"the renewal of a permit was answered {status}")
        return replace(permit, since=since, ttl_seconds=float(answer.get("ttl_seconds") or permit.ttl_seconds))

    async def settle(self, permit: Permit, settlement: Settlement) -> None:
        """Say how the call went; tried until the permit's time is over, as it is free by then."""
        body = _settled(permit, settlement)
        pause, enough = 0.2, _clock() + permit.ttl_seconds
        while True:
            try:
                status, answer = await self._call("POST", f"/llm/permits/{permit.permit_id}/settle", body)
            except PlaneAway as away:
                log.warning("a permit could not be settled yet", extra={"fields": {"why": str(away)}})
                if _clock() + pause > enough:
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            if status in _UNFIT and len(body) > 2:
                # What a model says is not always what the control plane can keep; the permit is let go all the same.
                body = {name: body[name] for name in ("token", "outcome")}
                continue
            if status >= 400:
                fields = {"status": status, "why": str(answer.get("detail") or "")}
                log.warning("the settlement of a permit was refused", extra={"fields": fields})
            return

    async def cached(self, cache_key: str) -> JsonObject | None:
        """The answer kept under this digest, with `answer` and `stored_at`; None when there is none to be had."""
        try:
            status, answer = await self._call("GET", f"/llm/cache/{cache_key}", None)
        except PlaneAway:
            return None
        return answer if status == 200 and isinstance(answer.get("answer"), dict) else None

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, JsonObject]:
        key = self._key()
        if key is None:
            raise PlaneAway("this worker is not registered at the moment")
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        # ASCII, as models leave halves of characters, which UTF-8 has no way to write.
        content = None if body is None else json.dumps(body)
        try:
            response = await cancelled_once(self._http.request(method, path, content=content, headers=headers))
        except httpx.HTTPError as error:
            raise PlaneAway(f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500 or response.status_code in (401, 408):
            raise PlaneAway(f"the control plane answered {response.status_code}")
        return response.status_code, _object(response)


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _read_refusal(answer: JsonObject) -> PermitRefused:
    cached = answer.get("cached")
    return PermitRefused(
        reason=str(answer.get("reason") or "unknown"),
        retry_after=max(0.0, float(answer.get("retry_after") or 0.0)),
        fallback_models=[str(name) for name in answer.get("fallback_models") or ()],
        cached=cached if isinstance(cached, dict) else None,
    )


def _settled(permit: Permit, settlement: Settlement) -> JsonObject:
    latency = settlement.latency_seconds
    known = {
        "status": settlement.status,
        "prompt_tokens": settlement.tokens.prompt,
        "completion_tokens": settlement.tokens.completion,
        "latency_ms": None if latency is None else round(latency * 1000, 1),
        "retry_after_seconds": settlement.hints.retry_after,
        "reset_requests_seconds": settlement.hints.reset_requests,
        "reset_tokens_seconds": settlement.hints.reset_tokens,
    }
    body: JsonObject = {"token": permit.token, "outcome": settlement.outcome.value}
    body |= {name: value for name, value in known.items() if value is not None}
    if settlement.answer is not None:
        kept = {"key": settlement.cache_key, "answer": settlement.answer}
        if len(json.dumps(kept)) <= _MOST_KEPT_BYTES:
            body["cache"] = kept
    return body


def _object(response: httpx.Response) -> JsonObject:
    try:
        body = json.loads(response.content or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
