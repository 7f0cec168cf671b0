"""Figures as a plain table, or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.figures import Figure
from benchmarks.machine import Machine

_VERDICT = {None: "", True: "met", False: "missed"}


def table(machine: Machine, figures: Sequence[Figure]) -> str:
    """One figure a line."""
    widest = max(len(figure.name) for figure in figures)
    note = ["Others were using it: compare ratios only."] if machine.is_busy else []
    return "\n".join([str(machine), *note, "", *(_line(figure, widest) for figure in figures)])


def as_json(machine: Machine, figures: Sequence[Figure]) -> str:
    """An object with the machine and a list of the figures."""
    rows = [{**asdict(figure), "met": figure.is_met} for figure in figures]
    return json.dumps({"machine": asdict(machine), "figures": rows}, indent=2)


def _line(figure: Figure, width: int) -> str:
    digits = 0 if figure.value >= 100 else 2
    value = f"{figure.value:,.{digits}f}"
    return f"{figure.name:<{width}}  {value:>8} {figure.unit:<9} {_aim(figure)}".rstrip()


def _aim(figure: Figure) -> str:
    if figure.target is None:
        return ""
    sign = ">=" if figure.more_is_better else "<"
    return f"{sign} {figure.target:,g}: {_VERDICT[figure.is_met]}"
