"""`python -m benchmarks`: measures in one run, prints one table, and draws one chart."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks import chart, claim_cost, report, sections
from benchmarks.machine import Machine
from benchmarks.peer_runs import PEERS
from benchmarks.progress import say

_DRAWING = ".bench/chart.svg"


def main() -> None:
    """Read the options, measure, print; each section appears on stderr as soon as it is there."""
    options = _options()
    machine = Machine.now()
    results, drawing = uvloop.run(sections.measure(options, machine))
    if any(isinstance(item, chart.Curve) for item in drawing):
        _draw(options.chart, drawing)
    print((report.as_json if options.output == "json" else report.table)(machine, results))


def _draw(path: Path, drawing: Sequence[chart.Curve | chart.Level]) -> None:
    unit = next((item.value for item in drawing if isinstance(item, chart.Level) and item.name == "pgbench"), 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart.draw(drawing, unit=unit, unit_name="pgbench"), encoding="utf-8")
    say(f"the chart is in {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of little: does it run, and roughly how")
    parser.add_argument("--only", nargs="+", choices=sections.NAMES, help="measure these and nothing else")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help=f"other queues as well: all, or some of {', '.join(PEERS)}"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256, 512, 1000])
    parser.add_argument("--rounds", type=int, default=3, help="how often cycles are measured, in turns with all else")
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement of cycles")
    parser.add_argument("--tasks", type=int, default=150_000, help="pending tasks before each of them")
    parser.add_argument("--depths", type=int, nargs="+", default=[1_000, 1_000_000], help="lengths of the queue")
    parser.add_argument("--finished", type=int, default=200_000, help="tasks to finish while a snapshot is held")
    parser.add_argument("--chart", type=Path, default=Path(_DRAWING), help="where to draw it")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.rounds, options.seconds, options.tasks = [1, 32, 128, 1000], 1, 2, 60_000
        options.depths, options.finished = [1_000, 100_000], 20_000
    if unknown := set(options.peers or ()) - PEERS.keys():
        parser.error(f"there is no peer {min(unknown)!r}; there are: {', '.join(PEERS)}")
    if options.finished + claim_cost.LEASED > max(options.depths):
        parser.error(f"the longest of --depths must be longer than --finished by {claim_cost.LEASED:,} at least")
    return options


if __name__ == "__main__":
    main()
