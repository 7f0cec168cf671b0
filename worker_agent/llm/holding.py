"""A permit for as long as its call lasts, and an answer in pieces, which holds one until its end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from worker_agent.llm.endings import in_the_background, to_the_end
from worker_agent.llm.hints import Hints
from worker_agent.llm.outcomes import Failed, Outcome, read_error
from worker_agent.llm.permits import Permit, Plane, Settlement
from worker_agent.llm.replies import Degraded, degradation
from worker_agent.llm.upstream import Broken, Stream
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 3.0


class Lost(Exception):
    """The permit was lost while its call was under way, so the call has been ended."""


class Held:
    """Renewed until it is settled, which happens once, or lost, which ends the call."""

    def __init__(self, permit: Permit, plane: Plane, *, began: float) -> None:
        self.began = began
        self.is_lost = False
        self._permit = permit
        self._plane = plane
        self._end_call: Callable[[], object] | None = None
        self._keeper = asyncio.create_task(self._keep())
        self._settled = False

    @asynccontextmanager
    async def during(self) -> AsyncIterator[None]:
        """What is waited for in here is ended when the permit is lost; then raises Lost."""
        try:
            async with asyncio.timeout(None) as limit:
                self.when_lost(lambda: limit.reschedule(0.0))
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Lost from None
        finally:
            self._end_call = None

    def when_lost(self, end_call: Callable[[], object]) -> None:
        """How to end the call, from now on; at once if the permit is lost already."""
        self._end_call = end_call
        if self.is_lost:
            end_call()

    async def settle(self, settlement: Settlement) -> None:
        """Say how the call went and let the permit go, also when whoever waits for that is cancelled.

        While the control plane is away it goes on by itself: whoever wants the answer does not wait for long.
        """
        if self._settled:
            return
        self._settled = True
        self._keeper.cancel()
        settling = in_the_background(self._plane.settle(self._permit, settlement))
        await asyncio.wait({settling}, timeout=_PATIENCE_SECONDS)
        if settling.done():
            settling.result()

    async def _keep(self) -> None:
        await self._plane.keep(self._permit)
        self.is_lost = True
        log.warning("a permit was lost", extra={"fields": {"permit_id": self._permit.permit_id}})
        if self._end_call is not None:
            self._end_call()


@dataclass(slots=True, kw_only=True)
class Streaming:
    """An answer on its way; to be closed."""

    held: Held
    stream: Stream
    asked: str
    model: str
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self.held.when_lost(lambda: in_the_background(self.stream.close()))

    @property
    def degraded(self) -> Degraded | None:
        """As far as the first piece tells."""
        return degradation(self.asked, self.model, str(self.stream.first[-1].get("model") or ""))

    async def chunks(self) -> AsyncIterator[JsonObject]:
        """All pieces. Raises Broken when they end too early, and Lost; however it ends, the permit is settled."""
        settlement = Settlement(outcome=Outcome.CANCELLED)
        try:
            async for chunk in self.stream.chunks():
                yield chunk
            settlement = Settlement(outcome=Outcome.SUCCESS)
        except Exception as error:
            if self.held.is_lost:
                raise Lost from error
            settlement = failure(error.failed if isinstance(error, Broken) else read_error(error), 0.0)
            raise
        finally:
            await self.close(settlement)

    async def close(self, settlement: Settlement | None = None) -> None:
        """Hang up, then let the permit go: whoever gets it next may call at once. Safe to repeat."""
        latency = self.clock() - self.held.began
        told = settlement or Settlement(outcome=Outcome.CANCELLED)
        await to_the_end(self._end(replace(told, tokens=self.stream.tokens, latency_seconds=latency)))

    async def _end(self, settlement: Settlement) -> None:
        try:
            await self.stream.close()
        finally:
            await self.held.settle(settlement)


def failure(failed: Failed, seconds: float) -> Settlement:
    """The settlement of a call without an answer. Only a refusal's headers speak of the model's limits."""
    hints = failed.hints if failed.outcome is Outcome.RATE_LIMITED else Hints()
    return Settlement(outcome=failed.outcome, status=failed.status, hints=hints, latency_seconds=seconds)
