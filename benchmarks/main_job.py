"""`python -m benchmarks.main_job`: measures everything in one run and prints a table."""

import argparse
import sys

import uvloop

from benchmarks import baseline, cycles, figures, idle_latency, report, waiting_memory
from benchmarks.backlog import Backlog
from benchmarks.figures import Figure, Round
from benchmarks.machine import Machine
from benchmarks.processes import rss_mb
from benchmarks.testbed import Testbed, start_testbed
from benchmarks.workers import Worker, close_workers, register_workers


def main() -> None:
    """Read the options, measure, print."""
    options = _options()
    machine = Machine.now()
    results = uvloop.run(_measure(options))
    print((report.as_json if options.output == "json" else report.table)(machine, results))


async def _measure(options: argparse.Namespace) -> list[Figure]:
    """Measure everything, first what needs an empty queue; progress goes to stderr."""
    async with start_testbed() as testbed:
        _say("idle latency")
        idle = await idle_latency.seconds_to_lease(testbed)
        _say("memory with waiting workers")
        waiting = await waiting_memory.api_rss_mb(testbed)
        backlog = Backlog(testbed=testbed, tasks=options.tasks)
        rounds = await _rounds(testbed, backlog, options)
        return [
            *figures.of_submit(backlog.rates),
            *figures.of_idle(idle),
            *figures.of_rounds(rounds),
            *figures.of_memory(waiting=waiting, at_end=rss_mb(testbed.api)),
        ]


async def _rounds(testbed: Testbed, backlog: Backlog, options: argparse.Namespace) -> list[Round]:
    workers = await register_workers(testbed, cycles.WORKERS)
    rounds = [await _round(testbed, backlog, workers, options.seconds) for _ in range(options.rounds)]
    close_workers(workers)
    return rounds


async def _round(testbed: Testbed, backlog: Backlog, workers: list[Worker], seconds: float) -> Round:
    _say(f"backlog of {backlog.tasks:,} tasks")
    await backlog.fill()
    _say("cycles over HTTP")
    http = await cycles.measure(testbed, workers, seconds)
    await backlog.fill()
    _say("cycles by pgbench")
    plain = await baseline.measure(testbed, baseline.PLAIN, seconds)
    await backlog.fill()
    _say("cycles by pgbench, with events")
    return Round(http=http, plain=plain, with_events=await baseline.measure(testbed, baseline.WITH_EVENTS, seconds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, help="pending tasks while cycles are measured")
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement of cycles")
    parser.add_argument("--rounds", type=int, default=2, help="how often cycles are measured, in turns with pgbench")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def _say(message: str) -> None:
    print(f"{message} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
