"""Latency of a lease in a short and in a long queue, and after many tasks finished while another session kept an old
snapshot open; and the speed at which they finished, beside that without it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from benchmarks import deep_queue, live_workers, sizes
from benchmarks.figures import Figure
from benchmarks.percentiles import percentile
from benchmarks.progress import say
from benchmarks.sizes import Size
from benchmarks.testbed import Testbed, start_testbed

_STATUS_SAMPLES = 100
# Leases timed in each situation, by four of the workers; all of them finish tasks.
_SAMPLES, _WORKERS = 1_000, 64
# After a checkpoint PostgreSQL writes each page whole when it first changes; in a long queue most have yet to.
_WARM_UP = 5000
# Brokers look through all that became ready in the last 15 s for what nobody announced. So many tasks a second as the
# filling writes come in no other way, and the aim is what a long queue costs, not what it costs to make one.
_SETTLE_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Results in one condition of the queue; latencies in milliseconds, sizes in MiB."""

    name: str
    lease_p50: float
    lease_p99: float
    status_p50: float
    sizes: Sequence[Size]


async def measure(depths: Sequence[int], finished: int) -> list[Figure]:
    """Figures of queues of these lengths, ascending, and after so many tasks were finished under an old snapshot."""
    async with start_testbed(with_loops=True) as testbed, live_workers.start(testbed, _WORKERS) as workers:
        situations: list[Situation] = []
        for pending in sorted(depths):
            say(f"{pending:,} pending")
            # Besides what the situations take, a quarter of the churn is done first without the snapshot.
            spare = finished // 4 if pending == max(depths) else 0
            await deep_queue.fill(testbed, pending + spare + _SAMPLES + _WARM_UP)
            await asyncio.sleep(_SETTLE_SECONDS)
            situations.append(await _situation(testbed, workers, f"{pending:,} pending"))
        say(f"finishing {finished // 4:,} without a snapshot")
        free_rate = await workers.finish(finished // 4, say)
        async with _snapshot_held(testbed) as held_since:
            say(f"finishing {finished:,} while a snapshot is open")
            held_rate = await workers.finish(finished, say)
            minutes = (time.monotonic() - held_since) / 60
            name = f"{finished:,} finished, snapshot open for {minutes:.1f} min"
            situations.append(await _situation(testbed, workers, name))
        return _figures(situations, free_rate, held_rate)


async def _situation(
    testbed: Testbed,
    workers: live_workers.LiveWorkers,
    name: str,
) -> Situation:
    say(f"measuring: {name}")
    await workers.lease_latencies(_WARM_UP)
    leases = await workers.lease_latencies(_SAMPLES)
    status = await workers.status_latencies(_STATUS_SAMPLES)
    return Situation(
        name=name,
        lease_p50=percentile(leases, 0.5) * 1000,
        lease_p99=percentile(leases, 0.99) * 1000,
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


def _figures(situations: Sequence[Situation], free_rate: float, held_rate: float) -> list[Figure]:
    figures = []
    for s in situations:
        figures += [
            Figure(name=f"{s.name}: lease, p50", value=s.lease_p50, unit="ms"),
            Figure(name=f"{s.name}: lease, p99", value=s.lease_p99, unit="ms"),
            Figure(name=f"{s.name}: GET /queues, p50", value=s.status_p50, unit="ms"),
            *(
                Figure(name=f"{s.name}: {size.name} with indexes", value=size.table_mib + size.index_mib, unit="MiB")
                for size in s.sizes
            ),
        ]
    worst = max(s.lease_p50 for s in situations) / min(s.lease_p50 for s in situations)
    return [
        *figures,
        Figure(name="largest median of a lease / smallest", value=worst, target=1.5, more_is_better=False),
        Figure(name=f"cycles by {_WORKERS} workers without a snapshot", value=free_rate, unit="cycles/s"),
        Figure(name="cycles while it is held", value=held_rate, unit="cycles/s"),
        Figure(name="held / without", value=held_rate / free_rate, target=0.9),
    ]
