"""Processor time that a thousand idle workers cost, as shares of a core.

They register and send heartbeats as real ones do, over connections that they keep, to the API as it runs in
production, with the loops and a PostgreSQL of its own beside it; the load generator is not counted.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.figures import Figure
from benchmarks.http_client import connect
from benchmarks.percentiles import percentile
from benchmarks.processes import CpuSeconds
from benchmarks.progress import say
from benchmarks.testbed import Testbed, start_testbed
from benchmarks.workers import Worker, close_workers, register_workers

_BEAT_SECONDS = 5.0
_REGISTERED_AT_ONCE = 20
# Half a core in all for 1,000 workers.
_AIM_PER_WORKER = 0.5 / 1000


@dataclass(slots=True)
class _Member:
    """A worker that sends heartbeats at its own moments, and reports the version of its last assignment."""

    worker: Worker
    version: str | None = None
    latencies: list[float] = field(default_factory=list)

    async def keep_beating(self, delay: float) -> None:
        following = time.perf_counter() + delay
        while True:
            await asyncio.sleep(max(0.0, following - time.perf_counter()))
            following += _BEAT_SECONDS
            await self._beat()

    async def _beat(self) -> None:
        body: dict[str, object] = {"state": "ready", "lease": None, "cpu_percent": 3.5, "memory_mb": 42.5, "errors": []}
        start_time = time.perf_counter()
        answer = await self.worker.connection.post(
            f"/workers/{self.worker.worker_id}/heartbeat", body | ({"assignment": self.version} if self.version else {})
        )
        self.latencies.append(time.perf_counter() - start_time)
        assignment = answer.json()["assignment"]
        self.version = assignment["version"] if assignment else self.version


async def measure(count: int, seconds: float) -> list[Figure]:
    """Figures of so many workers that send a heartbeat every 5 s."""
    async with start_testbed(with_loops=True) as testbed:
        say(f"registering {count:,} workers")
        async with _beating(testbed, count) as members:
            # By then every worker has sent two heartbeats, and has received its assignment.
            await asyncio.sleep(2 * _BEAT_SECONDS)
            say(f"measuring for {seconds:g} s")
            for member in members:
                member.latencies.clear()
            cpu_before, start_time = CpuSeconds.read(testbed), time.perf_counter()
            await asyncio.sleep(seconds)
            cpu, duration = CpuSeconds.read(testbed).since(cpu_before), time.perf_counter() - start_time
            alive_count = await _count_alive(testbed)
        close_workers([member.worker for member in members])
    latencies = [latency for member in members for latency in member.latencies]
    return _figures(cpu, duration, latencies, workers=len(members), alive_count=alive_count)


@asynccontextmanager
async def _beating(testbed: Testbed, count: int) -> AsyncIterator[list[_Member]]:
    members: list[_Member] = []
    beats: list[asyncio.Task[None]] = []
    try:
        # Those that are registered beat while the others follow, or they would be taken for lost.
        while len(members) < count:
            for worker in await register_workers(testbed, min(_REGISTERED_AT_ONCE, count - len(members))):
                members.append(_Member(worker))
                delay = _BEAT_SECONDS * len(members) / count
                beats.append(asyncio.create_task(members[-1].keep_beating(delay)))
        yield members
        for beat in beats:
            # A beat that was refused or lost ends its task, and the measurement.
            if beat.done():
                beat.result()
    finally:
        for beat in beats:
            beat.cancel()
        await asyncio.gather(*beats, return_exceptions=True)


async def _count_alive(testbed: Testbed) -> int:
    """Number of workers that the service takes to be alive."""
    reader = await connect(testbed.port, testbed.key)
    alive_count: int = (await reader.get("/fleet")).json()["total"]
    reader.close()
    return alive_count


def _figures(
    cpu: CpuSeconds, seconds: float, latencies: Sequence[float], *, workers: int, alive_count: int
) -> list[Figure]:
    parts = {"API": cpu.api, "loops": cpu.loops, "PostgreSQL": cpu.postgres}
    milliseconds = [latency * 1000 for latency in latencies]
    return [
        Figure(name="workers", value=workers),
        Figure(name="of them alive at the end", value=alive_count, target=workers),
        Figure(name="heartbeats", value=len(latencies) / seconds, unit="/s"),
        *(
            Figure(name=f"answered, p{share}", value=percentile(milliseconds, share / 100), unit="ms")
            for share in (50, 95, 99)
        ),
        *(Figure(name=f"CPU of {name}", value=cpu / seconds, unit="cores") for name, cpu in parts.items()),
        Figure(
            name="CPU in all",
            value=sum(parts.values()) / seconds,
            unit="cores",
            target=workers * _AIM_PER_WORKER,
            more_is_better=False,
        ),
        Figure(name="CPU of a heartbeat", value=1000 * sum(parts.values()) / max(1, len(latencies)), unit="ms"),
    ]
