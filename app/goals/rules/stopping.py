"""The stopping rule: end a goal when its quality has reached a plateau.

Anchored best (early stopping with patience, see Prechelt, "Early Stopping, but When?", 1998): past `min_iterations` a
goal goes on only while some iteration among the last `patience` was better than the last improvement before it by at
least the threshold, or the line through those iterations rises by as much. Slope: it goes on only while the line
through the last `window` iterations may still be steep enough. An iteration without a measurement is no improvement.
"""

import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

# An untested newcomer sits at the starting rating, so a top that contains some looks like convergence.
MIN_MATCHES = 3
# Rounding must not turn a gain of exactly the threshold into one below it.
_EPSILON = 1e-9
# Standard deviation over the median distance of two readings, for normal noise: 1.4826 / sqrt(2), the first factor
# being the one that makes the median absolute deviation consistent (Rousseeuw and Croux, 1993).
_STEP_TO_DEVIATION = 1.0484
_MIN_STEPS = 3
_MIN_POINTS = 5
# Larger numbers could overflow when they are squared or subtracted.
_MAX_MAGNITUDE = 1e150
# Percentages are scores as well. As Elo all of them would lie within 14 % of a win.
_MAX_SCORE = 100.0
# (iteration, value)
Point = tuple[int, float]


class StoppingRule(StrEnum):
    """How a plateau is recognised."""

    ANCHORED_BEST = "anchored_best"
    SLOPE = "slope"


class QualityMeasure(StrEnum):
    """Number by which an iteration is judged; the mean of the top is less noisy than its maximum."""

    TOP = "the mean of the top"
    BEST = "the best"


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
    # False: quality is not judged; then a goal ends with its least number of iterations, or else only by hard limits.
    judges: bool = True
    ends_at_minimum: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Quality after an iteration: of the best, and the mean of the top k with the fewest matches among those.

    Each may be missing: None, or not a finite number.
    """

    best: float | None = None
    top: float | None = None
    matches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReading:
    """The number of an iteration, from 1 on, and the quality after it."""

    number: int
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether to stop, and why.

    `gain` is the improvement of the last iteration over its anchor, 0 when it is too small to count, and
    `stalled_iterations` the number of iterations since the last one with a gain.
    """

    stop: bool
    reason: str
    gain: float
    stalled_iterations: int


