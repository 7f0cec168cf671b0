"""Client for the control plane's permits: acquire, renew and settle them, and read its cached answers."""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx

from worker_agent.connections.several import HTTP_ERRORS
from worker_agent.llm.cancellation import cancel_at_most_once
from worker_agent.llm.outcomes import Outcome, TokenUsage, parse_json_object
from worker_agent.llm.rate_limit_hints import RateLimitHints
from worker_agent.llm.task_keys import TaskKey
from worker_agent.transport import is_problem
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
_MAX_BACKOFF_SECONDS = 2.0
_RENEWALS_PER_TTL = 3
# A restart of the control plane must not cost a call, so a failed renewal is retried sooner.
_TRIES_PER_TTL = 12
# Share of a time to live that is reserved for hanging up, and for clocks of different speed.
_TTL_MARGIN = 0.02
# The longest answer that the control plane caches; with a longer one it would refuse the settlement.
_MAX_CACHED_BYTES = 200 << 10
# The request id belongs to a permit that is over, so the next try needs a new one.
PERMIT_OVER = "over"
# Statuses that the same body would get however often it is sent.
_TOO_LARGE = 413
_UNFIT_STATUSES = frozenset({400, _TOO_LARGE, 422})
_MAX_SECONDS = 86_400.0


class PermitsUnavailable(Exception):
    """The control plane gave no usable answer; without a permit there is no call."""


class UnfitRequest(Exception):
    """The control plane can never grant this request as it is."""


class ModelNotAllowed(Exception):
    """The control plane grants nobody a permit for this model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Permission to make one call; its time to live counts from the request of the grant or of the last renewal."""

    permit_id: str
    token: str
    ttl_seconds: float
    requested_at: float
    fallback_models: tuple[str, ...] = ()

    @property
    def ends_at(self) -> float:
        """Time by which the call must be over, as another worker may get the permit soon after."""
        return self.requested_at + self.ttl_seconds * (1 - _TTL_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRefusal:
    """No permit now; `cached_answer` is an earlier answer to the same request, with `answer` and `stored_at`."""

    reason: str
    retry_after: float
    cached_answer: JsonObject | None = None
    # Models that operators name for when this one cannot be had, and how long a task may be set aside for it.
    fallback_models: tuple[str, ...] = ()
    park_seconds: float | None = None
    # The model, or the budget, that such a task waits for.
    waits_for: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitRequest:
    """Request for permission to make one call."""

    request_id: UUID
    model: str
    task_key: TaskKey
    estimated_tokens: int
    cache_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Result of a call, as reported to the control plane; an answer to cache has its digest beside it."""

    outcome: Outcome
    status: int | None = None
    tokens: TokenUsage = field(default_factory=TokenUsage)
    latency_seconds: float | None = None
    hints: RateLimitHints = field(default_factory=RateLimitHints)
    cache_key: str | None = None
    answer: JsonObject | None = None
    error_code: str | None = None
    key_expires_at: datetime | None = None


class PermitClient:
    """Permit calls of one worker; `key` returns its current credential, None while it has none."""

    def __init__(self, http: httpx.AsyncClient, key: Callable[[], str | None]) -> None:
        self._http = http
        self._key = key

    async def acquire(self, request: PermitRequest) -> Permit | PermitRefusal:
        """Request a permit, granted or refused at once. Repeat with the same request id when the answer was lost.

        Raises PermitsUnavailable, ModelNotAllowed, and UnfitRequest for a request that can never be granted.
        """
        body = {
            "request_id": str(request.request_id),
            "model": request.model,
            # All else that there is to say of the task the control plane takes from its lease.
            "task_id": request.task_key.lease.task_id,
            "estimated_tokens": request.estimated_tokens,
            "cache_key": request.cache_key,
        }
        requested_at = _clock()
        status, answer = await self._call("POST", "/llm/permits", body)
        if status == 429 and answer.get("code") == "permit_refused":
            return _read_refusal(answer)
        if status == 409 and answer.get("code") == "permit_over":
            return PermitRefusal(reason=PERMIT_OVER, retry_after=0.0)
        if status != 201:
            message = f"asked for a permit, answered {status}: {answer.get('detail') or answer.get('title')}"
            if answer.get("code") == "model_not_allowed":
                raise ModelNotAllowed(message)
            raise UnfitRequest(message) if status in _UNFIT_STATUSES else PermitsUnavailable(message)
        return _read_permit(answer, requested_at)

    async def keep_alive(self, permit: Permit) -> None:
        """Renew the permit until cancelled; return when it is lost, as time runs out or the control plane says."""
        tries = _RENEWALS_PER_TTL
        while True:
            try:
                # The renewal itself counts: an answer after the end comes too late.
                async with asyncio.timeout_at(permit.ends_at):
                    await asyncio.sleep(permit.ttl_seconds / tries)
                    renewed_permit = await self._renew(permit)
            except TimeoutError:
                return
            except PermitsUnavailable:
                tries = _TRIES_PER_TTL
                continue
            if renewed_permit is None:
                return
            permit, tries = renewed_permit, _RENEWALS_PER_TTL

    async def _renew(self, permit: Permit) -> Permit | None:
        """Return the renewed permit; None when it is over. Raises PermitsUnavailable."""
        requested_at = _clock()
        status, answer = await self._call("POST", f"/llm/permits/{permit.permit_id}/renew", {"token": permit.token})
        if status in (404, 409):
            return None
        if status >= 400:
            raise PermitsUnavailable(f"the renewal of a permit was answered {status}")
        ttl_seconds = _seconds(answer.get("ttl_seconds")) or permit.ttl_seconds
        return replace(permit, requested_at=requested_at, ttl_seconds=ttl_seconds)

    async def settle(self, permit: Permit, settlement: Settlement) -> None:
        """Report how the call went; retried until the permit's time is over, as it is free by then."""
        body = _settlement_body(permit, settlement)
        backoff_seconds, deadline = 0.2, _clock() + permit.ttl_seconds
        while True:
            try:
                status, answer = await self._call("POST", f"/llm/permits/{permit.permit_id}/settle", body)
            except PermitsUnavailable as unavailable:
                log.warning("a permit could not be settled yet", extra={"fields": {"why": str(unavailable)}})
                if _clock() + backoff_seconds > deadline:
                    return
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
                continue
            if status in _UNFIT_STATUSES and len(body) > 2:
                # Not every model's answer can be stored; its tokens count, and the permit must be freed, all the same.
                has_answer = body.pop("cache", None) is not None
                body = body if has_answer else {name: body[name] for name in ("token", "outcome")}
                continue
            if status >= 400:
                fields = {"status": status, "why": str(answer.get("detail") or "")}
                log.warning("the settlement of a permit was refused", extra={"fields": fields})
            return

    async def cached_answer(self, cache_key: str, model: str) -> JsonObject | None:
        """Fetch the model's answer cached under this digest, with `answer` and `stored_at`; None without one."""
        try:
            status, answer = await self._call("GET", f"/llm/cache/{cache_key}?model={quote(model, safe='')}", None)
        except PermitsUnavailable:
            return None
        return answer if status == 200 and isinstance(answer.get("answer"), dict) else None

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, JsonObject]:
        key = self._key()
        if key is None:
            raise PermitsUnavailable("this worker is not registered at the moment")
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        # ASCII, as models emit lone surrogates, which UTF-8 cannot encode.
        content = None if body is None else json.dumps(body)
        try:
            response = await cancel_at_most_once(self._http.request(method, path, content=content, headers=headers))
        except HTTP_ERRORS as error:
            raise PermitsUnavailable(f"{type(error).__name__}: {error}") from error
        status, answer = response.status_code, parse_json_object(response.content) or {}
        if status >= 500 or status in (401, 408):
            raise PermitsUnavailable(f"the control plane answered {status}")
        if response.is_client_error and status != _TOO_LARGE and not is_problem(response, answer):
            # The word of a proxy or a firewall ends neither a permit nor a call.
            raise PermitsUnavailable(f"something on the way to the control plane answered {status}")
        return status, answer


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _read_permit(answer: JsonObject, requested_at: float) -> Permit:
    """Read a grant. Raises PermitsUnavailable where something in between has answered."""
    permit_id, token, ttl_seconds = (answer.get(name) for name in ("permit_id", "token", "ttl_seconds"))
    seconds = _seconds(ttl_seconds)
    if not isinstance(permit_id, str) or not isinstance(token, str) or not permit_id or seconds is None:
        raise PermitsUnavailable("asked for a permit, answered with something that is none")
    return Permit(
        permit_id=quote(permit_id, safe=""),
        token=token,
        ttl_seconds=seconds,
        requested_at=requested_at,
        fallback_models=_names(answer.get("fallback_models")),
    )


