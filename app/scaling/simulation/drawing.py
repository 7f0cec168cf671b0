"""Drawing of runs as SVG: waiting tasks and workers over time."""

from collections.abc import Callable, Sequence
from html import escape

from app.scaling.simulation.engine import PoolSample, Run

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 1000, 220, 70, 40, 80, 56
# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_TICKS = 4

Column = tuple[float, float]


def svg(title: str, runs: Sequence[Run]) -> str:
    """All runs in one picture: waiting tasks above, workers below, with the busy ones of the first run as an area."""
    span = max((run.end for run in runs), default=1.0) or 1.0
    height = _TOP + 2 * (_PANEL + _GAP)
    below = _TOP + _PANEL + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#fff"/><g font-size="12">',
        f'<text x="{_LEFT}" y="22" font-size="16">{escape(title)}</text>',
        *_legend(runs),
        *_panel("tasks waiting", runs, lambda sample: sample.waiting, _TOP, span),
        *_panel("workers (filled: busy)", runs, lambda sample: sample.workers, below, span, lambda sample: sample.busy),
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(runs: Sequence[Run]) -> list[str]:
    step = 110
    return [
        f'<rect x="{_LEFT + place * step}" y="34" width="12" height="12" fill="{_colour(place)}"/>'
        f'<text x="{_LEFT + 17 + place * step}" y="45">{escape(run.scaler)}</text>'
        for place, run in enumerate(runs)
    ]


def _panel(
    name: str,
    runs: Sequence[Run],
    value: Callable[[PoolSample], int],
    top: int,
    span: float,
    area_value: Callable[[PoolSample], int] | None = None,
) -> list[str]:
    highest = max((value(sample) for run in runs for sample in run.samples), default=0) or 1
    lines = [_columns(run.samples, value, span) for run in runs]
    parts = [*_axes(name, highest, top, span)]
    if area_value and runs:
        area = _path(_columns(runs[0].samples, area_value, span), highest, top)
        parts.append(f'<path d="{area} V{top + _PANEL} H{_LEFT} Z" fill="{_colour(0)}" opacity="0.2"/>')
    # The first run last, so that it lies on top.
    return parts + [
        f'<path d="{_path(lines[place], highest, top)}" fill="none" stroke="{_colour(place)}"/>'
        for place in reversed(range(len(lines)))
    ]


def _axes(name: str, highest: int, top: int, span: float) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, top + _PANEL
    parts = [f'<text x="{_LEFT}" y="{top - 6}">{escape(name)}</text>']
    for tick in range(_TICKS + 1):
        y = bottom - _PANEL * tick / _TICKS
        x = _LEFT + (right - _LEFT) * tick / _TICKS
        parts.append(f'<path d="M{_LEFT} {y:.1f} H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{highest * tick / _TICKS:,.0f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_clock(span * tick / _TICKS)}</text>')
    return parts


def _columns(samples: Sequence[PoolSample], value: Callable[[PoolSample], int], span: float) -> list[Column]:
    """The highest value in each column of pixels: a day has more decisions than a screen has points."""
    maxima: dict[int, int] = {}
    for sample in samples:
        x = round((_WIDTH - _LEFT - _RIGHT) * sample.at / span)
        maxima[x] = max(maxima.get(x, 0), value(sample))
    return [(_LEFT + x, float(y)) for x, y in sorted(maxima.items())]


def _path(columns: Sequence[Column], highest: int, top: int) -> str:
    """A staircase: a value holds until the next decision."""
    points = [(x, top + _PANEL * (1 - y / highest)) for x, y in columns]
    steps = "".join(f" H{x:.0f} V{y:.1f}" for x, y in points[1:])
    first = f"M{points[0][0]:.0f} {points[0][1]:.1f}" if points else f"M{_LEFT} {top + _PANEL}"
    return first + steps


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