@dataclass(slots=True)
class _Series:
    """Values of one measure so far, and the anchor that the next value has to beat."""

    anchor: float
    lowest: float
    highest: float
    values: list[Point] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def add(self, number: int, value: float) -> None:
        """Append a value; steps stay sorted, so that their median is at hand."""
        if self.values:
            insort(self.steps, abs(value - self.values[-1][1]))
        self.values.append((number, value))
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    @property
    def spread(self) -> float:
        """Distance of the highest from the lowest value."""
        return self.highest - self.lowest

    @property
    def noise(self) -> float:
        """Standard deviation of a value, from the median step, which few real jumps can move; 0 with too few steps."""
        if len(self.steps) < _MIN_STEPS:
            return 0.0
        return _STEP_TO_DEVIATION * (self.steps[(len(self.steps) - 1) // 2] + self.steps[len(self.steps) // 2]) / 2


_SeriesByMeasure = Mapping[QualityMeasure, _Series]


def judge(readings: Sequence[QualityReading], policy: StoppingPolicy) -> Judgement:
    """Judge the quality so far. Readings may come in any order; of two with the same number the first counts."""
    history = sort_readings(readings)
    gains, series = _gains(history, policy)
    # The first reading only sets the anchor, so that it is no stall_count iteration.
    stall_count = _trailing_zeros(gains[1:]) if gains else 0
    gain = gains[-1] if gains else 0.0
    if not policy.judges and policy.ends_at_minimum and len(history) >= policy.min_iterations:
        enough = "1 iteration is" if policy.min_iterations == 1 else f"{policy.min_iterations} iterations are"
        reason = f"quality is not judged (test_time_compute is off), so {enough} enough"
        return Judgement(stop=True, reason=reason, gain=gain, stalled_iterations=stall_count)
    if not policy.judges:
        return Judgement(stop=False, reason="quality is not judged", gain=gain, stalled_iterations=stall_count)
    if policy.rule is StoppingRule.SLOPE:
        stop, reason = _judge_slope(history, series, policy)
    else:
        stop, reason = _judge_patience(gains, stall_count, policy)
        if stop and (climb := _climb_reason(history, series, policy)):
            stop, reason = False, f"{reason}, but {climb}"
    if stop and len(history) < policy.min_iterations:
        stop, reason = False, f"at least {policy.min_iterations} iterations are wanted: {reason}"
    return Judgement(stop=stop, reason=reason, gain=gain, stalled_iterations=stall_count)


def sort_readings(readings: Sequence[QualityReading]) -> list[QualityReading]:
    """Readings in the order of their numbers, the first of each number."""
    first: dict[int, QualityReading] = {}
    for reading in readings:
        first.setdefault(reading.number, reading)
    return [first[number] for number in sorted(first)]


def measured_value(quality: Quality) -> tuple[QualityMeasure, float] | None:
    """The measure by which to judge an iteration, and its value; None when nothing was measured."""
    is_tested = quality.matches is None or quality.matches >= MIN_MATCHES
    if is_tested and _is_usable(quality.top):
        return QualityMeasure.TOP, float(quality.top or 0.0)
    if _is_usable(quality.best):
        return QualityMeasure.BEST, float(quality.best or 0.0)
    return None


def unit_of(qualities: Iterable[Quality]) -> Unit:
    """The unit where nobody has chosen one, by the first quality that was measured: ratings begin far above 100.

    Not by all of them: a score that rises out of a range would turn into Elo, and all of its climb into a plateau.
    """
    first = next((measurement for quality in qualities if (measurement := measured_value(quality)) is not None), None)
    return Unit.WIN_PROBABILITY if first is None or abs(first[1]) > _MAX_SCORE else Unit.RELATIVE


def improvement(unit: Unit, value: float, anchor: float, spread: float = 0.0) -> float:
    """Improvement of `value` over `anchor` in the unit; negative when it is worse.

    A win probability is that of a player who is d Elo ahead, 1 / (1 + 10^(-d/400)) (Elo, "The Rating of Chessplayers",
    1978), minus one half: 35 Elo are 0.05. A relative gain is a share of the anchor, or of the `spread` of all values
    so far where that is larger, because a share of a score near zero means nothing.
    """
    if unit is Unit.WIN_PROBABILITY:
        # The same curve by tanh, which keeps its precision for small differences and cannot overflow.
        return 0.5 * math.tanh((value - anchor) * math.log(10) / 800)
    scale = max(abs(anchor), spread)
    return (value - anchor) / scale if scale > 0 else 0.0


def _gains(
    history: Sequence[QualityReading], policy: StoppingPolicy
) -> tuple[list[float], dict[QualityMeasure, _Series]]:
    """Gain of each iteration over its anchor, 0 where it is too small to count; and the series of each measure.

    Each measure has an anchor of its own: from a mean of the top to a best there is a jump without any progress.
    """
    series: dict[QualityMeasure, _Series] = {}
    gains = []
    for reading in history:
        measurement = measured_value(reading.quality)
        gains.append(0.0)
        if measurement is None:
            continue
        measure, value = measurement
        values = series.setdefault(measure, _Series(value, value, value))
        values.add(reading.number, value)
        gain = improvement(policy.unit, value, values.anchor, values.spread)
        # The anchor moves with counted gains only, so that many small steps add up to one that counts.
        if gain >= policy.threshold - _EPSILON and value - values.anchor >= policy.noise_share * values.noise:
            values.anchor, gains[-1] = value, gain
    return gains, series


def _trailing_zeros(gains: Sequence[float]) -> int:
    return next((count for count, gain in enumerate(reversed(gains)) if gain > 0), len(gains))


def _judge_patience(gains: Sequence[float], stall_count: int, policy: StoppingPolicy) -> tuple[bool, str]:
    threshold = _format_gain(policy.threshold, policy.unit)
    stall = f"no improvement of {threshold} in the last {_format_iterations(stall_count)}"
    if stall_count >= policy.patience:
        return True, stall
    if gains and gains[-1] > 0:
        return False, f"improved by {_format_gain(gains[-1], policy.unit)}, at least {threshold}"
    if not stall_count:
        return False, "the first iteration is what later ones are measured by"
    return False, f"{stall}; patience is {policy.patience}"


def _climb_reason(history: Sequence[QualityReading], series: _SeriesByMeasure, policy: StoppingPolicy) -> str | None:
    """Reason against a plateau: a line through the last readings that rises by the threshold, beyond chance."""
    points = _recent_points(history, series, policy.patience)
    if policy.climb_errors is None or len(points) < _MIN_POINTS:
        return None
    slope, error = _fit_line(points)
    rise = _gain_of_rise(points, slope * (points[-1][0] - points[0][0]), policy.unit)
    if rise < policy.threshold - _EPSILON or slope <= policy.climb_errors * error:
        return None
    return f"the line through the last {_format_iterations(policy.patience)} rises by {_format_gain(rise, policy.unit)}"


def _judge_slope(
    history: Sequence[QualityReading], series: _SeriesByMeasure, policy: StoppingPolicy
) -> tuple[bool, str]:
    """Stop when even the upper confidence bound of the slope is under the threshold."""
    if len(history) < policy.window:
        return False, f"{_format_iterations(len(history))} so far; a slope is judged over {policy.window}"
    points, window = _recent_points(history, series, policy.window), _format_iterations(policy.window)
    if len(points) < _MIN_POINTS:
        return True, f"only {len(points)} of the last {window} were measured: too few for a slope"
    slope, error = _fit_line(points)
    gain = _gain_of_rise(points, slope + policy.confidence * error, policy.unit)
    threshold = _format_gain(policy.threshold, policy.unit)
    summary = f"the slope of the last {window} is at most {_format_gain(gain, policy.unit)} an iteration"
    if gain < policy.threshold - _EPSILON:
        return True, f"{summary}, under {threshold}"
    return False, f"{summary}, not under {threshold}"


def _recent_points(history: Sequence[QualityReading], series: _SeriesByMeasure, window: int) -> list[Point]:
    """Points of the last `window` iterations, of the measure that most of them have."""
    first = history[-window:][0].number
    candidates = [[point for point in values.values[-window:] if point[0] >= first] for values in series.values()]
    return max(candidates, key=len, default=[])


def _gain_of_rise(points: Sequence[Point], rise: float, unit: Unit) -> float:
    """Improvement that a rise from the mean of these points amounts to, in the unit."""
    values = [value for _, value in points]
    middle = math.fsum(values) / len(values)
    return improvement(unit, middle + rise, middle, max(values) - min(values))


def _fit_line(points: Sequence[Point]) -> tuple[float, float]:
    """Slope of the ordinary least-squares line, and its standard error (n - 2 degrees of freedom)."""
    count = len(points)
    mean_x, mean_y = math.fsum(x for x, _ in points) / count, math.fsum(y for _, y in points) / count
    width = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / width
    residual = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(max(0.0, residual) / (count - 2) / width)


def _format_gain(gain: float, unit: Unit) -> str:
    return f"{100 * gain:.3g} %" if unit is Unit.RELATIVE else f"{gain:.3g} in win probability"


def _format_iterations(count: int) -> str:
    return "1 iteration" if count == 1 else f"{count} iterations"


def _is_usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) <= _MAX_MAGNITUDE
