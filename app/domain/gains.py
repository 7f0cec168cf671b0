"""How much better an agent's results get with more compute: the slope of quality over doublings of time.

An ordinary least-squares line; of its slope the lower end of a one-sided interval counts, so that chance promises
nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.performance import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class GainPolicy:
    """What it takes to say anything."""

    # Fewer points give a line through anything.
    least_results: int = 20
    # Doublings: where all results took about as long as each other, nothing is seen of what more time would bring.
    least_spread: float = 0.5
    # One-sided 95 %, as for the effectiveness.
    confidence: float = 1.64
    # Shorter ones are mostly overhead.
    least_seconds: float = 0.1


def quality_gain(results: Sequence[Result], policy: GainPolicy = GainPolicy()) -> float | None:
    """Quality gained by each doubling of the time of a task; 0 when none is shown, None when nothing is known."""
    points = [
        (math.log2(max(policy.least_seconds, result.seconds)), result.quality)
        for result in results
        if result.succeeded and result.quality is not None and result.seconds is not None
    ]
    if len(points) < policy.least_results:
        return None
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if math.sqrt(spread / count) < policy.least_spread:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return max(0.0, slope - policy.confidence * math.sqrt(rest / (count - 2) / spread))
