"""A permit kept alive during its call, and a streamed reply that holds one until its end."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from worker_agent.llm.call_trace import UNTRACED
from worker_agent.llm.cancellation import run_in_background, run_shielded
from worker_agent.llm.outcomes import CallFailure, Outcome, TokenUsage, read_error
from worker_agent.llm.permits import (
    ModelNotAllowed,
    Permit,
    PermitClient,
    PermitRefusal,
    PermitRequest,
    PermitsUnavailable,
    Settlement,
    UnfitRequest,
)
from worker_agent.llm.rate_limit_hints import RateLimitHints
from worker_agent.llm.replies import Degradation, degradation_of
from worker_agent.llm.upstream import AnswerStream, StreamBroken
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
_SETTLE_WAIT_SECONDS = 3.0


class PermitLost(Exception):
    """The permit was lost while its call was under way, so the call has been ended."""


class HeldPermit:
    """A permit that is renewed until it is settled, which happens once, or lost, which ends its call."""

    def __init__(self, permit: Permit, permits: PermitClient) -> None:
        self._started_at = time.monotonic()
        self.fallback_models = permit.fallback_models
        self.is_lost = False
        self.trace = UNTRACED
        self._permit = permit
        self._permits = permits
        self._end_call: Callable[[], object] | None = None
        self._renewal_task = asyncio.create_task(self._keep_alive())
        self._is_settled = False

    @property
    def seconds(self) -> float:
        """The time since it was granted."""
        return time.monotonic() - self._started_at

    @asynccontextmanager
    async def guard_call(self) -> AsyncIterator[None]:
        """Cancel what is awaited inside when the permit is lost, then raise PermitLost."""
        try:
            # A timeout without an end, until the loss of the permit moves its end to now.
            async with asyncio.timeout(None) as limit:
                self.on_lost(lambda: limit.reschedule(0.0))
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise PermitLost from None
        finally:
            self._end_call = None

    def on_lost(self, end_call: Callable[[], object]) -> None:
        """Set the function that ends the call when the permit is lost; it runs at once if it is lost already."""
        self._end_call = end_call
        if self.is_lost:
            end_call()

    async def settle(self, settlement: Settlement) -> None:
        """Report how the call went and free the permit, in the background after a few seconds or a cancellation."""
        if self._is_settled:
            return
        self._is_settled = True
        self.trace.end(settlement)
        self._renewal_task.cancel()
        settlement_task = run_in_background(self._permits.settle(self._permit, settlement))
        await asyncio.wait({settlement_task}, timeout=_SETTLE_WAIT_SECONDS)
        if settlement_task.done():
            settlement_task.result()

    async def settle_cancelled(self) -> None:
        """Free the permit of a call of which nobody waits for the answer."""
        await self.settle(Settlement(outcome=Outcome.CANCELLED, latency_seconds=self.seconds))

    async def _keep_alive(self) -> None:
        await self._permits.keep_alive(self._permit)
        self.is_lost = True
        log.warning("a permit was lost", extra={"fields": {"permit_id": self._permit.permit_id}})
        if self._end_call is not None:
            self._end_call()


async def hold_permit(permits: PermitClient, request: PermitRequest) -> HeldPermit | PermitRefusal:
    """Acquire as `PermitClient.acquire` does; a permit that is granted after cancellation is given back."""

    async def acquire() -> HeldPermit | PermitRefusal:
        answer = await permits.acquire(request)
        return HeldPermit(answer, permits) if isinstance(answer, Permit) else answer

    async def give_back() -> None:
        with contextlib.suppress(PermitsUnavailable, ModelNotAllowed, UnfitRequest):
            answer = await acquisition
            if isinstance(answer, HeldPermit):
                await answer.settle_cancelled()

    # Shielded: a request that is cut off may still be granted, and its permit would be held until it expires.
    acquisition = asyncio.ensure_future(acquire())
    try:
        return await asyncio.shield(acquisition)
    except asyncio.CancelledError:
        run_in_background(give_back())
        raise


@dataclass(slots=True, kw_only=True)
class StreamedReply:
    """A reply in chunks that are still arriving; to be closed."""

    permit: HeldPermit
    stream: AnswerStream
    asked_model: str
    model: str
    # As estimated.
    question_tokens: int
    key_expires_at: datetime | None = None

    def __post_init__(self) -> None:
        self.permit.on_lost(lambda: run_in_background(self.stream.close()))

    @property
    def degradation(self) -> Degradation | None:
        """Degradation, as far as the first chunk tells."""
        return degradation_of(self.asked_model, self.model, str(self.stream.first_chunks[-1].get("model") or ""))

    async def chunks(self) -> AsyncIterator[JsonObject]:
        """Yield all chunks and settle the permit. Raises StreamBroken when they end early, and PermitLost."""
        settlement = Settlement(outcome=Outcome.CANCELLED)
        try:
            async for chunk in self.stream.chunks():
                yield chunk
            settlement = Settlement(outcome=Outcome.SUCCESS)
        except Exception as error:
            if self.permit.is_lost:
                raise PermitLost from error
            failure = error.failure if isinstance(error, StreamBroken) else read_error(error)
            settlement = failure_settlement(failure, 0.0)
            raise
        finally:
            await self.close(settlement)

    async def close(self, settlement: Settlement | None = None) -> None:
        """Hang up, then settle the permit: its next holder may call at once. Safe to repeat."""
        latency = self.permit.seconds
        self.permit.trace.add_answer(self.stream.outline)
        settlement = settlement or Settlement(outcome=Outcome.CANCELLED)
        settlement = replace(settlement, tokens=self._tokens(), latency_seconds=latency)
        await run_shielded(self._end(replace(settlement, key_expires_at=self.key_expires_at)))

    def _tokens(self) -> TokenUsage:
        """The tokens of the call; where the stream has not told of them, as it does with its end, about as many."""
        # What was written is paid for, whoever hung up: uncounted, budgets would be overrun by hanging up.
        if self.stream.tokens != TokenUsage():
            return self.stream.tokens
        return TokenUsage(prompt=self.question_tokens, completion=self.stream.pieces)

    async def _end(self, settlement: Settlement) -> None:
        try:
            await self.stream.close()
        finally:
            await self.permit.settle(settlement)


def failure_settlement(failure: CallFailure, seconds: float) -> Settlement:
    """Settlement of a call without an answer; only a refusal's headers speak of the model's limits."""
    speaks_of_limits = failure.outcome is Outcome.RATE_LIMITED or failure.condition is not None
    return Settlement(
        outcome=failure.outcome,
        status=failure.status,
        hints=failure.hints if speaks_of_limits else RateLimitHints(),
        latency_seconds=seconds,
        error_code=failure.condition,
    )
