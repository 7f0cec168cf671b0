"""Progress of a supervisor, for observers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from examples.kepler.report import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """State of a run; `news` describes the last step in words, and is empty when only counts have changed."""

    round: int
    phase: str
    submitted: Mapping[str, int]
    done: Mapping[str, int]
    best_formula: str | None
    best_error: float | None
    best_elo: float | None
    points: tuple[Point, ...]
    compute_seconds: float
    news: str


Observer: TypeAlias = Callable[[Progress], None]
