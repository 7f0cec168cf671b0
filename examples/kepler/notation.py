"""Formulas as people read them: T = 1.0000 * a^1.500."""

from examples.kepler.expressions import Tree, operator

RANK = {"+": 1, "-": 1, "*": 2, "/": 2, "pow": 3, "square": 3, "cube": 3}
FIXED_POWERS: dict[str, Tree] = {"square": 2.0, "cube": 3.0}


def formula(tree: Tree, scale: float) -> str:
    """The law for the period in years, with its fitted scale."""
    number = f"{scale:.4f}" if 0.01 <= abs(scale) < 1000.0 else f"{scale:.4g}"
    return f"T = {number}" if isinstance(tree, float) else f"T = {number} * {_within(tree, 2)}"


def text(tree: Tree) -> str:
    """Infix notation with as few brackets as precedence allows."""
    if not isinstance(tree, list):
        return tree if isinstance(tree, str) else f"{tree:.4g}"
    name = operator(tree)
    if RANK.get(name) == 3:
        return f"{_within(tree[1], 4)}^{_exponent(FIXED_POWERS.get(name, tree[-1]))}"
    if name not in RANK:
        return f"{name}({text(tree[1])})"
    # The right side of - and / needs brackets at equal rank.
    right = RANK[name] + (name in {"-", "/"})
    return f"{_within(tree[1], RANK[name])} {name} {_within(tree[2], right)}"


def _within(tree: Tree, rank: int) -> str:
    inner = RANK.get(operator(tree), 4) if isinstance(tree, list) else 4
    negative = isinstance(tree, float) and tree < 0.0
    return f"({text(tree)})" if inner < rank or negative else text(tree)


def _exponent(tree: Tree) -> str:
    if isinstance(tree, float):
        return f"{tree:.3f}" if tree >= 0.0 else f"({tree:.3f})"
    return _within(tree, 4)
