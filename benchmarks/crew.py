"""Workers that live as long as the measurement: they send heartbeats, so that the loops may run beside them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.http_client import connect
from benchmarks.surroundings import Surroundings
from benchmarks.workers import Lease, Worker, hire, let_go

_BEAT_SECONDS = 5.0
_TIMED = 4
_PAUSE_SECONDS = 0.01
STATUS = "/queues"


@dataclass(slots=True)
class _Member:
    """A worker, and what it holds: one call at a time goes over its connection."""

    worker: Worker
    lease: Lease | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def beat(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            async with self.turn:
                await self.worker.beat(self.lease)

    async def timed_lease(self) -> float:
        """Seconds of one call for a lease; the task is completed afterwards."""
        async with self.turn:
            started = time.perf_counter()
            self.lease = await self.worker.lease()
            taken = time.perf_counter() - started
            if self.lease is None:
                raise RuntimeError("the queue is empty: give more --pending")
            await self.worker.complete(self.lease, and_next=False)
            self.lease = None
        return taken


@dataclass(slots=True)
class Crew:
    """All workers, and somebody who reads the status."""

    where: Surroundings
    members: list[_Member]

    async def lease_latencies(self, samples: int) -> list[float]:
        """Seconds of calls to `POST /lease`, by a few workers that are in no hurry: the cost, not the queueing."""

        async def timed(member: _Member) -> list[float]:
            measured = []
            for _ in range(samples // _TIMED):
                measured.append(await member.timed_lease())
                await asyncio.sleep(_PAUSE_SECONDS)
            return measured

        lists = await asyncio.gather(*(timed(member) for member in self.members[:_TIMED]))
        return [seconds for measured in lists for seconds in measured]

    async def status_latencies(self, samples: int) -> list[float]:
        """Seconds of calls to `GET /queues`, one after the other."""
        reader, measured = await connect(self.where.port, self.where.key), []
        for _ in range(samples):
            started = time.perf_counter()
            (await reader.get(STATUS)).json()
            measured.append(time.perf_counter() - started)
        reader.close()
        return measured

    async def finish(self, count: int, say: Callable[[str], None]) -> None:
        """Lease and complete so many tasks, all workers together, each leasing with the completion before."""
        left = count

        async def work(member: _Member) -> None:
            nonlocal left
            async with member.turn:
                member.lease = await member.worker.lease()
            while member.lease is not None:
                left -= 1
                if left % 100_000 == 0:
                    say(f"{left:,} to go")
                async with member.turn:
                    member.lease = await member.worker.complete(member.lease, and_next=left > len(self.members))

        await asyncio.gather(*(work(member) for member in self.members))


@asynccontextmanager
async def at_work(where: Surroundings, count: int) -> AsyncIterator[Crew]:
    """A crew that keeps sending heartbeats until the end."""
    workers = await hire(where, count)
    crew = Crew(where, [_Member(worker) for worker in workers])
    beats = [asyncio.create_task(member.beat()) for member in crew.members]
    try:
        yield crew
    finally:
        for beat in beats:
            beat.cancel()
        let_go(workers)
