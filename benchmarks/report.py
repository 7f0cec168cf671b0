"""Figures as a plain table, or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.figures import Figure, Section
from benchmarks.machine import Machine

_VERDICT = {None: "", True: "met", False: "missed"}
_WIDEST = 60


def table(machine: Machine, sections: Sequence[Section]) -> str:
    """One figure a line: the median, and in brackets the least and the greatest of its rounds."""
    note = ["Others were using it: compare ratios only."] if machine.is_busy else []
    lines = [str(machine), *note]
    for section in sections:
        width = min(_WIDEST, max((len(figure.name) for figure in section.figures), default=0))
        lines += ["", section.title, *(f"  {_line(figure, width)}" for figure in section.figures)]
    return "\n".join(lines)


def as_json(machine: Machine, sections: Sequence[Section]) -> str:
    """An object with the machine and a list of the sections."""
    documents = [
        {"title": section.title, "figures": [{**asdict(figure), "met": figure.is_met} for figure in section.figures]}
        for section in sections
    ]
    return json.dumps({"machine": asdict(machine), "sections": documents}, indent=2)


def _line(figure: Figure, width: int) -> str:
    if figure.value is None:
        return f"{figure.name:<{width}}  {figure.note}"
    spread = ""
    if figure.least is not None and figure.greatest is not None:
        spread = f"({_number(figure.least)} to {_number(figure.greatest)})"
    return f"{figure.name:<{width}}  {_number(figure.value):>9} {figure.unit:<9} {spread:<20} {_aim(figure)}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.{0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def _aim(figure: Figure) -> str:
    if figure.target is None:
        return ""
    sign = ">=" if figure.more_is_better else "<="
    return f"{sign} {figure.target:,g}: {_VERDICT[figure.is_met]}"
