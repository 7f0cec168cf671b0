"""Cancelling many tasks by what they have in common: in batches, each in a transaction of its own.

Readers of events wait for the oldest transaction, so none may last long. A call that was interrupted has done some of
its work, and may be repeated.
"""

from dataclasses import dataclass

from app.db.database import Database
from app.queue.store import cancel as cancel_store
from app.queue.store.listing import Selection

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many were selected when the call began, how many of them it cancelled, and how many that waited for those."""

    matched: int
    cancelled: int
    dependents: int

    @property
    def remaining(self) -> int:
        """How many are left."""
        return max(0, self.matched - self.cancelled)


async def count(database: Database, selection: Selection) -> Outcome:
    """What `cancel` would find; nothing is done."""
    async with database.transaction() as connection:
        return Outcome(matched=await cancel_store.count(connection, selection), cancelled=0, dependents=0)


async def cancel(database: Database, selection: Selection, *, limit: int, reason: str) -> Outcome:
    """End up to `limit` of the selected live tasks, those that were submitted first, and all that wait for them.

    Workers that run one hear of it with their next heartbeat or call.
    """
    async with database.transaction() as connection:
        matched = await cancel_store.count(connection, selection)
        ids = await cancel_store.find(connection, selection, limit)
    cancelled = dependents = 0
    for start in range(0, len(ids), BATCH):
        async with database.transaction() as connection:
            done = await cancel_store.cancel(connection, ids[start : start + BATCH], selection, reason)
        cancelled, dependents = cancelled + done.selected, dependents + done.dependents
    return Outcome(matched=matched, cancelled=cancelled, dependents=dependents)
