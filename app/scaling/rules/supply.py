"""Work that workers at work start in time, once they are free."""

import math


def work_started_in_time(
    busy: int, mean_seconds: float, remaining: float, task_seconds: float, deviations: float
) -> float:
    """Seconds of work that `busy` workers start within `remaining` seconds, the last task of each `task_seconds` long.

    Their tasks take `mean_seconds` in all, on average, and end at that rate however long they have run (memoryless, as
    nothing better is known). So a worker is free in time with p = 1 - exp(-remaining / mean), then has
    remaining / p - mean seconds on average, and begins one task more. The number of free workers is binomial, and
    counts as `deviations` standard deviations below its mean: max(0, busy p - deviations sqrt(busy p (1 - p))).
    """
    if remaining <= 0:
        return 0.0
    free_share = -math.expm1(-remaining / mean_seconds)
    free_workers = busy * free_share
    certain_workers = max(0.0, free_workers - deviations * math.sqrt(free_workers * (1 - free_share)))
    return certain_workers * (remaining / free_share - mean_seconds + task_seconds)
