"""Charts with axes, drawn on the server as paths of SVG between labels of HTML, so that they need no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1000, 260
# Beyond so many points a curve has no dots: they would cover it.
_MAX_DOTS = 120
_TICKS = 4
_SIZES = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86_400.0, "d"))
UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A curve to draw: its name, its style, its points from left to right, and the text of each."""

    name: str
    style: str
    points: Points
    texts: Sequence[str] = ()
    is_stepped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Labels at equal distances, from the least to the greatest."""

    low: float
    high: float
    labels: Sequence[str]

    def share(self, value: float) -> float:
        """The place of a value between the ends, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve as it is drawn: the path of its line, and those of its dots with their texts."""

    name: str
    style: str
    line: str
    dots: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves between two axes, with a vertical line at a limit where one is near, and what they say in words."""

    curves: Sequence[Curve]
    across: Axis
    upright: Axis
    across_name: str
    upright_name: str
    label: str
    limit: str | None = None
    limit_name: str = ""


def chart(
    series: Sequence[Series], *, across: str, upright: str, label: str, limit: float | None = None, limit_name: str = ""
) -> Chart | None:
    """The chart of what has points; None where nothing has two. Points before 0 are so long ago, and so labelled."""
    drawn = [one for one in series if len(one.points) > 1]
    if not drawn:
        return None
    ends = [x for one in drawn for x, _ in one.points]
    near = limit if limit is not None and limit <= 2 * max(ends) else None
    across_axis = axis(min(0.0, *ends), max(0.0, *(ends if near is None else [*ends, near])))
    heights = [y for one in drawn for _, y in one.points]
    upright_axis = axis(min(heights), max(heights))
    return Chart(
        curves=[_curve(one, across_axis, upright_axis) for one in drawn],
        across=across_axis,
        upright=upright_axis,
        across_name=across,
        upright_name=upright,
        label=label,
        limit=None if near is None else f"M{_x(across_axis, near)} 0V{HEIGHT}",
        limit_name=limit_name,
    )


def axis(low: float, high: float) -> Axis:
    """An axis whose labels are round numbers, and which has both values on it."""
    span = high - low or abs(high) or 1.0
    # Of numbers that are almost the same, floats can tell no more steps.
    span = max(span, 1e-9 * max(abs(low), abs(high)))
    size = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size * _TICKS >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = next((digits for digits in range(12) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 12)
    labels = [f"{number * step + 0.0:,.{digits}f}" for number in range(first, last + 1)]
    return Axis(low=first * step, high=last * step, labels=labels)


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a span of time is some three digits at most, in seconds, and its name."""
    return next(((size, name) for size, name in reversed(_SIZES) if seconds >= 3 * size), _SIZES[0])


def _x(across: Axis, value: float) -> float:
    return round(WIDTH * across.share(value), 1)


def _curve(series: Series, across: Axis, upright: Axis) -> Curve:
    places = [(_x(across, x), round(HEIGHT * (1 - upright.share(y)), 1)) for x, y in series.points]
    line = f"M{places[0][0]} {places[0][1]}"
    line += "".join(f"H{x}V{y}" if series.is_stepped else f"L{x} {y}" for x, y in places[1:])
    dots = zip(places, series.texts, strict=True) if series.texts and len(places) <= _MAX_DOTS else ()
    # A line of no length has round ends, which stay round however wide the chart is.
    return Curve(name=series.name, style=series.style, line=line, dots=[(f"M{x} {y}h0", text) for (x, y), text in dots])
