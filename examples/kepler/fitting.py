"""Fitting: the scale by linear least squares in ln T, the other constants by Nelder and Mead's simplex."""

import math
from collections.abc import Callable
from typing import NamedTuple

from examples.kepler.data import Sample
from examples.kepler.expressions import Tree, constants, evaluate, size, with_constants

Point = list[float]

SIZE_PENALTY = 0.002


class Fit(NamedTuple):
    """A formula scale * tree; `error` is the root mean square of ln(predicted / published) on the fitted bodies."""

    tree: Tree
    scale: float
    error: float

    @property
    def score(self) -> float:
        """Error plus 0.002 for each node: a node must pay for itself with a fifth of a per cent. Less is better."""
        return self.error + SIZE_PENALTY * size(self.tree)


def fit(tree: Tree, sample: Sample, evaluations: int) -> Fit | None:
    """The best constants found within a number of evaluations; None when no scale makes all periods positive."""
    start = constants(tree)

    def error(values: Point) -> float:
        fitted = scaled(with_constants(tree, iter(values)), sample)
        return fitted.error if fitted else math.inf

    best = descend(error, start, evaluations) if start else start
    return scaled(with_constants(tree, iter(best)), sample)


def scaled(tree: Tree, sample: Sample) -> Fit | None:
    """Fit only the scale: ln scale is the mean of ln T - ln |tree|, the least-squares intercept."""
    values = evaluate(tree, sample.table)
    sign = 1.0 if values[0] > 0.0 else -1.0
    if not all(sign * value > 0.0 for value in values):
        return None
    gaps = [period - math.log(sign * value) for period, value in zip(sample.log_periods, values, strict=True)]
    intercept = math.fsum(gaps) / len(gaps)
    if abs(intercept) > 200.0:
        return None
    return Fit(
        tree, sign * math.exp(intercept), math.sqrt(math.fsum((gap - intercept) ** 2 for gap in gaps) / len(gaps))
    )


def log_errors(tree: Tree, scale: float, sample: Sample) -> list[float]:
    """ln(predicted / published) for every body; infinite where the formula gives no positive period."""
    predicted = [scale * value for value in evaluate(tree, sample.table)]
    return [
        math.log(value) - period if value > 0.0 else math.inf
        for value, period in zip(predicted, sample.log_periods, strict=True)
    ]


def root_mean_square(errors: list[float]) -> float:
    return math.sqrt(math.fsum(error * error for error in errors) / len(errors))


def descend(function: Callable[[Point], float], start: Point, evaluations: int) -> Point:
    """Nelder and Mead (1965), with their coefficients 1, 2, 1/2, 1/2; stops after about `evaluations` calls."""
    if evaluations <= len(start):
        return start
    simplex = [(function(point), point) for point in _corners(start)]
    left = evaluations - len(simplex)
    while left > 0 and not _collapsed(simplex):
        simplex.sort(key=lambda corner: corner[0])
        left -= _step(function, simplex)
    return min(simplex, key=lambda corner: corner[0])[1]


def _corners(start: Point) -> list[Point]:
    moved = [[*start[:i], value + 0.1 + 0.2 * abs(value), *start[i + 1 :]] for i, value in enumerate(start)]
    return [start, *moved]


def _collapsed(simplex: list[tuple[float, Point]]) -> bool:
    lowest, highest = min(simplex)[0], max(simplex)[0]
    return math.isfinite(highest) and highest - lowest < 1e-9


def _step(function: Callable[[Point], float], simplex: list[tuple[float, Point]]) -> int:
    """Improve a sorted simplex in place; returns the calls spent."""
    (best, _), (next_worst, _), (worst, corner) = simplex[0], simplex[-2], simplex[-1]
    centre = [math.fsum(values) / (len(simplex) - 1) for values in zip(*(p for _, p in simplex[:-1]), strict=True)]

    def along(distance: float) -> tuple[float, Point]:
        point = [c + distance * (c - w) for c, w in zip(centre, corner, strict=True)]
        return function(point), point

    reflected = along(1.0)
    if reflected[0] < best:
        simplex[-1] = min(reflected, along(2.0), key=lambda trial: trial[0])
        return 2
    if reflected[0] < next_worst:
        simplex[-1] = reflected
        return 1
    contracted = along(0.5 if reflected[0] < worst else -0.5)
    if contracted[0] < min(worst, reflected[0]):
        simplex[-1] = contracted
        return 2
    return 2 + _shrink(function, simplex)


def _shrink(function: Callable[[Point], float], simplex: list[tuple[float, Point]]) -> int:
    _, anchor = simplex[0]
    for i, (_, point) in enumerate(simplex[1:], start=1):
        halved = [(x + y) / 2.0 for x, y in zip(anchor, point, strict=True)]
        simplex[i] = (function(halved), halved)
    return len(simplex) - 1
