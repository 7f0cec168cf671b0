"""Workers that send heartbeats during a whole measurement, so that the loops may run beside them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.http_client import connect
from benchmarks.testbed import Testbed
from benchmarks.workers import Lease, Worker, close_workers, register_workers

_BEAT_SECONDS = 5.0
TIMED = 4
_PAUSE_SECONDS = 0.01
STATUS = "/queues"


@dataclass(slots=True)
class _Member:
    """A worker and its lease; `turn` lets one call at a time go over its connection."""

    worker: Worker
    lease: Lease | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def beat(self) -> None:
        """Send heartbeats for ever."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            async with self.turn:
                await self.worker.beat(self.lease)

    async def lease_latency(self) -> float:
        """Seconds of one call for a lease; the task is completed afterwards."""
        async with self.turn:
            start_time = time.perf_counter()
            self.lease = await self.worker.lease()
            seconds = time.perf_counter() - start_time
            if self.lease is None:
                raise RuntimeError("the queue is empty: give more --pending")
            await self.worker.complete(self.lease, and_next=False)
            self.lease = None
        return seconds


@dataclass(slots=True)
class LiveWorkers:
    """All workers of a measurement, and the latencies that they observe."""

    testbed: Testbed
    members: list[_Member]

    async def lease_latencies(self, samples: int) -> list[float]:
        """Seconds of calls to `POST /lease`, by a few workers that pause in between: the cost without queueing."""

        async def sample(member: _Member) -> list[float]:
            latencies = []
            for _ in range(samples // TIMED):
                latencies.append(await member.lease_latency())
                await asyncio.sleep(_PAUSE_SECONDS)
            return latencies

        lists = await asyncio.gather(*(sample(member) for member in self.members[:TIMED]))
        return [seconds for latencies in lists for seconds in latencies]

    async def status_latencies(self, samples: int) -> list[float]:
        """Seconds of calls to `GET /queues`, one after the other."""
        reader, latencies = await connect(self.testbed.port, self.testbed.key), []
        for _ in range(samples):
            start_time = time.perf_counter()
            (await reader.get(STATUS)).json()
            latencies.append(time.perf_counter() - start_time)
        reader.close()
        return latencies

    async def finish(self, count: int) -> float:
        """Lease and complete `count` tasks by all workers, each leasing the next with the completion before.

        Returns the seconds that it took.
        """
        remaining, start_time = count, time.perf_counter()

        async def work(member: _Member) -> None:
            nonlocal remaining
            async with member.turn:
                member.lease = await member.worker.lease()
            while member.lease is not None:
                remaining -= 1
                async with member.turn:
                    member.lease = await member.worker.complete(member.lease, and_next=remaining > len(self.members))

        await asyncio.gather(*(work(member) for member in self.members))
        return time.perf_counter() - start_time


@asynccontextmanager
async def start(testbed: Testbed, count: int) -> AsyncIterator[LiveWorkers]:
    """Register `count` workers that send heartbeats until the end; a heartbeat that fails ends the measurement."""
    workers = await register_workers(testbed, count)
    live_workers = LiveWorkers(testbed, [_Member(worker) for worker in workers])
    try:
        async with asyncio.TaskGroup() as group:
            beats = [group.create_task(member.beat()) for member in live_workers.members]
            yield live_workers
            for beat in beats:
                beat.cancel()
    finally:
        close_workers(workers)
