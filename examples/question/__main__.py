"""Pursue a question: python -m examples.question 'Why do planets keep to their orbits?'"""

import argparse
import hashlib
import sys
import textwrap
from collections.abc import Sequence

from app.terminal.connection import Access
from examples.question.study import Findings, Study
from examples.supervising.client import Convener
from examples.supervising.command import supervise


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the goal was pursued to its end, 1 when nothing was found, 2 when the service could not be used."""
    options = _options(arguments)
    goal = options.goal or "question-" + hashlib.sha256(options.question.encode()).hexdigest()[:12]
    # Matches are few here: the mean of the best is judged by win probability, 0.02 being 14 Elo.
    constraints = {
        "min_iterations": 1,
        "max_iterations": options.rounds,
        "time_limit_seconds": options.time_limit,
        "improvement_unit": "win_probability",
        "improvement_threshold": 0.02,
        "patience": 3,
    }

    def pursue(access: Access) -> int:
        with Convener(access.url, access.key) as service:
            study = Study(service, goal_id=goal, question=options.question, constraints=constraints, report=_print_line)
            findings = study.pursue()
        print(text(findings))
        return 0 if findings.best else 1

    return supervise(pursue, options.url)


def text(findings: Findings) -> str:
    """The findings in plain text."""
    work = f"{findings.rounds} rounds, {findings.tasks} tasks ({findings.failed} failed), {findings.matches} matches"
    lines = [f"{work}, {findings.merged} duplicates; stopped: {findings.stopped_because}"]
    for place, entry in enumerate(findings.best, 1):
        lines += ["", f"{place}. {entry.content['title']} (Elo {entry.elo:.0f}, {entry.matches} matches)"]
        for name in ("statement", "mechanism", "test"):
            lines += textwrap.wrap(
                f"{name}: {entry.content[name]}", 100, initial_indent="   ", subsequent_indent="     "
            )
        lines += textwrap.wrap(f"critique: {entry.critique}", 100, initial_indent="   ", subsequent_indent="     ")
    return "\n".join([*lines, "", *textwrap.wrap(findings.summary, 100)])


def _print_line(news: str) -> None:
    print(news, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.question", description=__doc__)
    parser.add_argument("question", help="what you want to know")
    parser.add_argument("--url", help="where Convener listens (default: that of `convener up`)")
    parser.add_argument("--goal", help="the goal's id; the same one again resumes (default: from the question)")
    parser.add_argument("--rounds", type=int, default=6, help="at most this many (default: 6)")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="seconds (default: 3600)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
