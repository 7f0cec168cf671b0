"""A chart of throughput over the number of workers, as SVG: curves, and levels that do not depend on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 610, 40, 420
_COLOURS = ("#1f5fa8", "#c8501e", "#2e8b57", "#7a3e9d", "#8a6d1d", "#b03060", "#4d4d4d", "#008b8b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Medians by number of workers."""

    name: str
    points: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A median that does not depend on the number of workers."""

    name: str
    value: float


def draw(items: Sequence[Curve | Level], *, unit: float, unit_name: str) -> str:
    """Draw on a logarithmic grid; the legend has the best value of each, also as a multiple of `unit`.

    There must be at least one curve.
    """
    sizes = sorted({size for item in items if isinstance(item, Curve) for size in item.points})
    scale = _Scale(sizes, [value for item in items for value in _values(item)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 20, "tasks a second, by number of workers (both logarithmic)", size=14),
        *_grid(scale, sizes),
    ]
    ordered = sorted(items, key=lambda item: -max(_values(item)))
    for place, item in enumerate(ordered):
        colour = _COLOURS[place % len(_COLOURS)]
        parts += _curve(item, scale, colour) if isinstance(item, Curve) else _level(item, scale, colour)
        best = max(_values(item))
        ratio = f"{best / unit:.2f}" if unit else "-"
        parts += [
            f'<rect x="{_RIGHT + 15}" y="{_TOP + 20 * place}" width="12" height="4" fill="{colour}"/>',
            _text(_RIGHT + 32, _TOP + 6 + 20 * place, f"{item.name}: {best:,.0f} ({ratio})"),
        ]
    parts.append(_text(_RIGHT + 15, _TOP + 16 + 20 * len(ordered), f"in brackets: the best, / {unit_name}", size=11))
    return "\n".join([*parts, "</svg>", ""])


def _values(item: Curve | Level) -> list[float]:
    return list(item.points.values()) if isinstance(item, Curve) else [item.value]


class _Scale:
    """Places of values on the chart."""

    def __init__(self, sizes: Sequence[int], values: Sequence[float]) -> None:
        self._first, self._last = math.log(min(sizes)), math.log(max(*sizes, min(sizes) + 1))
        self.lowest = 10 ** math.floor(math.log10(max(1.0, min(values))))
        self.highest = 10 ** math.ceil(math.log10(max(10.0, *values)))

    def x(self, size: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log(size) - self._first) / (self._last - self._first)

    def y(self, value: float) -> float:
        share = math.log(max(value, self.lowest) / self.lowest) / math.log(max(self.highest / self.lowest, 10))
        return _BOTTOM - (_BOTTOM - _TOP) * share


def _grid(scale: _Scale, sizes: Sequence[int]) -> list[str]:
    parts = []
    decade = scale.lowest
    while decade <= scale.highest:
        for step in (1, 2, 5):
            value = decade * step
            if value <= scale.highest:
                y = scale.y(value)
                parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="#e3e3e3"/>')
                parts.append(_text(_LEFT - 8, y + 4, f"{value:,}", anchor="end"))
        decade *= 10
    for size in sizes:
        x = scale.x(size)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}" stroke="#e3e3e3"/>')
        parts.append(_text(x, _BOTTOM + 18, f"{size:,}", anchor="middle"))
    return parts


def _curve(curve: Curve, scale: _Scale, colour: str) -> list[str]:
    places = [(scale.x(size), scale.y(value)) for size, value in sorted(curve.points.items())]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
    return [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>', *dots]


def _level(level: Level, scale: _Scale, colour: str) -> list[str]:
    y = scale.y(level.value)
    dashed = 'stroke-width="1.5" stroke-dasharray="6 4"'
    return [f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="{colour}" {dashed}/>']


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
