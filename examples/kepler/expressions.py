"""Expression trees over a, e and m as JSON lists: ["*", "a", ["sqrt", "a"]] is a * sqrt(a)."""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

from examples.kepler.data import Table

Tree: TypeAlias = "str | float | list[Tree]"
Path: TypeAlias = tuple[int, ...]

LIMIT = 1e100


def _power(base: float, exponent: float) -> float:
    # math.pow(nan, 0) is 1: an undefined part would be hidden.
    return math.pow(base, exponent) if base == base and exponent == exponent else math.nan


BINARY: dict[str, Callable[[float, float], float]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "pow": _power,
}
UNARY: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "log": math.log,
    "exp": math.exp,
}


def evaluate(tree: Tree, table: Table) -> list[float]:
    """The value for every row of `table`; NaN where any part is undefined or beyond `LIMIT`."""
    if isinstance(tree, str):
        return table[tree]
    if not isinstance(tree, list):
        return [float(tree)] * len(table["a"])
    columns = [evaluate(child, table) for child in tree[1:]]
    if len(columns) == 1:
        function = UNARY[operator(tree)]
        return [_evaluate_safely(function, x) for x in columns[0]]
    combine = BINARY[operator(tree)]
    return [_evaluate_safely(combine, x, y) for x, y in zip(*columns, strict=True)]


def _evaluate_safely(function: Callable[..., float], *values: float) -> float:
    try:
        value = function(*values)
    except (ArithmeticError, ValueError):
        return math.nan
    return value if -LIMIT < value < LIMIT else math.nan


def operator(tree: "list[Tree]") -> str:
    return str(tree[0])


def size(tree: Tree) -> int:
    """Complexity: the number of operators, variables and constants."""
    return 1 + sum(size(child) for child in tree[1:]) if isinstance(tree, list) else 1


def variables(tree: Tree) -> set[str]:
    if isinstance(tree, list):
        return set().union(*(variables(child) for child in tree[1:]))
    return {tree} if isinstance(tree, str) else set()


def constants(tree: Tree) -> list[float]:
    """All constants from left to right."""
    if isinstance(tree, list):
        return [value for child in tree[1:] for value in constants(child)]
    return [] if isinstance(tree, str) else [float(tree)]


def with_constants(tree: Tree, values: Iterator[float]) -> Tree:
    """The same tree with its constants replaced, from left to right, by `values`."""
    if isinstance(tree, list):
        return [tree[0], *(with_constants(child, values) for child in tree[1:])]
    return tree if isinstance(tree, str) else next(values)


def paths(tree: Tree) -> list[Path]:
    """Where every node is, the root first."""
    result: list[Path] = [()]
    if isinstance(tree, list):
        result += [(place, *rest) for place in range(1, len(tree)) for rest in paths(tree[place])]
    return result


def part(tree: Tree, path: Path) -> Tree:
    for place in path:
        assert isinstance(tree, list)
        tree = tree[place]
    return tree


def replace_part(tree: Tree, path: Path, new: Tree) -> Tree:
    """The tree with the node at `path` exchanged for `new`."""
    if not path:
        return new
    assert isinstance(tree, list)
    place, rest = path[0], path[1:]
    return [*tree[:place], replace_part(tree[place], rest, new), *tree[place + 1 :]]
