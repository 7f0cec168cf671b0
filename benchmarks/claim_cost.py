"""Latency of a lease in a short and in a long queue, and after many tasks finished while another session kept an old
snapshot open, each beside that of a second system whose queue stays short; and the speed at which they finished, beside
that of a third without a snapshot. Systems take turns, as the machine's speed changes by the minute."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import asyncpg

from benchmarks import deep_queue, live_workers, sizes
from benchmarks.figures import Figure
from benchmarks.percentiles import percentile
from benchmarks.processes import rss_mb
from benchmarks.progress import say
from benchmarks.sizes import Size
from benchmarks.testbed import Testbed, start_testbed

_STATUS_SAMPLES = 100
# Leases timed in each situation, by four of the workers; all of them finish tasks.
_SAMPLES, _WORKERS = 1_000, 64
# Of these so many at a time, before the second system has its turn.
_SAMPLES_PER_TURN = 100
# After a checkpoint PostgreSQL writes each page whole when it first changes; in a long queue most have yet to.
_WARM_UP = 5000
# Tasks that each situation takes.
LEASED = _WARM_UP + _SAMPLES
# Tasks that one of two systems finishes while the other rests: some seconds.
_TURN = 20_000
# Brokers look through all that became ready in the last 15 s for what nobody announced. So many tasks a second as the
# filling writes come in no other way, and the aim is what a long queue costs, not what it costs to make one.
_SETTLE_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Results in one condition of the queue; latencies in milliseconds, sizes in MiB."""

    name: str
    lease_p50: float
    lease_p99: float
    short_queue_p50: float  # of a lease in the second system, in the same minute
    status_p50: float
    sizes: Sequence[Size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Seconds that the same numbers of tasks took while a snapshot was held, and without, turn by turn.

    After each turn the memory in MiB of API and loops of the system without.
    """

    counts: Sequence[int]
    held_seconds: Sequence[float]
    free_seconds: Sequence[float]
    api_mib: Sequence[float]
    loops_mib: Sequence[float]


async def measure(depths: Sequence[int], finished: int) -> list[Figure]:
    """Figures of queues of these lengths, ascending, and after so many tasks were finished under an old snapshot."""
    async with (
        start_testbed(with_loops=True) as testbed,
        live_workers.start(testbed, _WORKERS) as workers,
        start_testbed(with_loops=True) as short_testbed,
        live_workers.start(short_testbed, live_workers.TIMED) as short_workers,
    ):
        short_queue = _ShortQueue(short_testbed, short_workers, min(depths))
        situations: list[Situation] = []
        for pending in sorted(depths):
            say(f"{pending:,} pending")
            await _fill(testbed, pending)
            situations.append(await _situation(testbed, workers, f"{pending:,} pending", short_queue))
        async with AsyncExitStack() as session:
            async with start_testbed(with_loops=True) as other, live_workers.start(other, _WORKERS) as other_workers:
                say(f"{max(depths):,} pending in a third system")
                await _fill(other, max(depths))
                await other_workers.lease_latencies(LEASED)
                held_since = await session.enter_async_context(_snapshot_held(testbed))
                churn = await _churn(workers, other_workers, finished, other)
            minutes = (time.monotonic() - held_since) / 60
            name = f"{finished:,} finished, snapshot open for {minutes:.1f} min"
            situations.append(await _situation(testbed, workers, name, short_queue))
        return _figures(situations, churn)


async def _fill(testbed: Testbed, pending: int) -> None:
    """Let so many tasks wait, and those that a situation takes."""
    await deep_queue.fill(testbed, pending + LEASED)
    await asyncio.sleep(_SETTLE_SECONDS)


async def _churn(
    held: live_workers.LiveWorkers, free: live_workers.LiveWorkers, finished: int, free_testbed: Testbed
) -> Churn:
    """Finish so many tasks in each of two systems that take turns."""
    assert free_testbed.loops is not None
    counts = [min(_TURN, finished - start) for start in range(0, finished, _TURN)]
    held_seconds: list[float] = []
    free_seconds: list[float] = []
    api_mib: list[float] = []
    loops_mib: list[float] = []
    for turn, count in enumerate(counts):
        last = f" (the last: {count / held_seconds[-1]:,.0f} and {count / free_seconds[-1]:,.0f}/s)" if turn else ""
        say(f"turn {turn + 1} of {len(counts)}: {count:,} while a snapshot is open, and as many without{last}")
        sides = [(held, held_seconds), (free, free_seconds)]
        for workers, seconds in sides if turn % 2 else reversed(sides):
            seconds.append(await workers.finish(count))
        api_mib.append(rss_mb(free_testbed.api))
        loops_mib.append(rss_mb(free_testbed.loops))
    return Churn(
        counts=counts,
        held_seconds=held_seconds,
        free_seconds=free_seconds,
        api_mib=api_mib,
        loops_mib=loops_mib,
    )


@dataclass(frozen=True, slots=True)
class _ShortQueue:
    """The second system: a few workers, and never more tasks than the shortest queue has."""

    testbed: Testbed
    workers: live_workers.LiveWorkers
    pending: int

    async def prepare(self) -> None:
        """Fill it up to its length, and warm it up."""
        await _fill(self.testbed, self.pending)
        await self.workers.lease_latencies(_WARM_UP)


async def _situation(
    testbed: Testbed, workers: live_workers.LiveWorkers, name: str, short_queue: _ShortQueue
) -> Situation:
    say(f"measuring: {name}")
    await short_queue.prepare()
    await workers.lease_latencies(_WARM_UP)
    leases: list[float] = []
    short_queue_leases: list[float] = []
    for _ in range(_SAMPLES // _SAMPLES_PER_TURN):
        leases += await workers.lease_latencies(_SAMPLES_PER_TURN)
        short_queue_leases += await short_queue.workers.lease_latencies(_SAMPLES_PER_TURN)
    status = await workers.status_latencies(_STATUS_SAMPLES)
    return Situation(
        name=name,
        lease_p50=percentile(leases, 0.5) * 1000,
        lease_p99=percentile(leases, 0.99) * 1000,
        short_queue_p50=percentile(short_queue_leases, 0.5) * 1000,
        status_p50=percentile(status, 0.5) * 1000,
        sizes=await sizes.measure(testbed),
    )


@asynccontextmanager
async def _snapshot_held(testbed: Testbed) -> AsyncIterator[float]:
    """Hold a snapshot in another session, as a forgotten report would, so that no deleted row can be vacuumed."""
    connection = await asyncpg.connect(testbed.database_url)
    try:
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetchval("SELECT count(*) FROM workers")
            yield time.monotonic()
    finally:
        await connection.close()


def _figures(situations: Sequence[Situation], churn: Churn) -> list[Figure]:
    figures = []
    for s in situations:
        figures += [
            Figure(name=f"{s.name}: lease, p50", value=s.lease_p50, unit="ms"),
            Figure(name=f"{s.name}: lease, p99", value=s.lease_p99, unit="ms"),
            Figure(name=f"{s.name}: lease in a short queue in turns with it, p50", value=s.short_queue_p50, unit="ms"),
            Figure(name=f"{s.name}: GET /queues, p50", value=s.status_p50, unit="ms"),
            *(
                Figure(name=f"{s.name}: {size.name} with indexes", value=size.table_mib + size.index_mib, unit="MiB")
                for size in s.sizes
            ),
        ]
    costs = [s.lease_p50 / s.short_queue_p50 for s in situations]
    return [
        *figures,
        Figure(
            name="largest median of a lease / smallest, each by that of a short queue",
            value=max(costs) / min(costs),
            target=1.5,
            more_is_better=False,
        ),
        Figure.of(f"cycles by {_WORKERS} workers without a snapshot", _rates(churn, churn.free_seconds), "cycles/s"),
        Figure.of("cycles while it is held", _rates(churn, churn.held_seconds), "cycles/s"),
        Figure(name="held / without", value=_ratio(churn), target=0.9),
        Figure(name="held / without, last quarter", value=_ratio(churn, max(1, len(churn.counts) // 4))),
        *_memory("API", churn.counts, churn.api_mib),
        *_memory("loops", churn.counts, churn.loops_mib),
    ]


def _memory(process: str, counts: Sequence[int], memory: Sequence[float]) -> list[Figure]:
    """Memory without a snapshot after the first tenth of the tasks, and after all."""
    first = len(memory) // 10
    done = [sum(counts[: first + 1]), sum(counts)]
    return [
        Figure(name=f"memory of the {process}, {count:,} finished", value=value, unit="MiB")
        for count, value in zip(done, (memory[first], memory[-1]), strict=True)
    ]


def _rates(churn: Churn, seconds: Sequence[float]) -> list[float]:
    return [count / took for count, took in zip(churn.counts, seconds, strict=True)]


def _ratio(churn: Churn, turns: int = 0) -> float:
    """Speed with a snapshot by that without, of the last turns; 0 means all."""
    return sum(churn.free_seconds[-turns:]) / sum(churn.held_seconds[-turns:])
