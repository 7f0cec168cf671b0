"""Meta-review: say what the best formulas have in common, as guidance for the next proposals and as a summary."""

import math

from examples.kepler.behaviour import local_exponents
from examples.kepler.data import VARIABLES, sample
from examples.kepler.expressions import Tree, operator
from examples.kepler.notation import formula
from examples.kepler.sampling import OPERATORS
from examples.supervising.task import Json, Task

# Nothing is ruled out: an operator or a variable that no good formula uses keeps this weight.
FLOOR = 0.3


def review(task: Task) -> Json:
    """From `best` (best first): `guidance` for generation and evolution, `findings`, and a `summary` in words."""
    best: list[Json] = task.payload["best"]
    exponents = [{name: typical_exponent(entry["tree"], name) for name in VARIABLES} for entry in best]
    importance = {name: mean([abs(each[name]) * _range(name) for each in exponents]) for name in VARIABLES}
    pattern = [each["a"] for each in exponents]
    return {
        "guidance": {
            "operators": _operator_weights([entry["tree"] for entry in best]),
            "variables": _share(importance),
            "exponent": {"centre": median(pattern), "spread": max(0.1, deviation(pattern))},
        },
        "findings": {"exponents": exponents, "importance": importance, "remarks": _common_remarks(best)},
        "summary": _summary(best, exponents[0], median(pattern), importance),
    }


def typical_exponent(tree: Tree, variable: str) -> float:
    """The median of d ln T / d ln x over the grid, 0 where the formula is mostly undefined."""
    defined = [value for value in local_exponents(tree, variable) if math.isfinite(value)]
    return median(defined) if defined else 0.0


def _range(variable: str) -> float:
    """Number of e-folds that a variable spans over the training bodies."""
    column = sample("train").table[variable]
    return math.log(max(column) / min(column))


def _operator_weights(trees: list[Tree]) -> dict[str, float]:
    used = [name for tree in trees for name in _operators(tree)]
    return {name: FLOOR + len(OPERATORS) * used.count(name) / max(1, len(used)) for name in OPERATORS}


def _operators(tree: Tree) -> list[str]:
    if not isinstance(tree, list):
        return []
    return [operator(tree), *(name for child in tree[1:] for name in _operators(child))]


def _share(importance: dict[str, float]) -> dict[str, float]:
    total = math.fsum(importance.values()) or 1.0
    return {name: FLOOR + len(VARIABLES) * value / total for name, value in importance.items()}


def _common_remarks(best: list[Json]) -> dict[str, int]:
    remarks = [remark for entry in best for remark in entry["remarks"]]
    return {remark: remarks.count(remark) for remark in sorted(set(remarks))}


def _summary(best: list[Json], leader: dict[str, float], pattern: float, importance: dict[str, float]) -> str:
    ignored = [name for name in VARIABLES if abs(leader[name]) * _range(name) < 0.01]
    errors = [entry["held_out_error"] for entry in best if entry["held_out_error"] is not None]
    return (
        f"{formula(best[0]['tree'], best[0]['scale'])} leads. Among the best {len(best)} the period grows as "
        f"a^{pattern:.2f} (median), {max(importance, key=lambda name: importance[name])} matters most, "
        f"the leader does not depend on {' and '.join(ignored) or 'nothing'}; "
        f"mean held-out error {100.0 * mean(errors or [0.0]):.2g} %."
    )


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2.0


def deviation(values: list[float]) -> float:
    """The standard deviation of a population."""
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))
