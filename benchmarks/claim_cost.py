"""`python -m benchmarks.claim_cost`: latency of a lease in a short and in a long queue, and after many tasks finished
while another session kept an old snapshot open."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

import asyncpg
import uvloop

from benchmarks import deep_queue, live_workers, sizes
from benchmarks.deep_queue import TASKS_PER_GOAL
from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.sizes import Size
from benchmarks.testbed import Testbed, start_testbed

_STATUS_SAMPLES = 100
# After a checkpoint PostgreSQL writes each page whole when it first changes; in a long queue most have yet to.
_WARM_UP = 5000
# Brokers look through all that became ready in the last 15 s for what nobody announced. So many tasks a second as the
# filling writes come in no other way, and the aim is what a long queue costs, not what it costs to make one.
_SETTLE_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Results in one condition of the queue; latencies in milliseconds, sizes in MiB."""

    name: str
    pending: int
    finished: int
    lease_p50: float
    lease_p99: float
    status_p50: float
    status_p99: float
    ratio: float
    sizes: Sequence[Size]


def main() -> None:
    """Read the options, measure, print."""
    options = _options()
    machine = Machine.now()
    situations = uvloop.run(_measure(options))
    if options.output == "json":
        sys.stdout.write(_as_json(machine, situations))
    else:
        sys.stdout.write(_as_table(machine, situations))


async def _measure(options: argparse.Namespace) -> list[Situation]:
    async with start_testbed(with_loops=True) as testbed, live_workers.start(testbed, options.workers) as workers:
        situations: list[Situation] = []
        for pending in options.pending:
            _say(f"{pending:,} pending")
            await deep_queue.fill(testbed, pending + options.samples + _WARM_UP)
            await asyncio.sleep(_SETTLE_SECONDS)
            situations.append(await _situation(testbed, workers, f"{pending:,} pending", situations, options))
        async with _snapshot_held(testbed) as held_since:
            _say(f"finishing {options.finished:,} while a snapshot is open")
            await workers.finish(options.finished, _say)
            minutes = (time.monotonic() - held_since) / 60
            name = f"{options.finished:,} finished under a snapshot open for {minutes:.1f} min"
            situations.append(await _situation(testbed, workers, name, situations, options))
        return situations


async def _situation(
    testbed: Testbed,
    workers: live_workers.LiveWorkers,
    name: str,
    previous: Sequence[Situation],
    options: argparse.Namespace,
) -> Situation:
    _say(f"measuring: {name}")
    await workers.lease_latencies(_WARM_UP)
    leases = await workers.lease_latencies(options.samples)
    status = await workers.status_latencies(_STATUS_SAMPLES)
    median = percentile(leases, 0.5) * 1000
    return Situation(
        name=name,
        pending=await deep_queue.count_pending(testbed),
        finished=await deep_queue.count_finished(testbed),
        lease_p50=median,
        lease_p99=percentile(leases, 0.99) * 1000,
        status_p50=percentile(status, 0.5) * 1000,
        status_p99=percentile(status, 0.99) * 1000,
        ratio=median / previous[0].lease_p50 if previous else 1.0,
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


def _as_table(machine: Machine, situations: Sequence[Situation]) -> str:
    lines = [str(machine), ""]
    for s in situations:
        lines.append(s.name)
        lines.append(
            f"  lease    p50 {s.lease_p50:6.2f} ms   p99 {s.lease_p99:6.2f} ms   {s.ratio:.2f} x the first p50"
        )
        lines.append(f"  status   p50 {s.status_p50:6.2f} ms   p99 {s.status_p99:6.2f} ms")
        lines.append(f"  {s.pending:,} pending, {s.finished:,} finished")
        lines += [f"  {size.name:<28} {size.table_mib:8.1f} MiB, indexes {size.index_mib:8.1f} MiB" for size in s.sizes]
        lines.append("")
    worst = max(s.lease_p50 for s in situations) / min(s.lease_p50 for s in situations)
    return "\n".join([*lines, f"largest median of a lease / smallest: {worst:.2f} (aim: below 1.5)", ""])


def _as_json(machine: Machine, situations: Sequence[Situation]) -> str:
    return json.dumps({"machine": asdict(machine), "situations": [asdict(s) for s in situations]}, indent=2) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--pending", type=int, nargs="+", default=[1_000, 100_000, 3_000_000], help="lengths of the queue, ascending"
    )
    parser.add_argument("--finished", type=int, default=1_000_000, help="tasks to finish under the open snapshot")
    parser.add_argument("--samples", type=int, default=1_000, help="leases to time in each situation")
    parser.add_argument("--workers", type=int, default=64, help="workers that finish tasks; four of them are timed")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if max(options.pending) - options.finished < TASKS_PER_GOAL:
        parser.error("there must be more tasks pending than are to be finished")
    return options


def _say(message: str) -> None:
    print(f"{message} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
