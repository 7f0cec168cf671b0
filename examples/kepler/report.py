"""The closing report of a run, and its text: what was found, how good it is, and how it grew with compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """Where a run stood after a round; `best_error` is the leader's relative error on the held-out bodies."""

    compute_seconds: float
    best_elo: float
    best_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a research goal. Errors are fractions: 0.01 is 1 %."""

    law_found: bool
    verdict: str
    formula: str
    exponent: float
    held_out_error: float
    test_error: float
    test_body: str
    best_elo: float
    stopped_because: str
    summary: str
    points: tuple[Point, ...]
    tasks: Mapping[str, int]
    failed_tasks: int
    rounds: int
    matches: int
    duplicates_dropped: int
    formulas_reviewed: int
    formulas_discarded: int
    compute_seconds: float
    wall_seconds: float


def text(report: Report) -> str:
    """The report in plain text, about 80 columns wide."""
    headline = "Law found" if report.law_found else f"Law not found ({report.verdict}); the best was"
    tasks = ", ".join(f"{agent} {number}" for agent, number in report.tasks.items())
    errors = f"{_percent(report.held_out_error)} on held-out bodies and {_percent(report.test_error)}"
    formulas = f"{report.formulas_reviewed} formulas reviewed, {report.formulas_discarded} discarded"
    tournament = f"{report.duplicates_dropped} duplicates dropped, {report.matches} matches played"
    lines = [
        f"{headline}: {report.formula}",
        f"  exponent {report.exponent:.4f}",
        f"  off by {errors} on {report.test_body}, which no agent had seen",
        f"  {report.rounds} rounds, {sum(report.tasks.values())} tasks: {tasks}",
        f"  {formulas}, {tournament}",
        f"  {report.compute_seconds:.1f} s of compute in {report.wall_seconds:.1f} s",
        f"  stopped: {report.stopped_because}",
    ]
    return "\n".join([*lines, "", curve(report.points)])


def curve(points: Sequence[Point], width: int = 60, height: int = 8) -> str:
    """Best Elo by compute seconds as a chart of characters, `width` by `height` and axes around it."""
    if not points:
        return "no rounds were completed"
    xs, ys = [point.compute_seconds for point in points], [point.best_elo for point in points]
    rows = [[" "] * width for _ in range(height)]
    for column, value in enumerate(_resampled(xs, ys, width)):
        rows[height - 1 - _level(value, min(ys), max(ys), height)][column] = "●"
    labels = {0: f"{max(ys):.0f}", height - 1: f"{min(ys):.0f}"}
    body = [f"{labels.get(i, ''):>6} │{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    ends = f"{xs[0]:.1f}".ljust(width - 12) + f"{xs[-1]:.1f} s compute"
    return "\n".join(["   Elo", *body, f"{'':>6} └{'─' * width}", f"{'':>8}{ends}"])


def _resampled(xs: Sequence[float], ys: Sequence[float], width: int) -> list[float]:
    """The latest value at each of `width` equal steps of x."""
    step = (xs[-1] - xs[0]) / max(1, width - 1)
    values, latest = [], 0
    for column in range(width):
        while latest + 1 < len(xs) and xs[latest + 1] <= xs[0] + column * step + 1e-9:
            latest += 1
        values.append(ys[latest])
    return values


def _level(value: float, low: float, high: float, height: int) -> int:
    return round((value - low) / (high - low) * (height - 1)) if high > low else 0


def _percent(fraction: float) -> str:
    return f"{100.0 * fraction:.3g} %"
