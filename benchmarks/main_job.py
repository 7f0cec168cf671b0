"""`python -m benchmarks.main_job`: measures everything in one run and prints a table."""

import argparse
import sys

import uvloop

from benchmarks import cycles, figures, idle_latency, pgbench, report, waiting_memory
from benchmarks.backlog import Backlog
from benchmarks.figures import Figure, Round
from benchmarks.machine import Machine
from benchmarks.processes import rss_mb
from benchmarks.surroundings import Surroundings, surroundings
from benchmarks.workers import Worker, hire, let_go


def main() -> None:
    """Read the options, measure, print."""
    options = _options()
    machine = Machine.now()
    measured = uvloop.run(_measure(options))
    print((report.as_json if options.output == "json" else report.table)(machine, measured))


async def _measure(options: argparse.Namespace) -> list[Figure]:
    """What needs an empty queue comes first; progress goes to stderr."""
    async with surroundings() as where:
        _say("idle latency")
        idle = await idle_latency.seconds_to_lease(where)
        _say("memory with waiting workers")
        waiting = await waiting_memory.api_rss_mb(where)
        backlog = Backlog(where=where, tasks=options.tasks)
        rounds = await _rounds(where, backlog, options)
        return [
            *figures.of_submit(backlog.rates),
            *figures.of_idle(idle),
            *figures.of_rounds(rounds),
            *figures.of_memory(waiting=waiting, after=rss_mb(where.api)),
        ]


async def _rounds(where: Surroundings, backlog: Backlog, options: argparse.Namespace) -> list[Round]:
    workers = await hire(where, cycles.WORKERS)
    rounds = [await _round(where, backlog, workers, options.seconds) for _ in range(options.rounds)]
    let_go(workers)
    return rounds


async def _round(where: Surroundings, backlog: Backlog, workers: list[Worker], seconds: float) -> Round:
    _say(f"backlog of {backlog.tasks:,} tasks")
    await backlog.fill()
    _say("cycles over HTTP")
    http = await cycles.measure(where, workers, seconds)
    await backlog.fill()
    _say("cycles by pgbench")
    plain = await pgbench.measure(where, pgbench.PLAIN, seconds)
    await backlog.fill()
    _say("cycles by pgbench, with events")
    return Round(http=http, plain=plain, with_events=await pgbench.measure(where, pgbench.WITH_EVENTS, seconds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, help="pending tasks while cycles are measured")
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement of cycles")
    parser.add_argument("--rounds", type=int, default=2, help="how often cycles are measured, in turns with pgbench")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
