"""Exponential backoff with full jitter between repeated calls."""

from collections.abc import Callable
from random import SystemRandom

BASE_SECONDS = 0.2
CAP_SECONDS = 10.0
_random = SystemRandom()


def full_jitter(
    attempt: int,
    *,
    cap: float = CAP_SECONDS,
    random: Callable[[], float] = _random.random,
) -> float:
    """Seconds to wait before attempt number `attempt`; 0.0 before the first, which is number 0.

    U(0, min(cap, 0.2 * 2^(attempt - 1))): "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if attempt <= 0:
        return 0.0
    return random() * min(cap, BASE_SECONDS * 2.0 ** min(attempt - 1, 60))
