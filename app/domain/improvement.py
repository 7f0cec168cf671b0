"""How much better one measure of quality is than another, and which measure of an iteration is to be trusted."""

import math
from dataclasses import dataclass
from enum import StrEnum

# An untested newcomer sits at the starting rating, so a top that holds some looks like convergence.
MIN_MATCHES = 3
# Beyond this a difference of two numbers says nothing any more.
_LARGEST = 1e150


class Unit(StrEnum):
    """What an improvement is measured in: for Elo a win probability beyond one half, or a share of the former value."""

    WIN_PROBABILITY = "win_probability"
    RELATIVE = "relative"


class Measure(StrEnum):
    """What an iteration is judged by. The mean of the top is less noisy than its maximum."""

    TOP = "the mean of the top"
    BEST = "the best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What an iteration has reached: the best, and the mean of the top k with the fewest matches among them.

    Anything may be unknown: None, or not a finite number.
    """

    best: float | None = None
    top: float | None = None
    matches: int | None = None


def judged(quality: Quality) -> tuple[Measure, float] | None:
    """The measure by which to judge and its value; None when nothing was measured."""
    is_tested = quality.matches is None or quality.matches >= MIN_MATCHES
    if is_tested and _is_number(quality.top):
        return Measure.TOP, float(quality.top or 0.0)
    if _is_number(quality.best):
        return Measure.BEST, float(quality.best or 0.0)
    return None


def improvement(unit: Unit, value: float, anchor: float, spread: float = 0.0) -> float:
    """How much better `value` is than `anchor`; negative when it is worse.

    A win probability is that of a player who is so many Elo ahead, 1 / (1 + 10^(-d/400)), minus one half: 35 Elo are
    0.05. A relative gain is a share of the anchor, or of the `spread` of all values so far where that is larger: a
    score near zero or below it has no share of its own worth speaking of.
    """
    if unit is Unit.WIN_PROBABILITY:
        return 0.5 * math.tanh((value - anchor) * math.log(10) / 800)
    scale = max(abs(anchor), spread)
    return (value - anchor) / scale if scale > 0 else 0.0


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST
