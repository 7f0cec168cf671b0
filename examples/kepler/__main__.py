"""Run the supervisor in plain text: python -m examples.kepler --seed ..."""

import argparse
import sys
from collections.abc import Sequence

from app.terminal.connection import Access
from examples.kepler.limits import Limits
from examples.kepler.progress import Progress
from examples.kepler.report import text
from examples.kepler.supervisor import DEFAULT_SEED, run
from examples.supervising.command import supervise


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the law was found, 1 when it was not, 2 when the service could not be used."""
    options = _options(arguments)

    def pursue(access: Access) -> int:
        report = run(
            base_url=access.url,
            key=access.key,
            goal_id=options.goal or f"kepler-{options.seed}",
            seed=options.seed,
            limits=Limits(max_iterations=options.rounds, time_limit_seconds=options.time_limit),
            observer=_show,
        )
        print(text(report))
        print(report.summary)
        return 0 if report.law_found else 1

    return supervise(pursue, options.url)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    limits = Limits()
    parser = argparse.ArgumentParser(prog="python -m examples.kepler", description="Rediscover Kepler's third law.")
    parser.add_argument("--url", help="where Convener listens (default: that of `convener up`)")
    parser.add_argument("--goal", help="the goal's id; the same one again resumes (default: kepler-SEED)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--rounds", type=int, default=limits.max_iterations, help="at most this many")
    parser.add_argument("--time-limit", type=float, default=limits.time_limit_seconds, help="seconds")
    return parser.parse_args(arguments)


def _show(progress: Progress) -> None:
    if progress.news:
        elo = f"{progress.best_elo:.0f}" if progress.best_elo else "-"
        print(f"[{sum(progress.done.values()):4d} tasks, Elo {elo}] {progress.news}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
