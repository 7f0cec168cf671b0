"""When thinking longer no longer pays: no measurable improvement for long enough.

Whatever the curve, a goal goes on past `min_iterations` only when some iteration among the last `patience` was better
than the last improvement before it by at least the threshold, or when the line through those rises by as much
(anchored best); or when the line through the last `window` may be steep enough still (slope). What was not measured is
no improvement.
"""

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

# So that a gain of exactly the threshold counts, whatever floating point makes of it.
_EPSILON = 1e-9
# Of normal noise: the standard deviation over the median distance of two readings, 1.4826 / sqrt(2).
_NORMAL = 1.0484
_FEW_STEPS = 3
_FEWEST_POINTS = 5
Point = tuple[int, float]


# An untested newcomer sits at the starting rating, so a top that holds some looks like convergence.
MIN_MATCHES = 3
# Beyond this a difference of two numbers says nothing any more.
_LARGEST = 1e150


class StoppingRule(StrEnum):
    """How a plateau is recognised."""

    ANCHORED_BEST = "anchored_best"
    SLOPE = "slope"


class Unit(StrEnum):
    """What an improvement is measured in: for Elo a win probability beyond one half, or a share of the former value."""

    WIN_PROBABILITY = "win_probability"
    RELATIVE = "relative"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingPolicy:
    """`threshold` in the unit: over the anchor, or per iteration for a slope.

    The constants are measured (`benchmarks/stopping.py`). A patience of 10 outlasts the dips of the published curve. A
    gain has to be 0.4 of what noise alone makes of two readings, so a flat curve stops sooner; a line that rises by
    more than 0.5 of its standard error keeps a climb going that one lucky reading has put in its shadow. 1.64 is the
    one-sided 95 %.
    """

    rule: StoppingRule = StoppingRule.ANCHORED_BEST
    unit: Unit = Unit.WIN_PROBABILITY
    threshold: float = 0.01
    min_iterations: int = 3
    patience: int = 10
    window: int = 10
    confidence: float = 1.64
    noise_share: float = 0.4
    climb_errors: float | None = 0.5
    # Off: quality is not judged, and only hard limits stop a goal.
    judges: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What an iteration has reached: the best, and the mean of the top k with the fewest matches among them.

    Anything may be unknown: None, or not a finite number.
    """

    best: float | None = None
    top: float | None = None
    matches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The number of an iteration, from 1 on, and what it has reached."""

    number: int
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether to stop, and why. `gain` is what the last iteration brought beyond all before; 0 when nothing."""

    stop: bool
    reason: str
    gain: float
    fruitless: int


@dataclass(slots=True)
class _Course:
    """The values of one measure so far, and the one that the next has to beat."""

    anchor: float
    lowest: float
    highest: float
    values: list[Point] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def note(self, number: int, value: float) -> None:
        if self.values:
            insort(self.steps, abs(value - self.values[-1][1]))
        self.values.append((number, value))
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    @property
    def spread(self) -> float:
        return self.highest - self.lowest

    @property
    def noise(self) -> float:
        """Standard deviation of a reading: by the median step, which few real jumps can move; 0 while there are few."""
        if len(self.steps) < _FEW_STEPS:
            return 0.0
        return _NORMAL * (self.steps[(len(self.steps) - 1) // 2] + self.steps[len(self.steps) // 2]) / 2


def judge(iterations: Sequence[Iteration], policy: StoppingPolicy) -> Judgement:
    """Judge the quality so far. Iterations may come in any order; of two with the same number the first counts."""
    history = in_order(iterations)
    gains, courses = _gains(history, policy)
    fruitless = _trailing_zeros(gains[1:]) if gains else 0
    gain = gains[-1] if gains else 0.0
    if not policy.judges:
        return Judgement(stop=False, reason="quality is not judged", gain=gain, fruitless=fruitless)
    if policy.rule is StoppingRule.SLOPE:
        stop, reason = _by_slope(history, courses, policy)
    else:
        stop, reason = _by_patience(gains, fruitless, policy)
        if stop and (climb := _climb(history, courses, policy)):
            stop, reason = False, f"{reason}, but {climb}"
    if stop and len(history) < policy.min_iterations:
        stop, reason = False, f"at least {policy.min_iterations} iterations are wanted: {reason}"
    return Judgement(stop=stop, reason=reason, gain=gain, fruitless=fruitless)


def in_order(iterations: Sequence[Iteration]) -> list[Iteration]:
    """By number, each once."""
    first: dict[int, Iteration] = {}
    for iteration in iterations:
        first.setdefault(iteration.number, iteration)
    return [first[number] for number in sorted(first)]


class Measure(StrEnum):
    """What an iteration is judged by. The mean of the top is less noisy than its maximum."""

    TOP = "the mean of the top"
    BEST = "the best"


def _gains(history: Sequence[Iteration], policy: StoppingPolicy) -> tuple[list[float], dict[Measure, _Course]]:
    """Per iteration, by how much it beat its anchor where that is enough to count, else 0; and the courses.

    Each measure has an anchor of its own: a mean of the top compared with a best would be a jump that nobody made.
    """
    courses: dict[Measure, _Course] = {}
    gains = []
    for iteration in history:
        found = judged(iteration.quality)
        gains.append(0.0)
        if found is None:
            continue
        measure, value = found
        course = courses.setdefault(measure, _Course(value, value, value))
        course.note(iteration.number, value)
        gain = improvement(policy.unit, value, course.anchor, course.spread)
        if gain >= policy.threshold - _EPSILON and value - course.anchor >= policy.noise_share * course.noise:
            course.anchor, gains[-1] = value, gain
    return gains, courses


def _trailing_zeros(gains: Sequence[float]) -> int:
    return next((back for back, gain in enumerate(reversed(gains)) if gain > 0), len(gains))


def _by_patience(gains: Sequence[float], fruitless: int, policy: StoppingPolicy) -> tuple[bool, str]:
    if fruitless >= policy.patience:
        return True, f"no improvement of {_size(policy.threshold, policy.unit)} in the last {_iterations(fruitless)}"
    if gains and gains[-1] > 0:
        return False, f"improved by {_size(gains[-1], policy.unit)}, at least {_size(policy.threshold, policy.unit)}"
    if not fruitless:
        return False, "the first iteration is what later ones are measured by"
    lately = f"no improvement of {_size(policy.threshold, policy.unit)} in the last {_iterations(fruitless)}"
    return False, f"{lately}; patience is {policy.patience}"


def _climb(history: Sequence[Iteration], courses: Mapping[Measure, _Course], policy: StoppingPolicy) -> str | None:
    """What speaks against a plateau: a line through the last readings that rises by the threshold, beyond chance."""
    points = _recent(history, courses, policy.patience)
    if policy.climb_errors is None or len(points) < _FEWEST_POINTS:
        return None
    slope, error = _fit(points)
    rise = _gain(points, slope * (points[-1][0] - points[0][0]), policy.unit)
    if rise < policy.threshold - _EPSILON or slope <= policy.climb_errors * error:
        return None
    return f"the line through the last {_iterations(policy.patience)} rises by {_size(rise, policy.unit)}"


def _by_slope(
    history: Sequence[Iteration], courses: Mapping[Measure, _Course], policy: StoppingPolicy
) -> tuple[bool, str]:
    """Stop when even the upper bound of the slope is under the threshold."""
    if len(history) < policy.window:
        return False, f"{_iterations(len(history))} so far; a slope is judged over {policy.window}"
    points = _recent(history, courses, policy.window)
    if len(points) < _FEWEST_POINTS:
        return True, f"only {len(points)} of the last {_iterations(policy.window)} were measured: too few for a slope"
    slope, error = _fit(points)
    gain = _gain(points, slope + policy.confidence * error, policy.unit)
    said = f"the slope of the last {_iterations(policy.window)} is at most {_size(gain, policy.unit)} an iteration"
    if gain < policy.threshold - _EPSILON:
        return True, f"{said}, under {_size(policy.threshold, policy.unit)}"
    return False, f"{said}, not under {_size(policy.threshold, policy.unit)}"


def _recent(history: Sequence[Iteration], courses: Mapping[Measure, _Course], window: int) -> list[Point]:
    """The readings of the last iterations, by the measure that most of them have."""
    since = history[-window:][0].number
    found = [[point for point in course.values[-window:] if point[0] >= since] for course in courses.values()]
    return max(found, key=len, default=[])


def _gain(points: Sequence[Point], rise: float, unit: Unit) -> float:
    """What a rise from the middle of these readings is worth."""
    values = [value for _, value in points]
    middle = math.fsum(values) / len(values)
    return improvement(unit, middle + rise, middle, max(values) - min(values))


def _fit(points: Sequence[Point]) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error (n - 2 degrees of freedom)."""
    count = len(points)
    mean_x, mean_y = math.fsum(x for x, _ in points) / count, math.fsum(y for _, y in points) / count
    width = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / width
    rest = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(max(0.0, rest) / (count - 2) / width)


def _size(gain: float, unit: Unit) -> str:
    return f"{100 * gain:.3g} %" if unit is Unit.RELATIVE else f"{gain:.3g} in win probability"


def _iterations(count: int) -> str:
    return "1 iteration" if count == 1 else f"{count} iterations"


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
