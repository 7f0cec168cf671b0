"""Throughput of workers that complete tasks over HTTP, each leasing the next in the same request."""

import asyncio
import time
from dataclasses import dataclass, field

from benchmarks.processes import CpuSeconds
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker

WORKERS = 32
_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """A cycle is one task completed and the next leased; `latencies` are seconds of single cycles."""

    per_second: float
    latencies: list[float]
    api_cpu_ms: float
    postgres_cpu_ms: float


@dataclass(slots=True)
class _Window:
    """Only cycles that end while it is open are counted."""

    is_open: bool = False
    is_over: bool = False
    latencies: list[float] = field(default_factory=list)


async def measure(testbed: Testbed, workers: list[Worker], seconds: float) -> Cycles:
    """Measure cycles for so many seconds. Needs a backlog that lasts; no lease is held before or after."""
    window = _Window()
    work = [asyncio.create_task(_work(worker, window)) for worker in workers]
    await asyncio.sleep(_WARM_UP_SECONDS)
    cpu_before, start_time, window.is_open = CpuSeconds.read(testbed), time.perf_counter(), True
    await asyncio.sleep(seconds)
    window.is_open, duration = False, time.perf_counter() - start_time
    cpu = CpuSeconds.read(testbed).since(cpu_before)
    window.is_over = True
    await asyncio.gather(*work)
    count = max(1, len(window.latencies))
    return Cycles(
        per_second=len(window.latencies) / duration,
        latencies=window.latencies,
        api_cpu_ms=cpu.api / count * 1000,
        postgres_cpu_ms=cpu.postgres / count * 1000,
    )


async def _work(worker: Worker, window: _Window) -> None:
    lease = await worker.lease()
    while not window.is_over:
        if lease is None:
            raise RuntimeError("the backlog is used up: give more --tasks or fewer --seconds")
        start_time = time.perf_counter()
        lease = await worker.complete(lease, and_next=True)
        if window.is_open:
            window.latencies.append(time.perf_counter() - start_time)
    if lease is not None:
        await worker.complete(lease, and_next=False)
