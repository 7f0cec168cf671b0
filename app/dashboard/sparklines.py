"""Small curves, drawn on the server as paths of SVG, so that they need no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

WIDTH, HEIGHT = 120, 28
_MARGIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparkline:
    """The path of a curve, that of the area below it, and what it says in words."""

    line: str
    area: str
    label: str


def sparkline(values: Sequence[float | None], unit: str, ceiling: float = 0.0) -> Sparkline | None:
    """The curve of values at equal distances, from 0 to the largest of them or `ceiling`; None without two of them."""
    return _draw(tuple(values), unit, ceiling)


# Curves change by the minute, and pages show them again several times a second.
@lru_cache(maxsize=256)
def _draw(values: tuple[float | None, ...], unit: str, ceiling: float) -> Sparkline | None:
    measured = [value for value in values if value is not None]
    if len(measured) < 2:
        return None
    top = max(*measured, ceiling) or 1.0
    step = WIDTH / (len(values) - 1)
    points = [
        (round(number * step, 1), round(HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * value / top, 1))
        for number, value in enumerate(values)
        if value is not None
    ]
    line = "M" + "L".join(f"{x} {y}" for x, y in points)
    area = f"{line}L{points[-1][0]} {HEIGHT}L{points[0][0]} {HEIGHT}Z"
    low, high = min(measured), max(measured)
    return Sparkline(
        line=line, area=area, label=f"last hour: {low:,.0f} to {high:,.0f} {unit}, now {measured[-1]:,.0f}"
    )
