"""Limits on the workers that one claim serves."""

from app.queue.broker.calls import Waiter

# For fewer a claim is not divided: each costs the database as much before its first row as a dozen rows.
_LEAST_WORKERS = 32
# As many characters of results as one claim may have; the one that reaches it is the last.
_RESULT_CHARACTERS = 1 << 20


class ClaimLimit:
    """The limit of one claim, which is told of each of its workers."""

    __slots__ = ("_characters", "_max_workers", "workers")

    def __init__(self, max_workers: int) -> None:
        self.workers = 0
        self._max_workers, self._characters = max_workers, 0

    def is_reached_by(self, waiter: Waiter) -> bool:
        """Whether this one, which the claim serves too, is the last."""
        self.workers += 1
        if waiter.call.result is not None:
            self._characters += waiter.call.result.size
        return self.workers >= self._max_workers or self._characters >= _RESULT_CHARACTERS


class ClaimLimits:
    """Lets two groups of workers take turns: one is answered while the database works for the other.

    By themselves a large and a small group form, and the time of the large one is hidden behind nothing: with 128
    workers 101 and 27, which did a seventh less than 64 and 64.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ClaimLimit(0)

    def next_claim(self, waiting: int, max_workers: int) -> ClaimLimit:
        """The limit of the next claim, of `max_workers`: half of those that wait or were served by the last one."""
        half = (waiting + self._last.workers + 1) // 2
        self._last = ClaimLimit(min(max_workers, max(half, _LEAST_WORKERS)))
        return self._last