def _seconds(value: object) -> float | None:
    """A duration above 0, of a day at most; None for anything else."""
    if type(value) not in (int, float):
        return None
    assert isinstance(value, int | float)
    return min(float(value), _MAX_SECONDS) if math.isfinite(value) and value > 0 else None


def _read_refusal(answer: JsonObject) -> PermitRefusal:
    cached_answer = answer.get("cached")
    return PermitRefusal(
        reason=str(answer.get("reason") or "unknown"),
        retry_after=_seconds(answer.get("retry_after")) or 0.0,
        cached_answer=cached_answer if isinstance(cached_answer, dict) else None,
        fallback_models=_names(answer.get("fallback_models")),
        park_seconds=_seconds(answer.get("park_seconds")),
        waits_for=waits_for if isinstance(waits_for := answer.get("waits_for"), str) else None,
    )


def _names(value: object) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _settlement_body(permit: Permit, settlement: Settlement) -> JsonObject:
    latency = settlement.latency_seconds
    values = {
        "status": settlement.status,
        "prompt_tokens": settlement.tokens.prompt,
        "completion_tokens": settlement.tokens.completion,
        "latency_ms": None if latency is None else round(latency * 1000, 1),
        "retry_after_seconds": settlement.hints.retry_after,
        "reset_requests_seconds": settlement.hints.reset_requests,
        "reset_tokens_seconds": settlement.hints.reset_tokens,
        "error_code": settlement.error_code,
        "key_expires_at": None if settlement.key_expires_at is None else settlement.key_expires_at.isoformat(),
    }
    body: JsonObject = {"token": permit.token, "outcome": settlement.outcome.value}
    body |= {name: value for name, value in values.items() if value is not None}
    if settlement.answer is not None:
        cache_entry = {"key": settlement.cache_key, "answer": settlement.answer}
        if len(json.dumps(cache_entry)) <= _MAX_CACHED_BYTES:
            body["cache"] = cache_entry
    return body
