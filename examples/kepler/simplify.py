"""Simplification: every tree is brought to a coefficient times powers, so that equal formulas look equal."""

import math
from typing import TypeAlias

from examples.kepler.expressions import LIMIT, Tree, evaluate, operator, variables

Factors: TypeAlias = dict[str, tuple[Tree, float]]
Product: TypeAlias = tuple[float, Factors]

FIXED_POWERS = {"sqrt": 0.5, "square": 2.0, "cube": 3.0}
NEGLIGIBLE = 1e-12


def simplify(tree: Tree) -> Tree:
    """A tree with the same value wherever `tree` is defined, given that a, e and m are positive."""
    if not isinstance(tree, list):
        return tree if isinstance(tree, str) else float(tree)
    whole: list[Tree] = [tree[0], *(simplify(child) for child in tree[1:])]
    if not variables(whole):
        return _folded(whole)
    if operator(whole) in {"+", "-"}:
        return _sum(whole)
    if operator(whole) in {"log", "exp"}:
        return _without_inverse(whole)
    return _rebuilt(*_product(whole))


def without_coefficient(tree: Tree) -> tuple[Tree, float]:
    """Split `tree` into its shape and its leading coefficient, which a fitted scale makes redundant."""
    coefficient, factors = _product(simplify(tree))
    return _rebuilt(1.0, factors), coefficient


def _folded(tree: Tree) -> Tree:
    value = evaluate(tree, {"a": [1.0]})[0]
    return tree if math.isnan(value) else value


def _sum(tree: "list[Tree]") -> Tree:
    sign, (left, right) = operator(tree), tree[1:]
    if right == 0.0:
        return left
    if left == 0.0 and sign == "+":
        return right
    if left == right:
        return 0.0 if sign == "-" else _rebuilt(*_product(["*", 2.0, left]))
    return tree


def _without_inverse(tree: "list[Tree]") -> Tree:
    inner, inverse = tree[1], {"log": "exp", "exp": "log"}[operator(tree)]
    return inner[1] if isinstance(inner, list) and operator(inner) == inverse else tree


def _product(tree: Tree) -> Product:
    if isinstance(tree, list):
        if operator(tree) in {"*", "/"}:
            return _merged(tree)
        power = FIXED_POWERS.get(operator(tree), tree[2] if operator(tree) == "pow" else None)
        if isinstance(power, float):
            return _raised(tree[1], power)
    return (tree, {}) if isinstance(tree, float) else _single(tree, 1.0)


def _single(base: Tree, power: float) -> Product:
    return 1.0, {repr(base): (base, power)}


def _merged(tree: "list[Tree]") -> Product:
    sign = 1.0 if operator(tree) == "*" else -1.0
    (left, factors), (right, others) = _product(tree[1]), _product(tree[2])
    if right == 0.0 and sign < 0.0:
        return _single(tree, 1.0)
    merged = dict(factors)
    for key, (base, power) in others.items():
        merged[key] = (base, merged.get(key, (base, 0.0))[1] + sign * power)
    coefficient = left * right if sign > 0.0 else left / right
    return _kept(coefficient, merged) or _single(tree, 1.0)


def _raised(base: Tree, power: float) -> Product:
    coefficient, factors = _product(base)
    signs_known = coefficient > 0.0 and all(_never_negative(inner) for inner, _ in factors.values())
    if coefficient == 0.0 or not (signs_known or power.is_integer()):
        return _single(base, power)
    raised = {key: (inner, old * power) for key, (inner, old) in factors.items()}
    try:
        return _kept(math.pow(coefficient, power), raised) or _single(base, power)
    except OverflowError:
        return _single(base, power)


def _kept(coefficient: float, factors: Factors) -> Product | None:
    """Factors that matter; None when the coefficient has left the range in which a value counts as defined."""
    if coefficient == 0.0:
        return 0.0, {}
    if not 1.0 / LIMIT < abs(coefficient) < LIMIT:
        return None
    return coefficient, {key: factor for key, factor in factors.items() if abs(factor[1]) > NEGLIGIBLE}


def _never_negative(tree: Tree) -> bool:
    if not isinstance(tree, list):
        return isinstance(tree, str) or tree >= 0.0
    if operator(tree) in {"exp", "sqrt", "square"}:
        return True
    if operator(tree) == "pow":
        return _never_negative(tree[1])
    return operator(tree) in {"+", "*", "/", "cube"} and all(_never_negative(child) for child in tree[1:])


def _rebuilt(coefficient: float, factors: Factors) -> Tree:
    ordered = [factors[key] for key in sorted(factors)]
    above = [_powered(base, power) for base, power in ordered if power > 0.0]
    below = [_powered(base, -power) for base, power in ordered if power < 0.0]
    if len(below) == len(ordered) == 1 and coefficient == 1.0:
        base, power = ordered[0]
        return ["pow", base, power]
    if coefficient != 1.0 or not above:
        above.insert(0, coefficient)
    return ["/", _chained(above), _chained(below)] if below else _chained(above)


def _chained(trees: "list[Tree]") -> Tree:
    first, *rest = trees
    for tree in rest:
        first = ["*", first, tree]
    return first


def _powered(base: Tree, power: float) -> Tree:
    if power == 1.0:
        return base
    for name, fixed in FIXED_POWERS.items():
        if power == fixed:
            return [name, base]
    return ["pow", base, power]
