"""Jobs that end soon after they began, as with a script or on a node that fails: each would be replaced at once."""

import math
from collections.abc import Collection, Iterable

from app.workers.rules.blocks import Block


class EarlyEnds:
    """Watches the jobs of blocks for those that end within so many seconds; `count` of such looks since one did not.

    One that was submitted and never listed counts as well. Times are of one clock, which is the caller's.
    """

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._seconds = seconds
        # Of each job when it was submitted, or last seen in the queue: it began no earlier.
        self._queued_at: dict[str, float] = {}
        self._last_at = -math.inf

    def expect(self, job_id: str, now: float) -> None:
        """Watch a job that was submitted."""
        self._queued_at[job_id] = now

    def excuse(self, job_ids: Iterable[str]) -> None:
        """Leave out jobs that are ended on purpose, for as long as they are still listed."""
        self._queued_at.update(dict.fromkeys(job_ids, -math.inf))

    def look(self, blocks: Collection[Block], now: float) -> list[str]:
        """The jobs that have ended early since the last look, now that there are these blocks."""
        present = {block.job_id for block in blocks}
        gone = [job_id for job_id in self._queued_at if job_id not in present]
        early = [job_id for job_id in gone if now - self._queued_at[job_id] < self._seconds]
        for job_id in gone:
            del self._queued_at[job_id]
        for block in blocks:
            # Only what this process has submitted: other loops of the same blocks end theirs on purpose.
            if not block.is_running and self._queued_at.get(block.job_id, -math.inf) != -math.inf:
                self._queued_at[block.job_id] = now
        if early:
            self.count, self._last_at = self.count + 1, now
        # One that began before the failure says nothing about it: another node, another script.
        elif any(self._last_at < began and now - began >= self._seconds for began in self._queued_at.values()):
            self.count = 0
        return early
