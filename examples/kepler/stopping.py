"""When to stop thinking: hard limits first, then an anchored best with patience."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a research goal may go on. `threshold` is the relative fall of the error that counts as progress."""

    min_rounds: int = 3
    max_rounds: int = 25
    time_limit_seconds: float = 300.0
    patience: int = 8
    threshold: float = 0.01


def stagnation(errors: Sequence[float], limits: Limits) -> str | None:
    """The reason to stop, if the best error of the last rounds has not fallen noticeably below the anchor.

    The anchor moves only on a gain of at least the threshold, so that many small steps add up to one that counts.
    """
    anchor, fruitless = math.inf, 0
    for error in errors:
        if error < anchor and error <= anchor * (1.0 - limits.threshold):
            anchor, fruitless = error, 0
        else:
            fruitless += 1
    if len(errors) < limits.min_rounds or fruitless < limits.patience:
        return None
    return f"no improvement of {100.0 * limits.threshold:g} % in {fruitless} rounds"


def time_is_short(elapsed_seconds: float, rounds: int, limits: Limits) -> bool:
    """Whether one more round of mean length would overrun the time limit."""
    mean = elapsed_seconds / rounds if rounds else 0.0
    return elapsed_seconds + mean > limits.time_limit_seconds
