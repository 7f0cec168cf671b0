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
from worker_agent.llm.model_turn import (
    CONDITION_SECONDS,
    MAX_AWAY_SECONDS,
    ModelTurn,
    TryNextModel,
    UseCachedAnswer,
    is_for_line,
    usable,
)
from worker_agent.llm.outcomes import CallFailure, ModelAnswer, Outcome
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
from worker_agent.llm.requests import Question
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.upstream import AnswerStream, UpstreamClient
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
T = TypeVar("T", ModelAnswer, AnswerStream)
_RETRY_SECONDS = 0.5


@dataclass(slots=True, kw_only=True)
class CompletionService:
    """Chat completions for one worker, which has one task at a time; a task may ask several at once."""

    settings: GatewaySettings
    permits: PermitClient
    upstream: UpstreamClient
    random_fraction: Callable[[], float]
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
        except UseCachedAnswer as result:
            return _cached_reply(question, result.cached_answer)
        degradation = degradation_of(question.model, model, answer.model)
        permit.trace.add_answer(answer.body)
        await permit.settle(
            Settlement(
                outcome=Outcome.SUCCESS,
                tokens=answer.tokens,
                latency_seconds=permit.seconds,
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
        except UseCachedAnswer as result:
            return _cached_reply(question, result.cached_answer)
        return StreamedReply(
            permit=permit,
            stream=stream,
            asked_model=question.model,
            model=model,
            question_tokens=requests.question_tokens(question.body),
            key_expires_at=self.upstream.keys.expires_at,
        )

    async def _through_chain(
        self, question: Question, send: Callable[[JsonObject, str | None], Awaitable[T | CallFailure]]
    ) -> tuple[HeldPermit, str, T]:
        chain: list[str] = [question.model, *(name for name in self.settings.models if name != question.model)]
        problems: list[TryNextModel] = []
        permit: HeldPermit
        result: T
        asked: set[str] = set()
        while chain:
            model = chain.pop(0)
            asked.add(model)
            turn: ModelTurn = ModelTurn(
                question=question, model=model, has_other=bool(chain), random_fraction=self.random_fraction
            )
            try:
                permit, result = await self._ask_model(turn, send)
            except TryNextModel as unavailable:
                log.info("a model cannot answer", extra={"fields": {"model": model, "why": str(unavailable)}})
                problems.append(unavailable)
                # What operators name for this model comes before the worker's own chain.
                chain = [name for name in dict.fromkeys((*turn.fallbacks, *chain)) if name not in asked]
            else:
                return permit, model, result
        raise await self._unanswered(question, problems)

    async def _unanswered(self, question: Question, problems: list[TryNextModel]) -> Exception:
        """The error to raise: UseCachedAnswer if an answer is cached, else NoCapacity or NoAnswer."""
        answers = (problem.cached_answer for problem in problems if problem.cached_answer)
        cached_answer = next(answers, None) or await self._cached_answer(question)
        if cached_answer is not None:
            return UseCachedAnswer(cached_answer)
        waits = [problem.seconds for problem in problems if problem.seconds is not None]
        reasons = "; ".join(str(problem) for problem in problems)
        awaited = next((problem.awaited_model for problem in problems if problem.awaited_model), None)
        return NoCapacity(min(waits), reasons, awaited) if waits else NoAnswer(reasons)

    async def _cached_answer(self, question: Question) -> JsonObject | None:
        return usable(await self.permits.cached_answer(question.cache_key, question.model))

    async def _ask_model(
        self, turn: ModelTurn, send: Callable[[JsonObject, str | None], Awaitable[T | CallFailure]]
    ) -> tuple[HeldPermit, T]:
        """Ask one model until it answers. Raises TryNextModel, UseCachedAnswer, RequestRefused."""
        while True:
            permit = await self._acquire_permit(turn)
            request = self._request(turn)
            permit.trace = trace = self.traces.begin(request, turn.question.trace_context)
            try:
                async with permit.guard_call():
                    result = await send(request, trace.traceparent)
            except PermitLost:
                # The control plane may be away, which is no reason to wait.
                run_in_background(permit.settle_cancelled())
                await turn.wait(self._retry_delay(), f"the permit for {turn.model} was lost")
                continue
            except BaseException:
                # Cancelled calls as well: an unsettled permit keeps others waiting until it expires.
                await permit.settle_cancelled()
                raise
            if not isinstance(result, CallFailure):
                return permit, result
            settlement = failure_settlement(result, permit.seconds)
            await permit.settle(replace(settlement, key_expires_at=self.upstream.keys.expires_at))
            await self._handle_failure(result, turn)

    async def _acquire_permit(self, turn: ModelTurn) -> HeldPermit:
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
                await turn.wait(self._retry_delay(), f"no permit: {unavailable}")
                continue
            except ModelNotAllowed as error:
                raise TryNextModel(str(error)) from error
            except UnfitRequest as error:
                failure = CallFailure(outcome=Outcome.CLIENT_ERROR, message=str(error), status=400)
                raise RequestRefused(failure) from error
            if isinstance(answer, HeldPermit):
                return answer
            if answer.reason == PERMIT_OVER:
                permit_request = replace(permit_request, request_id=uuid4())
            await turn.wait_out(answer)

    async def _acquire_in_line(self, permit_request: PermitRequest, turn: ModelTurn) -> HeldPermit | PermitRefusal:
        """Acquire a permit behind the calls that wait in line; the answer is a refusal for another reason, if any."""
        line = self._lines[turn.model]
        answer: HeldPermit | PermitRefusal | None = None
        if not line.locked():
            answer = await self._ask_for_permit(permit_request, turn)
            if not is_for_line(answer):
                return answer
            turn.check_alternatives(answer)
        elif requests.is_repeatable(turn.question.body) and (cached := await self._cached_answer(turn.question)):
            raise UseCachedAnswer(cached)
        if line.locked():
            # Its turn comes when that of others is over, whatever it was told.
            answer = None
        async with turn.first_in(line):
            while answer is None or is_for_line(answer):
                if answer is not None:
                    await turn.wait_out(answer)
                answer = await self._ask_for_permit(permit_request, turn)
        return answer

    async def _ask_for_permit(self, permit_request: PermitRequest, turn: ModelTurn) -> HeldPermit | PermitRefusal:
        answer = await hold_permit(self.permits, permit_request)
        turn.add_fallbacks(answer.fallback_models)
        return answer

    async def _handle_failure(self, failure: CallFailure, turn: ModelTurn) -> None:
        """Back off before the next try, or give up on this model or on the question."""
        if failure.condition is not None:
            # The control plane has been told, and says how long the task may wait; its answer may be late.
            turn.failures += 1
            if turn.failures >= self.settings.attempts:
                raise TryNextModel(f"{turn.model}: {failure.message}", CONDITION_SECONDS, awaited_model=turn.model)
            return
        if failure.outcome is Outcome.RATE_LIMITED:
            turn.refusals += 1
            seconds = backoff_seconds(turn.refusals, failure.hints, self.random_fraction())
            await turn.wait(seconds, f"{turn.model} is over its rate")
            return
        if failure.is_final:
            if self._learn_completion_tokens(failure, turn):
                return
            raise RequestRefused(failure)
        turn.refusals, turn.failures = 0, turn.failures + 1
        if failure.status == 404 or turn.failures >= self.settings.attempts:
            raise TryNextModel(f"{turn.model}: {failure.message}")
        seconds = backoff_seconds(turn.failures, failure.hints, self.random_fraction())
        if time.monotonic() + seconds > turn.question.task_key.ends_at:
            message = f"{turn.model}: {failure.message}; no time is left to try again"
            raise TryNextModel(message, min(seconds, MAX_AWAY_SECONDS) if failure.hints.retry_after else None)
        await asyncio.sleep(seconds)

    def _learn_completion_tokens(self, failure: CallFailure, turn: ModelTurn) -> bool:
        is_about_tokens = failure.status == 400 and "max_completion_tokens" in failure.message
        if not is_about_tokens or turn.model in self._learned_models or "max_tokens" not in self._request(turn):
            return False
        self._learned_models.add(turn.model)
        return True

    def _retry_delay(self) -> float:
        return _RETRY_SECONDS * (1 + self.random_fraction())

    def _request(self, turn: ModelTurn) -> JsonObject:
        completion_tokens = turn.model in self._learned_models or requests.wants_completion_tokens(turn.model)
        return requests.for_model(turn.question.body, turn.model, completion_tokens=completion_tokens)


def _cached_reply(question: Question, cached_answer: JsonObject) -> Reply:
    answer = cached_answer.get("answer")
    body = dict(answer) if isinstance(answer, dict) else {}
    stored_at = cached_answer.get("stored_at")
    model = str(body.get("model") or question.model)
    body = with_origin(body, asked_model=question.model, degradation=Degradation.CACHED, stored_at=stored_at)
    return Reply(body=body, model=model, degradation=Degradation.CACHED)
