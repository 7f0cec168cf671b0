"""Behavior of a formula, whatever its form: predictions and local exponents on a fixed grid of orbits."""

import math

from examples.kepler.data import Table
from examples.kepler.expressions import Tree, evaluate

DISTANCES = [0.3 * (80.0 / 0.3) ** (i / 7) for i in range(8)]
ECCENTRICITIES = (0.01, 0.2, 0.9)
MASSES = (1e-12, 1e-3, 300.0)
POINTS = [(a, e, m) for e in ECCENTRICITIES for m in MASSES for a in DISTANCES]
GRID: Table = {name: list(column) for name, column in zip("aem", zip(*POINTS, strict=True), strict=True)}
STEP = 0.01


def log_predictions(tree: Tree, scale: float) -> list[float]:
    """ln T on the grid; NaN where the formula gives no positive period."""
    return [math.log(scale * value) if scale * value > 0.0 else math.nan for value in evaluate(tree, GRID)]


def local_exponents(tree: Tree, variable: str) -> list[float]:
    """d ln|T| / d ln x on the grid by central differences: constant and equal to p for a power law x^p."""
    above, below = (evaluate(tree, _moved(variable, factor)) for factor in (1.0 + STEP, 1.0 - STEP))
    width = math.log((1.0 + STEP) / (1.0 - STEP))
    return [math.log(up / down) / width if up * down > 0.0 else math.nan for up, down in zip(above, below, strict=True)]


def _moved(variable: str, factor: float) -> Table:
    return {**GRID, variable: [factor * value for value in GRID[variable]]}
