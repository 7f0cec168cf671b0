"""Numbers over time in one line of text."""

from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"


def line(values: Sequence[float | None], least: float = 0.0, most: float | None = None) -> str:
    """A block for each value, from `least` to `most` (the largest of them, if not given); a blank where there is none.

    Values outside are drawn at the edge.
    """
    known = [value for value in values if value is not None]
    top = most if most is not None else max(known, default=least)
    return "".join(" " if value is None else _block(value, least, top) for value in values)


def _block(value: float, least: float, most: float) -> str:
    share = (value - least) / (most - least) if most > least else 0.0
    return _LEVELS[round(max(0.0, min(1.0, share)) * (len(_LEVELS) - 1))]
