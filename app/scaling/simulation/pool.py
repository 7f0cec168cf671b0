"""Workers of the simulation as counts, since they are alike: of the draining ones the first that is free leaves."""

from bisect import insort

_TURN_WITHIN_SECONDS = 300.0


class Pool:
    """Counts of idle, busy, starting and draining workers, with their cost and the turns of the pool.

    A turn is a real start after a real removal, or the reverse, within 300 s. A draining worker is removed when its
    task ends, not at the decision. Deaths and their replacements are nobody's decision and do not count.
    """

    def __init__(self, workers: int, *, min_workers: int, max_workers: int) -> None:
        self.idle = workers
        self.busy = 0
        self.draining = 0
        self.starting: list[float] = []
        self.worker_seconds = 0.0
        self.turns = 0
        self.breaches = 0
        self.peak = workers
        self._min_workers, self._max_workers = min_workers, max_workers
        self._last_move, self._last_moved_at = 0, 0.0
        self._settled_at = 0.0

    @property
    def workers(self) -> int:
        """Workers that stay or start."""
        return self.idle + self.busy + len(self.starting)

    @property
    def total(self) -> int:
        """All workers that take a place and cost, draining ones included."""
        return self.workers + self.draining

    def resize(self, target: int, now: float, ready_at: float, *, cancel_starting: bool) -> None:
        """Start or remove towards `target`; busy workers end their task first, and count until then."""
        starts = min(target - self.workers, self._max_workers - self.total)
        if starts > 0:
            self._note_move(+1, now)
            self.start(starts, now, ready_at)
        elif target < self.workers:
            self._shrink(self.workers - target, now, cancel_starting=cancel_starting)
        self._check()

    def start(self, count: int, now: float, ready_at: float) -> None:
        """Start `count` workers, which are ready later."""
        self.settle(now)
        for _ in range(count):
            insort(self.starting, ready_at)
        self.peak = max(self.peak, self.total)

    def leave(self, now: float) -> None:
        """A draining worker has ended its task."""
        self.settle(now)
        self._note_move(-1, now)
        self.draining -= 1

    def die(self, now: float) -> None:
        """A worker is found dead in the middle of its task."""
        self.settle(now)
        if self.busy:
            self.busy -= 1
        else:
            self.draining -= 1

    def settle(self, now: float) -> None:
        """Add up what the pool has cost until now."""
        self.worker_seconds += self.total * (now - self._settled_at)
        self._settled_at = now

    def _shrink(self, count: int, now: float, *, cancel_starting: bool) -> None:
        self.settle(now)
        cancellations = min(count, len(self.starting)) if cancel_starting else 0
        # The latest to be ready are cancelled first.
        del self.starting[len(self.starting) - cancellations :]
        idle = min(count - cancellations, self.idle)
        self.idle -= idle
        drains = min(count - cancellations - idle, self.busy)
        self.busy -= drains
        self.draining += drains
        if cancellations + idle:
            self._note_move(-1, now)

    def _note_move(self, direction: int, now: float) -> None:
        if self._last_move == -direction and now - self._last_moved_at <= _TURN_WITHIN_SECONDS:
            self.turns += 1
        self._last_move, self._last_moved_at = direction, now

    def _check(self) -> None:
        if self.workers < self._min_workers or self.total > self._max_workers:
            self.breaches += 1
