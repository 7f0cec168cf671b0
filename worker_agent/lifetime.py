"""The end of the time that a worker has, where it is part of something that ends, such as a job at its walltime."""

import time
from collections.abc import Callable
from threading import Timer

# For the last report to arrive.
_REPORT_SECONDS = 5.0


class Lifetime:
    """The time in which tasks must end: a little less than the seconds until everything ends."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds - _REPORT_SECONDS
        self._timer: Timer | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds in which a task must end; none are left at 0."""
        return max(0.0, self._ends_at - time.monotonic())

    def call_before_the_end(self, seconds: float, stop: Callable[[], None]) -> None:
        """Call `stop` so many seconds before tasks must have ended, at once where less is left."""
        self._timer = Timer(max(0.0, self.seconds_left - seconds), stop)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
