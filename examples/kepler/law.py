"""Is it Kepler's third law? Judged by what a formula does, not by how it is written."""

import math
from dataclasses import dataclass

from examples.kepler.behaviour import ECCENTRICITIES, MASSES, local_exponents, log_predictions
from examples.kepler.data import sample
from examples.kepler.expressions import Tree
from examples.kepler.fitting import log_errors, root_mean_square

KEPLER = 1.5
EXPONENT_TOLERANCE = 0.01
INFLUENCE_TOLERANCE = 0.01
ERROR_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Relative errors as fractions (0.01 is 1 %), infinite where the formula gives no period."""

    found: bool
    reason: str
    exponent: float
    held_out_error: float
    test_error: float


def judge(tree: Tree, scale: float) -> Verdict:
    """Found: everywhere T ~ a^1.5 within 0.01, no influence of e and m, less than 1 % off on the held-out bodies."""
    exponents = local_exponents(tree, "a")
    held_out = math.expm1(min(100.0, root_mean_square(log_errors(tree, scale, sample("held_out")))))
    test = abs(math.expm1(min(100.0, log_errors(tree, scale, sample("test"))[0])))
    objection = _objection(exponents, log_predictions(tree, scale), held_out)
    return Verdict(
        found=objection is None,
        reason=objection or "T ~ a^1.5 at every distance, eccentricity and mass",
        exponent=math.fsum(exponents) / len(exponents),
        held_out_error=held_out,
        test_error=test,
    )


def _objection(exponents: list[float], predictions: list[float], held_out: float) -> str | None:
    # Written so that NaN, an undefined prediction, is an objection too.
    if not all(abs(exponent - KEPLER) <= EXPONENT_TOLERANCE for exponent in exponents):
        return "the period does not grow as a^1.5 everywhere"
    if not _influence(predictions) <= INFLUENCE_TOLERANCE:
        return "eccentricity or mass changes the period"
    if not held_out <= ERROR_TOLERANCE:
        return f"off by {100.0 * held_out:.3g} % on the held-out bodies"
    return None


def _influence(predictions: list[float]) -> float:
    """The largest spread of ln T over all eccentricities and masses at one distance."""
    distances = len(predictions) // (len(ECCENTRICITIES) * len(MASSES))
    columns = [predictions[i::distances] for i in range(distances)]
    return max(max(column) - min(column) for column in columns)
