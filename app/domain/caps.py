"""How many workers a resource suffices for: what the pool may not grow beyond."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """How many workers a resource suffices for, by the resource's name in words."""

    resource: str
    workers: int


def permit_cap(limit: int, held_share: float) -> Cap | None:
    """How many workers the language model's permits suffice for; None when tasks hold none.

    `held_share` is the mean share of a task's time for which it holds a permit. A fifth more workers than that keeps
    every permit in use: measured, waits are those without a cap, at less than half the cost in overload.
    """
    if held_share <= 0:
        return None
    return Cap(resource="LLM permits", workers=math.ceil(1.2 * limit / held_share))
