"""Figures as a plain table, or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.figures import Figure

_VERDICT = {None: "", True: "met", False: "missed"}


def table(figures: Sequence[Figure]) -> str:
    """One figure a line."""
    widest = max(len(figure.name) for figure in figures)
    return "\n".join(_line(figure, widest) for figure in figures)


def as_json(figures: Sequence[Figure]) -> str:
    """A list of objects."""
    return json.dumps([{**asdict(figure), "met": figure.met} for figure in figures], indent=2)


def _line(figure: Figure, width: int) -> str:
    digits = 0 if figure.value >= 100 else 2
    value = f"{figure.value:,.{digits}f}"
    return f"{figure.name:<{width}}  {value:>8} {figure.unit:<9}{_aim(figure)}".rstrip()


def _aim(figure: Figure) -> str:
    if figure.target is None:
        return ""
    sign = ">=" if figure.more_is_better else "<"
    return f"target {sign} {figure.target:,g}: {_VERDICT[figure.met]}"
