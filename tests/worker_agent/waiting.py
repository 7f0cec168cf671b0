"""Waiting for conditions, not for time."""

import time
from collections.abc import Callable

PATIENCE = 60.0


def until(condition: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Raises AssertionError when the condition does not come true."""
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)
