"""Answers questions by a chain of models, with permits, waits, retries and, as a last resort, cached answers."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import uuid4

from worker_agent.llm import requests
from worker_agent.llm.call_trace import CallTraces
from worker_agent.llm.cancellation import run_in_background
from worker_agent.llm.held_permit import HeldPermit, PermitLost, StreamedReply, failure_settlement, hold_permit
from worker_agent.llm.outcomes import CallFailure, ModelAnswer, Outcome, is_complete
from worker_agent.llm.permits import (
    PERMIT_OVER,
    ModelNotAllowed,
    PermitClient,
    PermitRefusal,
    PermitRequest,
    PermitsUnavailable,
    Settlement,
    UnfitRequest,
)
from worker_agent.llm.rate_limit_hints import backoff_seconds
from worker_agent.llm.replies import (
    Degradation,
    NoAnswer,
    NoCapacity,
    Reply,
    RequestRefused,
    degradation_of,
    with_origin,
)
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.task_keys import TaskKey
from worker_agent.llm.upstream import AnswerStream, UpstreamClient
from worker_agent.tracing.context import read_traceparent
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
T = TypeVar("T", ModelAnswer, AnswerStream)
# The longest wait for a model's limits while another model, or a cached answer, would do.
_MAX_WAIT_SECONDS = 10.0
_RETRY_SECONDS = 0.5
# A service may ask for a day: its tasks come back when the control plane lets somebody try again.
_MAX_AWAY_SECONDS = 300.0
# Reasons for which a call waits its turn among those of its task; a rate tells each of them its own time.
_TURN_REASONS = frozenset({"share", "concurrency"})
# Reasons for which the task is set aside, unless the model may be tried at once; and for how long without being told.
_CONDITIONS = frozenset({"key_expired", "quota_exhausted", "maintenance", "loading", "budget"})
_SHORT_WAIT_SECONDS = 0.5
_CONDITION_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A chat completion requested by a task; `model` heads the chain."""

    body: JsonObject
    task_key: TaskKey
    model: str
    # That of the caller's own span, where it has sent one.
    traceparent: str | None = None

    @property
    def trace_context(self) -> str | None:
        """The trace context that the call goes on with: the caller's own, if it belongs to its task's, or that."""
        of_task = self.task_key.lease.trace_context
        task, own = read_traceparent(of_task), read_traceparent(self.traceparent)
        is_part = task and own and (own.trace_id, own.is_sampled) == (task.trace_id, task.is_sampled)
        return self.traceparent if is_part else of_task

    @property
    def cache_key(self) -> str:
        """Digest under which the answer of the requested model is cached."""
        return requests.digest(self.body, self.model)


class _TryNextModel(Exception):
    """This model cannot answer; `seconds` says when its limits may allow it, None when they are not the reason."""

    def __init__(
        self,
        message: str,
        seconds: float | None = None,
        cached_answer: JsonObject | None = None,
        awaited_model: str | None = None,
    ) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.cached_answer = cached_answer
        self.awaited_model = awaited_model


class _UseCachedAnswer(Exception):
    def __init__(self, cached_answer: JsonObject) -> None:
        super().__init__("an earlier answer")
        self.cached_answer = cached_answer


