"""How much work those start in time who are still at work: a bound, since nobody knows when a task ends."""

import math


def started(busy: int, mean_seconds: float, left: float, one: float, deviations: float) -> float:
    """Seconds of work that `busy` workers start within the next `left` seconds, the last task of each being `one`.

    Their tasks take `mean_seconds` in all, on average, and end at that rate however long they have run (memoryless, as
    nothing better is known). So a worker is free in time with p = 1 - exp(-left / mean), has left / p - mean seconds
    then, on average, and begins one task more. How many are free is binomial; what counts is so many standard
    deviations fewer than expected. At none, and with tasks at work like those that wait, it is `left` for each.
    """
    if left <= 0:
        return 0.0
    free = -math.expm1(-left / mean_seconds)
    expected = busy * free
    surely = max(0.0, expected - deviations * math.sqrt(expected * (1 - free)))
    return surely * (left / free - mean_seconds + one)
