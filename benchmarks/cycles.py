"""Throughput of workers that complete tasks over HTTP, each leasing the next in the same request."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.processes import CpuSeconds
from benchmarks.raw_client import Cycle, ExchangeCycle, Loop, Ping, Window
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker

_WARM_UP_SECONDS = 1.0
_CONNECTING = 64
_SPEAKERS, _MAX_ITEMS = 2, 512


@dataclass(slots=True)
class Ledger:
    """The tasks of all measurements as the workers know them: what they were given, and how many they completed."""

    leased_tasks: list[bytes] = field(default_factory=list)
    completed_count: int = 0

    def add(self, leased_tasks: Sequence[bytes], completed_count: int) -> None:
        """Add those of one measurement."""
        self.leased_tasks += leased_tasks
        self.completed_count += completed_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """A cycle is one task completed and the next leased; `latencies` are seconds of single cycles.

    Processor time is in milliseconds a cycle, `between_cpu_ms` that of what stands between workers and API.
    """

    per_second: float
    latencies: list[float]
    api_cpu_ms: float
    postgres_cpu_ms: float
    generator_cpu_ms: float
    between_cpu_ms: float = 0.0


async def measure(
    testbed: Testbed, workers: Sequence[Worker], seconds: float, ledger: Ledger, port: int | None = None
) -> Cycles:
    """Measure cycles for so many seconds, at another port than the API's if one is given.

    Needs a backlog that lasts; no lease is held before or after.
    """
    window = Window()
    loops = [Cycle(worker.key, window) for worker in workers]
    cycles = await _run(testbed, loops, window, port or testbed.port, seconds)
    ledger.add(window.leased_tasks, window.completed_count)
    return cycles


async def measure_exchange(testbed: Testbed, workers: Sequence[Worker], seconds: float, ledger: Ledger) -> Cycles:
    """The same where two connections or more speak for the workers, who get their answers together."""
    window, count = Window(), max(_SPEAKERS, -(-len(workers) // _MAX_ITEMS))
    groups = [keys for first in range(count) if (keys := [worker.key for worker in workers[first::count]])]
    cycles = await _run(testbed, [ExchangeCycle(keys, window) for keys in groups], window, testbed.port, seconds)
    ledger.add(window.leased_tasks, window.completed_count)
    return cycles


async def pings_per_second(testbed: Testbed, port: int, connections: int, seconds: float) -> float:
    """Requests a second that another server on this machine answers to so many clients."""
    window = Window()
    loops = [Ping("none", window) for _ in range(connections)]
    return (await _run(testbed, loops, window, port, seconds)).per_second


async def _run(testbed: Testbed, loops: Sequence[Loop], window: Window, port: int, seconds: float) -> Cycles:
    for first in range(0, len(loops), _CONNECTING):
        await asyncio.gather(*(_connect(loop, port) for loop in loops[first : first + _CONNECTING]))
    for loop in loops:
        loop.begin()
    ends = asyncio.gather(*(loop.end for loop in loops))
    await _pause(ends, _WARM_UP_SECONDS)
    before, own_before, start_time = CpuSeconds.read(testbed), time.process_time(), time.perf_counter()
    window.is_open = True
    await _pause(ends, seconds)
    window.is_open, duration = False, time.perf_counter() - start_time
    own, cpu = time.process_time() - own_before, CpuSeconds.read(testbed).since(before)
    window.is_over = True
    await ends
    count = max(1, len(window.latencies))
    return Cycles(
        per_second=len(window.latencies) / duration,
        latencies=window.latencies,
        api_cpu_ms=cpu.api / count * 1000,
        postgres_cpu_ms=cpu.postgres / count * 1000,
        generator_cpu_ms=own / count * 1000,
        between_cpu_ms=cpu.between / count * 1000,
    )


async def _connect(loop: Loop, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: loop, "127.0.0.1", port)


async def _pause(ends: "asyncio.Future[list[None]]", seconds: float) -> None:
    """Sleep; a loop that has failed meanwhile ends the measurement with its error."""
    await asyncio.wait({ends}, timeout=seconds)
    if ends.done():
        ends.result()