@dataclass(slots=True, kw_only=True)
class _ModelTurn:
    """One model's turn at a question: its failures and refusals in a row, and the seconds waited for it."""

    question: Question
    model: str
    has_other: bool
    failures: int = 0
    refusals: int = 0
    waited_seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class CompletionService:
    """Chat completions for one worker, which has one task at a time; a task may ask several at once."""

    settings: GatewaySettings
    permits: PermitClient
    upstream: UpstreamClient
    random_fraction: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    traces: CallTraces = field(default_factory=CallTraces)
    # Models that have turned out to refuse `max_tokens`.
    _learned_models: set[str] = field(default_factory=set)
    # Of the calls that wait for permits of a model one at a time asks: each for itself they would ask a hundred times
    # for a permit, and a call that comes when one is free would go before those that have waited.
    _lines: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def answer(self, question: Question) -> Reply:
        """Return the whole answer. Raises NoCapacity, NoAnswer, RequestRefused."""
        try:
            permit, model, answer = await self._through_chain(question, self.upstream.ask)
        except _UseCachedAnswer as result:
            return _cached_reply(question, result.cached_answer)
        degradation = degradation_of(question.model, model, answer.model)
        permit.trace.add_answer(answer.body)
        await permit.settle(
            Settlement(
                outcome=Outcome.SUCCESS,
                tokens=answer.tokens,
                latency_seconds=self.clock() - permit.started_at,
                # Cached for the same question at a time when no model can be reached.
                cache_key=question.cache_key,
                answer=answer.body if degradation is None else None,
                key_expires_at=self.upstream.keys.expires_at,
            )
        )
        body = with_origin(answer.body, asked_model=question.model, degradation=degradation)
        return Reply(body=body, model=answer.model, degradation=degradation)

    async def stream(self, question: Question) -> StreamedReply | Reply:
        """Return the answer in chunks, or a cached one as a whole. Raises as `answer` does."""
        try:
            permit, model, stream = await self._through_chain(question, self.upstream.open_stream)
        except _UseCachedAnswer as result:
            return _cached_reply(question, result.cached_answer)
        return StreamedReply(
            permit=permit,
            stream=stream,
            asked_model=question.model,
            model=model,
            question_tokens=requests.question_tokens(question.body),
            clock=self.clock,
            key_expires_at=self.upstream.keys.expires_at,
        )

    async def _through_chain(
        self, question: Question, send: Callable[[JsonObject, str | None], Awaitable[T | CallFailure]]
    ) -> tuple[HeldPermit, str, T]:
        chain: list[str] = [question.model, *(name for name in self.settings.models if name != question.model)]
        problems: list[_TryNextModel] = []
        permit: HeldPermit
        result: T
        asked: set[str] = set()
        while chain:
            model = chain.pop(0)
            asked.add(model)
            turn: _ModelTurn = _ModelTurn(question=question, model=model, has_other=bool(chain))
            try:
                permit, result = await self._ask_model(turn, send)
            except _TryNextModel as unavailable:
                log.info("a model cannot answer", extra={"fields": {"model": model, "why": str(unavailable)}})
                problems.append(unavailable)
                # What operators name for this model comes before the worker's own chain.
                chain = [name for name in dict.fromkeys((*turn.fallbacks, *chain)) if name not in asked]
            else:
                return permit, model, result
        raise await self._unanswered(question, problems)

    async def _unanswered(self, question: Question, problems: list[_TryNextModel]) -> Exception:
        """The error to raise: _UseCachedAnswer if an answer is cached, else NoCapacity or NoAnswer."""
        answers = (problem.cached_answer for problem in problems if problem.cached_answer)
        cached_answer = next(answers, None) or await self._cached_answer(question)
        if cached_answer is not None:
            return _UseCachedAnswer(cached_answer)
        waits = [problem.seconds for problem in problems if problem.seconds is not None]
        reasons = "; ".join(str(problem) for problem in problems)
        awaited = next((problem.awaited_model for problem in problems if problem.awaited_model), None)
        return NoCapacity(min(waits), reasons, awaited) if waits else NoAnswer(reasons)

    async def _cached_answer(self, question: Question) -> JsonObject | None:
        return _usable(await self.permits.cached_answer(question.cache_key, question.model))

    async def _ask_model(
        self, turn: _ModelTurn, send: Callable[[JsonObject, str | None], Awaitable[T | CallFailure]]
    ) -> tuple[HeldPermit, T]:
        """Ask one model until it answers. Raises _TryNextModel, _UseCachedAnswer, RequestRefused."""
        while True:
            permit = await self._acquire_permit(turn)
            request = self._request(turn)
            permit.trace = trace = self.traces.begin(request, turn.question.trace_context)
            try:
                async with permit.guard_call():
                    result = await send(request, trace.traceparent)
            except PermitLost:
                # The control plane may be away, which is no reason to wait.
                run_in_background(permit.settle_cancelled(self.clock()))
                await self._wait(turn, self._retry_delay(), f"the permit for {turn.model} was lost")
                continue
            except BaseException:
                # Cancelled calls as well: an unsettled permit keeps others waiting until it expires.
                await permit.settle_cancelled(self.clock())
                raise
            if not isinstance(result, CallFailure):
                return permit, result
            settlement = failure_settlement(result, self.clock() - permit.started_at)
            await permit.settle(replace(settlement, key_expires_at=self.upstream.keys.expires_at))
            await self._handle_failure(result, turn)

    async def _acquire_permit(self, turn: _ModelTurn) -> HeldPermit:
        question = turn.question
        # The same id after a refusal keeps the place in the control plane's queue.
        permit_request = PermitRequest(
            request_id=uuid4(),
            model=turn.model,
            task_key=question.task_key,
            estimated_tokens=requests.estimated_tokens(question.body),
            cache_key=question.cache_key,
        )
        while True:
            try:
                answer = await self._acquire_in_line(permit_request, turn)
            except PermitsUnavailable as unavailable:
                await self._wait(turn, self._retry_delay(), f"no permit: {unavailable}")
                continue
            except ModelNotAllowed as error:
                raise _TryNextModel(str(error)) from error
            except UnfitRequest as error:
                failure = CallFailure(outcome=Outcome.CLIENT_ERROR, message=str(error), status=400)
                raise RequestRefused(failure) from error
            if isinstance(answer, HeldPermit):
                return answer
            if answer.reason == PERMIT_OVER:
                permit_request = replace(permit_request, request_id=uuid4())
            await self._handle_refusal(answer, turn)

    async def _acquire_in_line(self, permit_request: PermitRequest, turn: _ModelTurn) -> HeldPermit | PermitRefusal:
        """Acquire a permit behind those calls that wait for their turn; the answer is another reason's refusal, if any.

        Whoever waits asks again and again for the whole line.
        """
        line, refusal = self._lines[turn.model], None
        if not line.locked():
            answer = await self._ask_for_permit(permit_request, turn)
            if isinstance(answer, HeldPermit) or answer.reason not in _TURN_REASONS:
                return answer
            # Its turn comes when that of others is over, whatever it was told; a cached answer serves at once.
            self._check_alternatives(answer, turn)
            refusal = None if line.locked() else answer
        elif requests.is_repeatable(turn.question.body) and (cached := await self._cached_answer(turn.question)):
            raise _UseCachedAnswer(cached)
        await self._wait_in_line(line, turn)
        try:
            while True:
                if refusal is not None:
                    await self._handle_refusal(refusal, turn)
                answer = await self._ask_for_permit(permit_request, turn)
                if isinstance(answer, HeldPermit) or answer.reason not in _TURN_REASONS:
                    return answer
                refusal = answer
        finally:
            line.release()

    async def _wait_in_line(self, line: asyncio.Lock, turn: _ModelTurn) -> None:
        """Wait for the turn among the calls of the task. Raises _TryNextModel when another model would do sooner."""
        joined_at = self.clock()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS - turn.waited_seconds if turn.has_other else None):
                await line.acquire()
        except TimeoutError:
            raise _TryNextModel(f"others wait for {turn.model} before this call", _CONDITION_SECONDS) from None
        turn.waited_seconds += self.clock() - joined_at

    async def _ask_for_permit(self, permit_request: PermitRequest, turn: _ModelTurn) -> HeldPermit | PermitRefusal:
        answer = await hold_permit(self.permits, permit_request, self.clock)
        turn.fallbacks = answer.fallback_models or turn.fallbacks
        # A name that comes from an operator is there for this model alone.
        turn.has_other = turn.has_other or bool(turn.fallbacks)
        return answer

    async def _handle_refusal(self, refusal: PermitRefusal, turn: _ModelTurn) -> None:
        """Wait for as long as the refusal says, unless a cached answer or another model serves better."""
        cached_answer = self._check_alternatives(refusal, turn)
        # A tenth more at most, so that those who got the same delay do not all return at once.
        seconds = max(0.02, refusal.retry_after) * (1 + 0.1 * self.random_fraction())
        await self._wait(turn, seconds, f"{turn.model} has no room ({refusal.reason})", cached_answer)

    def _check_alternatives(self, refusal: PermitRefusal, turn: _ModelTurn) -> JsonObject | None:
        """The cached answer, if any; raises _UseCachedAnswer or _TryNextModel where one of these serves better."""
        waits_too_long = turn.waited_seconds + refusal.retry_after > _MAX_WAIT_SECONDS
        prefers_cache = waits_too_long or requests.is_repeatable(turn.question.body)
        cached_answer = _usable(refusal.cached_answer)
        if cached_answer is not None and (prefers_cache or refusal.reason == "breaker_open"):
            raise _UseCachedAnswer(cached_answer)
        if refusal.reason in _CONDITIONS and refusal.retry_after > _SHORT_WAIT_SECONDS:
            seconds = refusal.park_seconds or refusal.retry_after
            message = f"{turn.model} cannot be had ({refusal.reason})"
            raise _TryNextModel(message, seconds, cached_answer, awaited_model=refusal.waits_for or turn.model)
        if refusal.reason == "breaker_open":
            raise _TryNextModel(f"{turn.model} has failed too often and rests", refusal.retry_after)
        return cached_answer

    async def _handle_failure(self, failure: CallFailure, turn: _ModelTurn) -> None:
        """Back off before the next try, or give up on this model or on the question."""
        if failure.condition is not None:
            # The control plane has been told, and says how long the task may wait; its answer may be late.
            turn.failures += 1
            if turn.failures >= self.settings.attempts:
                raise _TryNextModel(f"{turn.model}: {failure.message}", _CONDITION_SECONDS, awaited_model=turn.model)
            return
        if failure.outcome is Outcome.RATE_LIMITED:
            turn.refusals += 1
            seconds = backoff_seconds(turn.refusals, failure.hints, self.random_fraction())
            await self._wait(turn, seconds, f"{turn.model} is over its rate")
            return
        if failure.is_final:
            if self._learn_completion_tokens(failure, turn):
                return
            raise RequestRefused(failure)
        turn.refusals, turn.failures = 0, turn.failures + 1
        if failure.status == 404 or turn.failures >= self.settings.attempts:
            raise _TryNextModel(f"{turn.model}: {failure.message}")
        seconds = backoff_seconds(turn.failures, failure.hints, self.random_fraction())
        if self.clock() + seconds > turn.question.task_key.ends_at:
            message = f"{turn.model}: {failure.message}; no time is left to try again"
            raise _TryNextModel(message, min(seconds, _MAX_AWAY_SECONDS) if failure.hints.retry_after else None)
        await self.sleep(seconds)

    def _learn_completion_tokens(self, failure: CallFailure, turn: _ModelTurn) -> bool:
        is_about_tokens = failure.status == 400 and "max_completion_tokens" in failure.message
        if not is_about_tokens or turn.model in self._learned_models or "max_tokens" not in self._request(turn):
            return False
        self._learned_models.add(turn.model)
        return True

    def _retry_delay(self) -> float:
        return _RETRY_SECONDS * (1 + self.random_fraction())

    async def _wait(
        self, turn: _ModelTurn, seconds: float, reason: str, cached_answer: JsonObject | None = None
    ) -> None:
        """Wait for the model's limits. Raises _TryNextModel when that takes too long."""
        turn.waited_seconds += seconds
        if turn.has_other and turn.waited_seconds > _MAX_WAIT_SECONDS:
            raise _TryNextModel(f"{reason} for another {seconds:.1f} s", seconds, cached_answer)
        if self.clock() + seconds > turn.question.task_key.ends_at:
            message = f"{reason}; the task has no time left to wait {seconds:.1f} s"
            raise _TryNextModel(message, min(seconds, _MAX_AWAY_SECONDS), cached_answer)
        await self.sleep(seconds)

    def _request(self, turn: _ModelTurn) -> JsonObject:
        completion_tokens = turn.model in self._learned_models or requests.wants_completion_tokens(turn.model)
        return requests.for_model(turn.question.body, turn.model, completion_tokens=completion_tokens)


def _usable(cached_answer: JsonObject | None) -> JsonObject | None:
    """The cached answer, or None where another worker has stored something that is none."""
    answer = (cached_answer or {}).get("answer")
    return cached_answer if isinstance(answer, dict) and is_complete(answer) else None


def _cached_reply(question: Question, cached_answer: JsonObject) -> Reply:
    answer = cached_answer.get("answer")
    body = dict(answer) if isinstance(answer, dict) else {}
    stored_at = cached_answer.get("stored_at")
    model = str(body.get("model") or question.model)
    body = with_origin(body, asked_model=question.model, degradation=Degradation.CACHED, stored_at=stored_at)
    return Reply(body=body, model=model, degradation=Degradation.CACHED)
