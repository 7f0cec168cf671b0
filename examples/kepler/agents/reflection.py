"""Reflection: fit each proposal to the training bodies, say what is wrong with it, discard what cannot be right."""

import math

from examples.kepler.data import Sample, sample
from examples.kepler.expressions import Tree, operator, size, variables
from examples.kepler.fitting import Fit, fit, log_errors
from examples.kepler.notation import formula, text
from examples.kepler.simplify import without_coefficient
from examples.supervising.task import Json, Task

TOO_COMPLEX = 9


def reflect(task: Task) -> Json:
    """`reviews` of the formulas that give every training body a period, and `discarded` ones with the reason."""
    bodies = sample("train")
    proposals = task.payload["formulas"]
    fits = [fit(proposal["tree"], bodies, task.payload["evaluations"]) for proposal in proposals]
    task.progress(50.0, f"{len(fits)} formulas fitted")
    reviews, discarded = [], []
    for place, (proposal, fitted) in enumerate(zip(proposals, fits, strict=True)):
        if fitted is None:
            discarded.append({"formula": text(proposal["tree"]), "reason": "no period for some training body"})
        else:
            reviews.append(_review(place, proposal["origin"], fitted, bodies))
    return {"reviews": reviews, "discarded": discarded}


def _review(place: int, origin: str, fitted: Fit, bodies: Sample) -> Json:
    tree, coefficient = without_coefficient(fitted.tree)
    tidy = Fit(tree, fitted.scale * coefficient, fitted.error)
    return {
        "place": place,
        "origin": origin,
        "tree": tidy.tree,
        "scale": tidy.scale,
        "size": size(tidy.tree),
        "error": tidy.error,
        "score": tidy.score,
        "critique": _critique(tidy, bodies),
    }


def _critique(fitted: Fit, bodies: Sample) -> Json:
    errors = dict(zip(bodies.names, log_errors(fitted.tree, fitted.scale, bodies), strict=True))
    worst = max(errors, key=lambda name: abs(errors[name]))
    return {
        "formula": formula(fitted.tree, fitted.scale),
        "percent_off": {name: _percent(error) for name, error in errors.items()},
        "worst": worst,
        "remarks": [f"{worst} is off by {_percent(errors[worst])} %", *_remarks(fitted.tree)],
    }


def _percent(log_error: float) -> float:
    return round(100.0 * math.expm1(log_error), 3) if log_error < 100.0 else 1e9


def _remarks(tree: Tree) -> list[str]:
    remarks = []
    if dimension(tree) is None:
        remarks.append("mixes quantities of different dimension")
    if size(tree) >= TOO_COMPLEX:
        remarks.append(f"{size(tree)} nodes are many for one law")
    if "a" not in variables(tree):
        remarks.append("ignores the distance from the Sun")
    return remarks


def dimension(tree: Tree) -> tuple[float, float] | None:
    """Powers of length and mass; None when lengths, masses and pure numbers are added or taken to a function."""
    if not isinstance(tree, list):
        return {"a": (1.0, 0.0), "m": (0.0, 1.0)}.get(str(tree), (0.0, 0.0))
    inner = [dimension(child) for child in tree[1:]]
    if any(part is None for part in inner):
        return None
    (length, mass), *others = [part for part in inner if part is not None]
    name = operator(tree)
    if name in {"*", "/"}:
        sign = 1.0 if name == "*" else -1.0
        return length + sign * others[0][0], mass + sign * others[0][1]
    power = {"sqrt": 0.5, "square": 2.0, "cube": 3.0}.get(name, tree[-1] if name == "pow" else None)
    if isinstance(power, int | float):
        return length * power, mass * power
    pure = (length, mass) == (0.0, 0.0)
    return (length, mass) if all(part == (length, mass) for part in others) and (pure or name in {"+", "-"}) else None
