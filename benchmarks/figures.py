"""Figures of one run: the median of its rounds with the least and the greatest of them, and a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number; `target` is in the same unit, a lower bound or an upper one. A `note` may stand in place of it."""

    name: str
    value: float | None
    unit: str = ""
    least: float | None = None
    greatest: float | None = None
    target: float | None = None
    more_is_better: bool = True
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        values: Sequence[float],
        unit: str = "",
        *,
        target: float | None = None,
        more_is_better: bool = True,
    ) -> Self:
        """The figure of values that were measured in several rounds."""
        return cls(
            name=name,
            value=median(values),
            unit=unit,
            least=min(values) if len(values) > 1 else None,
            greatest=max(values) if len(values) > 1 else None,
            target=target,
            more_is_better=more_is_better,
        )

    @property
    def is_met(self) -> bool | None:
        """Whether the target was reached; None when there is none."""
        if self.target is None or self.value is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Figures that belong together."""

    title: str
    figures: Sequence[Figure]
