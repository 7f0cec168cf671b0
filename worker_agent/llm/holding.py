"""A permit for as long as its call lasts, and an answer in pieces, which holds one until its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from worker_agent.llm.hints import Hints
from worker_agent.llm.outcomes import Failed, Outcome, read_error
from worker_agent.llm.permits import Permit, Plane, Settlement
from worker_agent.llm.replies import Degraded, degradation
from worker_agent.llm.upstream import Broken, Stream
from worker_agent.wire import JsonObject

# What must come to its end although nobody waits for it any longer.
_ending: set["asyncio.Future[None]"] = set()


class Held:
    """Renewed until it is settled, which happens once."""

    def __init__(self, permit: Permit, plane: Plane, *, began: float) -> None:
        self.began = began
        self._permit = permit
        self._plane = plane
        self._keeper = asyncio.create_task(plane.keep(permit))
        self._settled = False

    async def settle(self, settlement: Settlement) -> None:
        """Say how the call went and let the permit go, also when whoever waits for that is cancelled."""
        if self._settled:
            return
        self._settled = True
        self._keeper.cancel()
        await to_the_end(self._plane.settle(self._permit, settlement))


@dataclass(slots=True, kw_only=True)
class Streaming:
    """An answer on its way."""

    held: Held
    stream: Stream
    asked: str
    model: str
    clock: Callable[[], float]

    @property
    def degraded(self) -> Degraded | None:
        """As far as the first piece tells."""
        return degradation(self.asked, self.model, str(self.stream.first[-1].get("model") or ""))

    async def chunks(self) -> AsyncIterator[JsonObject]:
        """All pieces. Raises Broken when they end too early; however it ends, the permit is settled."""
        settlement = Settlement(outcome=Outcome.CANCELLED)
        try:
            async for chunk in self.stream.chunks():
                yield chunk
            settlement = Settlement(outcome=Outcome.SUCCESS)
        except Broken as broken:
            settlement = failure(broken.failed, 0.0)
            raise
        except Exception as error:
            settlement = failure(read_error(error), 0.0)
            raise
        finally:
            latency = self.clock() - self.held.began
            await self._close(replace(settlement, tokens=self.stream.tokens, latency_seconds=latency))

    async def _close(self, settlement: Settlement) -> None:
        async def both() -> None:
            await self.held.settle(settlement)
            await self.stream.close()

        await to_the_end(both())


def failure(failed: Failed, seconds: float) -> Settlement:
    """The settlement of a call without an answer. Only a refusal's headers speak of the model's limits."""
    hints = failed.hints if failed.outcome is Outcome.RATE_LIMITED else Hints()
    return Settlement(outcome=failed.outcome, status=failed.status, hints=hints, latency_seconds=seconds)


async def to_the_end(work: Awaitable[None]) -> None:
    """Do it whole, even if whoever waits for it is cancelled meanwhile; who is cancelled goes no further."""
    await asyncio.shield(in_the_background(work))


def in_the_background(work: Awaitable[None]) -> "asyncio.Future[None]":
    """Do it although nobody waits for it."""
    doing = asyncio.ensure_future(work)
    _ending.add(doing)
    doing.add_done_callback(_ending.discard)
    return doing
