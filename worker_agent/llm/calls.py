"""From a question to an answer: permits, the chain of models, waiting, trying again, and earlier answers at need."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import uuid4

from worker_agent.llm.endings import in_the_background
from worker_agent.llm.hints import pause
from worker_agent.llm.holding import Held, Lost, Streaming, failure
from worker_agent.llm.outcomes import Answered, Failed, Outcome
from worker_agent.llm.permits import OVER, Permit, PermitRefused, Plane, PlaneAway, Settlement, Unfit, Wish
from worker_agent.llm.replies import Degraded, NotNow, Refused, Reply, Unavailable, degradation, marked
from worker_agent.llm.requests import addressed, digest, estimated_tokens, is_repeatable, wants_completion_tokens
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.tickets import Ticket
from worker_agent.llm.upstream import Stream, Upstream
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
T = TypeVar("T", Answered, Stream)
# Longer than that nobody waits for a model while another one, or an earlier answer, would do.
PATIENCE_SECONDS = 10.0
_AWAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a task wants to know; `model` heads the chain."""

    body: JsonObject
    ticket: Ticket
    model: str

    @property
    def cache_key(self) -> str:
        """The digest under which an answer of the model that was asked for is kept."""
        return digest(self.body, self.model)


class _NextModel(Exception):
    """This model cannot answer; `seconds` says when its limits may allow it, None when they are not the reason."""

    def __init__(self, message: str, seconds: float | None = None, cached: JsonObject | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.cached = cached


class _FromCache(Exception):
    def __init__(self, cached: JsonObject) -> None:
        super().__init__("an earlier answer")
        self.cached = cached


@dataclass(slots=True, kw_only=True)
class _Search:
    """One model's turn at a question: how often it failed or refused in a row, and how long was waited for it."""

    question: Question
    model: str
    has_other: bool
    failures: int = 0
    refusals: int = 0
    waited: float = 0.0


@dataclass(slots=True, kw_only=True)
class Calls:
    """All calls of one worker, which has one task at a time; a task may well ask several questions at once."""

    settings: GatewaySettings
    plane: Plane
    upstream: Upstream
    draw: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    # Models that have turned out to refuse `max_tokens`.
    _learned: set[str] = field(default_factory=set)

    async def answer(self, question: Question) -> Reply:
        """The whole answer. Raises NotNow, Unavailable, Refused."""
        try:
            held, model, answered = await self._through_chain(question, self._ask)
        except _FromCache as found:
            return _from_cache(question, found.cached)
        degraded = degradation(question.model, model, answered.model)
        await held.settle(
            Settlement(
                outcome=Outcome.SUCCESS,
                tokens=answered.tokens,
                latency_seconds=self.clock() - held.began,
                # Kept for whoever asks the same again while nothing can be had.
                cache_key=question.cache_key,
                answer=answered.body if degraded is None else None,
            )
        )
        body = marked(answered.body, asked=question.model, degraded=degraded)
        return Reply(body=body, model=answered.model, degraded=degraded)

    async def stream(self, question: Question) -> Streaming | Reply:
        """An answer in pieces, or an earlier one as a whole. Raises as `answer` does."""
        try:
            held, model, stream = await self._through_chain(question, self._open)
        except _FromCache as found:
            return _from_cache(question, found.cached)
        return Streaming(held=held, stream=stream, asked=question.model, model=model, clock=self.clock)

    async def _through_chain(
        self, question: Question, send: Callable[[JsonObject, Ticket], Awaitable[T | Failed]]
    ) -> tuple[Held, str, T]:
        chain = [question.model, *(name for name in self.settings.models if name != question.model)]
        trouble: list[_NextModel] = []
        for place, model in enumerate(chain):
            search = _Search(question=question, model=model, has_other=place + 1 < len(chain))
            try:
                held, found = await self._with(search, send)
            except _NextModel as next_model:
                log.info("a model cannot answer", extra={"fields": {"model": model, "why": str(next_model)}})
                trouble.append(next_model)
            else:
                return held, model, found
        await self._in_hard_times(question, trouble)
        raise AssertionError("the line above raises")

    async def _in_hard_times(self, question: Question, trouble: list[_NextModel]) -> None:
        """Nobody answers: an earlier answer, or the reason. Always raises."""
        cached = next((t.cached for t in trouble if t.cached), None) or await self.plane.cached(question.cache_key)
        if cached is not None:
            raise _FromCache(cached)
        waits = [t.seconds for t in trouble if t.seconds is not None]
        reasons = "; ".join(str(t) for t in trouble)
        if waits:
            raise NotNow(min(waits), reasons)
        raise Unavailable(reasons)

    async def _with(
        self, search: _Search, send: Callable[[JsonObject, Ticket], Awaitable[T | Failed]]
    ) -> tuple[Held, T]:
        """Ask one model until it answers. Raises _NextModel, _FromCache, Refused."""
        while True:
            held = await self._permit(search)
            try:
                async with held.during():
                    found = await send(self._request(search), search.question.ticket)
            except Lost:
                # There may be nobody to take it back, which is no reason to wait.
                in_the_background(self._abandon(held))
                await self._wait(search, self._a_moment(), f"the permit for {search.model} was lost")
                continue
            except BaseException:
                await self._abandon(held)
                raise
            if not isinstance(found, Failed):
                return held, found
            await held.settle(failure(found, self.clock() - held.began))
            await self._after(found, search)

    async def _permit(self, search: _Search) -> Held:
        question = search.question
        # The same id after a refusal keeps the place in the queue of those who wait.
        wish = Wish(
            request_id=uuid4(),
            model=search.model,
            ticket=question.ticket,
            estimated_tokens=estimated_tokens(question.body),
            cache_key=question.cache_key,
        )
        while True:
            try:
                answer = await self._acquired(wish)
            except PlaneAway as away:
                await self._wait(search, self._a_moment(), f"no permit: {away}")
                continue
            except Unfit as unfit:
                raise Refused(Failed(outcome=Outcome.CLIENT_ERROR, message=str(unfit), status=400)) from unfit
            if isinstance(answer, Held):
                return answer
            if answer.reason == OVER:
                wish = replace(wish, request_id=uuid4())
            await self._denied(answer, search)

    async def _acquired(self, wish: Wish) -> Held | PermitRefused:
        """Raises as `Plane.acquire` does. A permit that comes when nobody waits for it any more is given back."""
        asking = asyncio.ensure_future(self._hold(wish))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            in_the_background(self._give_back(asking))
            raise

    async def _hold(self, wish: Wish) -> Held | PermitRefused:
        answer = await self.plane.acquire(wish)
        return Held(answer, self.plane, began=self.clock()) if isinstance(answer, Permit) else answer

    async def _give_back(self, asking: Awaitable[Held | PermitRefused]) -> None:
        with contextlib.suppress(PlaneAway, Unfit):
            answer = await asking
            if isinstance(answer, Held):
                await self._abandon(answer)

    async def _denied(self, refusal: PermitRefused, search: _Search) -> None:
        """Wait as told, unless there is something better to do."""
        impatient = is_repeatable(search.question.body) or search.waited + refusal.retry_after > PATIENCE_SECONDS
        if refusal.cached is not None and (impatient or refusal.reason == "breaker_open"):
            raise _FromCache(refusal.cached)
        if refusal.reason == "breaker_open":
            raise _NextModel(f"{search.model} has failed too often and rests", refusal.retry_after)
        # A tenth more at most, so that those who were told the same moment do not all come in it.
        seconds = max(0.02, refusal.retry_after) * (1 + 0.1 * self.draw())
        await self._wait(search, seconds, f"{search.model} has no room ({refusal.reason})", refusal.cached)

    async def _after(self, failed: Failed, search: _Search) -> None:
        """Back off before the next try, or give this model or the question up."""
        if failed.outcome is Outcome.RATE_LIMITED:
            search.refusals += 1
            seconds = pause(search.refusals, failed.hints, self.draw())
            await self._wait(search, seconds, f"{search.model} is over its rate")
            return
        if failed.is_final:
            if self._learns(failed, search):
                return
            raise Refused(failed)
        search.refusals, search.failures = 0, search.failures + 1
        if failed.status == 404 or search.failures >= self.settings.attempts:
            raise _NextModel(f"{search.model}: {failed.message}")
        seconds = pause(search.failures, failed.hints, self.draw())
        if self.clock() + seconds > search.question.ticket.ends_at:
            raise _NextModel(f"{search.model}: {failed.message}; no time is left to try again")
        await self.sleep(seconds)

    def _learns(self, failed: Failed, search: _Search) -> bool:
        told = failed.status == 400 and "max_completion_tokens" in failed.message
        if not told or search.model in self._learned or "max_tokens" not in self._request(search):
            return False
        self._learned.add(search.model)
        return True

    def _a_moment(self) -> float:
        return _AWAY_SECONDS * (1 + self.draw())

    async def _wait(self, search: _Search, seconds: float, why: str, cached: JsonObject | None = None) -> None:
        """For the model's limits. Raises _NextModel when that takes too long."""
        search.waited += seconds
        if search.has_other and search.waited > PATIENCE_SECONDS:
            raise _NextModel(f"{why} for another {seconds:.1f} s", seconds, cached)
        if self.clock() + seconds > search.question.ticket.ends_at:
            raise _NextModel(f"{why}; the task has no time left to wait {seconds:.1f} s", seconds, cached)
        await self.sleep(seconds)

    def _request(self, search: _Search) -> JsonObject:
        completion_tokens = search.model in self._learned or wants_completion_tokens(search.model)
        return addressed(search.question.body, search.model, completion_tokens=completion_tokens)

    async def _abandon(self, held: Held) -> None:
        await held.settle(Settlement(outcome=Outcome.CANCELLED, latency_seconds=self.clock() - held.began))

    async def _ask(self, request: JsonObject, ticket: Ticket) -> Answered | Failed:
        return await self.upstream.ask(request, ticket.trace_context)

    async def _open(self, request: JsonObject, ticket: Ticket) -> Stream | Failed:
        return await self.upstream.open(request, ticket.trace_context)


def _from_cache(question: Question, cached: JsonObject) -> Reply:
    answer = cached.get("answer")
    body = dict(answer) if isinstance(answer, dict) else {}
    stored_at = cached.get("stored_at")
    marked_body = marked(body, asked=question.model, degraded=Degraded.CACHED, stored_at=stored_at)
    return Reply(body=marked_body, model=str(body.get("model") or question.model), degraded=Degraded.CACHED)
