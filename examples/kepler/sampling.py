"""Random trees and constants, biased by the guidance of meta-review."""

from collections.abc import Mapping
from random import Random

from examples.kepler.data import VARIABLES
from examples.kepler.expressions import BINARY, UNARY, Tree
from examples.supervising.task import Json

OPERATORS = (*BINARY, *UNARY)


def grow(rng: Random, depth: int, guidance: Json) -> Tree:
    """A random tree of at most `depth` levels of operators."""
    if depth == 0 or rng.random() < 0.15:
        return leaf(rng, guidance)
    name = weighted(rng, OPERATORS, guidance.get("operators", {}))
    if name in UNARY:
        return [name, grow(rng, depth - 1, guidance)]
    if name == "pow" and rng.random() < 0.8:
        return [name, grow(rng, depth - 1, guidance), exponent(rng, guidance)]
    return [name, grow(rng, depth - 1, guidance), grow(rng, depth - 1, guidance)]


def leaf(rng: Random, guidance: Json) -> Tree:
    if rng.random() < 0.75:
        return weighted(rng, VARIABLES, guidance.get("variables", {}))
    return rng.choice((float(rng.randint(1, 9)), 10.0 ** rng.uniform(-2.0, 2.0)))


def exponent(rng: Random, guidance: Json) -> float:
    """An integer, a half or any real number in -3..3; half of the time one that suits what the best formulas do."""
    pattern = guidance.get("exponent")
    if pattern and rng.random() < 0.5:
        return rng.gauss(pattern["centre"], pattern["spread"])
    return rng.choice((float(rng.randint(-3, 3)), rng.randint(-6, 6) / 2.0, rng.uniform(-3.0, 3.0)))


def weighted(rng: Random, names: tuple[str, ...], weights: Mapping[str, float]) -> str:
    """One of `names`, by weight; a name without a weight counts as 1."""
    return rng.choices(names, [weights.get(name, 1.0) for name in names])[0]
