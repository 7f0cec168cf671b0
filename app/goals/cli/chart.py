"""The quality of a goal over the compute that it cost: as characters for a terminal, as SVG for a browser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app.terminal.client import Json

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 420, 80, 40, 80, 60
# Colors of the Okabe-Ito palette, which color-blind readers can tell apart.
_BEST_COLOR, _TOP_COLOR, _TEXT_COLOR = "#0072b2", "#d55e00", "#000000"
_TICKS = 4
_COLUMNS, _ROWS = 60, 8
_EMPTY = f'<text x="{_LEFT}" y="{_TOP + 20}">nothing was measured yet</text>'

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Points of the best and of the top, by seconds of compute; by iterations where no compute was measured."""

    best: Sequence[Point]
    top: Sequence[Point]
    unit: str

    @property
    def points(self) -> list[Point]:
        """Points of both curves."""
        return [*self.best, *self.top]

    @property
    def ranges(self) -> tuple[Point, Point]:
        """Lowest and highest x, and lowest and highest y, of both curves."""
        return _value_range([x for x, _ in self.points]), _value_range([y for _, y in self.points])


def curves(iterations: Sequence[Json]) -> Curves:
    """Quality of the iterations of a goal over its compute."""
    has_compute = any(row["compute_seconds"] > 0 for row in iterations)
    x_name, unit = ("compute_seconds", "s of compute") if has_compute else ("iteration", "iterations")
    points = {
        name: [(row[x_name], row[name]) for row in iterations if row[name] is not None]
        for name in ("quality", "top_quality")
    }
    return Curves(best=points["quality"], top=points["top_quality"], unit=unit)


def draw_text(chart: Curves) -> str:
    """Draw a chart of characters: ● the best, ○ the top; empty where nothing was measured."""
    if not chart.points:
        return ""
    (x_low, x_high), (y_low, y_high) = chart.ranges
    rows = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for points, sign in ((chart.top, "○"), (chart.best, "●")):
        for x, y in points:
            rows[_ROWS - 1 - _to_cell(y, y_low, y_high, _ROWS)][_to_cell(x, x_low, x_high, _COLUMNS)] = sign
    labels = {0: _format_number(y_high), _ROWS - 1: _format_number(y_low)}
    lines = [f"{labels.get(row, ''):>9} │{''.join(signs).rstrip()}" for row, signs in enumerate(rows)]
    ends = f"{_format_number(x_low)}".ljust(_COLUMNS - 18) + f"{_format_number(x_high)} {chart.unit}"
    return "\n".join([*lines, f"{'':>9} └{'─' * _COLUMNS}", f"{'':>11}{ends}"])


def draw_svg(goal: Json, iterations: Sequence[Json]) -> str:
    """Draw the same chart as SVG, with the reason for which the goal has stopped."""
    chart = curves(iterations)
    title = f"{goal['id']}: {goal['objective']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#fff"/><g font-size="12">',
        f'<text x="{_LEFT}" y="22" font-size="16">{escape(title[:110])}</text>',
        f'<text x="{_LEFT}" y="44">{escape(_state_line(goal))}</text>',
        *(_draw_curves(chart) if chart.points else [_EMPTY]),
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


def _state_line(goal: Json) -> str:
    return f"{goal['state']} after {goal['iterations']} iterations" + (f": {goal['reason']}" if goal["reason"] else "")


def _draw_curves(chart: Curves) -> list[str]:
    x_range, y_range = chart.ranges
    parts = _axes(x_range, y_range, chart.unit)
    for name, points, color in (("the best", chart.best, _BEST_COLOR), ("the top, on average", chart.top, _TOP_COLOR)):
        pixels = [_to_pixels(point, x_range, y_range) for point in points]
        if pixels:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in pixels]
            x, y = pixels[-1]
            parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{color}">{name}</text>')
    return parts


def _axes(x_range: Point, y_range: Point, unit: str) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text x="{_LEFT}" y="{_TOP - 10}" fill="{_TEXT_COLOR}">quality</text>']
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        # SVG counts y downwards.
        x, y = _LEFT + (right - _LEFT) * share, bottom - (bottom - _TOP) * share
        x_value, y_value = (low + (high - low) * share for low, high in (x_range, y_range))
        parts.append(f'<path d="M{_LEFT} {y:.1f} H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_format_number(y_value)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_format_number(x_value)}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 38}" text-anchor="end">{escape(unit)}</text>')
    return parts


def _to_pixels(point: Point, x_range: Point, y_range: Point) -> Point:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    x = _LEFT + width * (point[0] - x_range[0]) / (x_range[1] - x_range[0])
    return x, _TOP + height * (1 - (point[1] - y_range[0]) / (y_range[1] - y_range[0]))


def _value_range(values: Sequence[float]) -> Point:
    """Lowest and highest value; where these are equal, with a margin around them, since a range must not be empty."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = max(1.0, abs(low) * 0.01)
    return low - room, high + room


def _to_cell(value: float, low: float, high: float, places: int) -> int:
    return round((value - low) / (high - low) * (places - 1))


def _format_number(value: float) -> str:
    if value and abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or math.isclose(value, round(value)) else f"{value:.1f}"
