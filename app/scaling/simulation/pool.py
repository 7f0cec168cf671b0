"""Workers of the simulation, alike and so counted: of those told to go, the first that is free goes."""

from bisect import insort

_TURN_WITHIN_SECONDS = 300.0


class Pool:
    """How many are idle, busy, starting or on their way out, what they have cost, and how often the pool turned round.

    A turn is a real start after a real removal, or the other way round, within 300 s. Decisions are not counted: who
    drains is removed when its task ends. Deaths and their replacements are nobody's decision and do not count.
    """

    def __init__(self, workers: int, *, least: int, most: int) -> None:
        self.idle = workers
        self.busy = 0
        self.draining = 0
        self.starting: list[float] = []
        self.worker_seconds = 0.0
        self.turns = 0
        self.breaches = 0
        self.peak = workers
        self._least, self._most = least, most
        self._last_move, self._last_moved_at = 0, 0.0
        self._settled_at = 0.0

    @property
    def workers(self) -> int:
        """Those that are here to stay or on their way in."""
        return self.idle + self.busy + len(self.starting)

    @property
    def total(self) -> int:
        """Everybody who takes a place, and costs."""
        return self.workers + self.draining

    def resize(self, target: int, now: float, ready_at: float, *, cancel_starting: bool) -> None:
        """Start or remove towards `target`; busy workers end their task first, and count until then."""
        missing = min(target - self.workers, self._most - self.total)
        if missing > 0:
            self._moved(+1, now)
            self.start(missing, now, ready_at)
        elif target < self.workers:
            self._shrink(self.workers - target, now, cancel_starting=cancel_starting)
        self._check()

    def start(self, count: int, now: float, ready_at: float) -> None:
        """So many more workers, ready later."""
        self.settle(now)
        for _ in range(count):
            insort(self.starting, ready_at)
        self.peak = max(self.peak, self.total)

    def leave(self, now: float) -> None:
        """A draining worker has ended its task."""
        self.settle(now)
        self._moved(-1, now)
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
        cancelled = min(count, len(self.starting)) if cancel_starting else 0
        del self.starting[len(self.starting) - cancelled :]
        idle = min(count - cancelled, self.idle)
        self.idle -= idle
        told = min(count - cancelled - idle, self.busy)
        self.busy -= told
        self.draining += told
        if cancelled + idle:
            self._moved(-1, now)

    def _moved(self, direction: int, now: float) -> None:
        if self._last_move == -direction and now - self._last_moved_at <= _TURN_WITHIN_SECONDS:
            self.turns += 1
        self._last_move, self._last_moved_at = direction, now

    def _check(self) -> None:
        if self.workers < self._least or self.total > self._most:
            self.breaches += 1
