"""Folds: add events to sums batch by batch, so that none is left out and none is counted twice."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

# One turn stays short, and a backlog is worked off over several.
MAX_BATCHES = 5
# The folds of events, by the names of their marks.
GOALS, MINUTES, PERFORMANCE = "goals", "minutes", "performance"
OF_EVENTS = (GOALS, MINUTES, PERFORMANCE)
# The first transaction whose events one of them has still to count; 0 where it has not begun.
FIRST_UNFOLDED = f"""(
    SELECT min(coalesce(transaction, 0)) FROM unnest('{{{", ".join(OF_EVENTS)}}}'::text[]) AS fold (name)
    LEFT JOIN folds USING (name)
)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """The last position (transaction, seq) up to which later statements see all that will ever be there.

    `is_held` says whether an open transaction keeps it back. Sequence numbers alone would not do, because they become
    visible out of order: a reader would skip the event of a transaction that commits late.
    """

    transaction: int
    seq: int
    is_held: bool

    @property
    def until(self) -> int:
        """The first transaction that folds, which know only whole ones, leave out."""
        return self.transaction + self.is_held


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedBatch:
    """Number of events that were folded, and whether more are waiting."""

    events: int
    has_more: bool


async def fold_batches(
    connection: AsyncConnection, fold: Callable[[AsyncConnection], Awaitable[FoldedBatch]]
) -> dict[str, Any]:
    """Fold at most a few batches; return the number of events folded, and whether any are left."""
    events = 0
    for _ in range(MAX_BATCHES):
        batch = await fold(connection)
        events += batch.events
        if not batch.has_more:
            return {"events": events}
    return {"events": events, "behind": True}


async def horizon(connection: AsyncConnection, *tables: str) -> Horizon:
    """Return the horizon of these tables. The transaction is READ COMMITTED, so that its next statement sees more."""
    written = ", ".join(f"'{table}'" for table in tables)
    row = (await connection.execute(text(f"SELECT * FROM convener_horizon({written})"))).mappings().one()
    return Horizon(**row)


def mark(name: str) -> str:
    """Return the statement that reads the mark of a fold, `since`, and `until` where it is after its next turn."""
    # A transaction that was old when it began to write takes the horizon back, but not the mark.
    return f"""SELECT since, greatest(since, CAST(:until AS bigint)) AS until
    FROM (SELECT coalesce((SELECT transaction FROM folds WHERE name = '{name}'), 0) AS since) stored"""


def has_events(name: str) -> str:
    """Return the condition that there are events for the next turn of a fold, or that some of them are still open."""
    return f"""EXISTS (SELECT FROM events
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{name}'), 0))"""


def batch(name: str) -> str:
    """Return parts of a statement that select the next events of a fold: those from `mark.since` up to `batch.until`.

    `ahead` has the rows of events of the batch, and one more where there are more. The statement takes
    `:until` from a horizon. The caller holds a duty's turn: two folds of one name at once would count events twice.
    """
    # A batch of about `:limit` events ends between two transactions, as the mark knows only whole ones; the events of a
    # transaction that is larger are taken all at once.
    return f"""mark AS MATERIALIZED (
    {mark(name)}
), ahead AS MATERIALIZED (
    SELECT transaction, size FROM (
        SELECT transaction, size, sum(size) OVER (ORDER BY transaction, seq) - size AS events_before
        FROM mark CROSS JOIN LATERAL (
            SELECT transaction, seq, size FROM events WHERE transaction >= mark.since AND transaction < mark.until
            ORDER BY transaction, seq LIMIT :limit + 1
        ) following
    ) counted WHERE events_before <= :limit
), batch AS MATERIALIZED (
    SELECT CASE WHEN coalesce(sum(size), 0) <= :limit THEN min(mark.until)
                WHEN min(transaction) = max(transaction) THEN max(transaction) + 1
                ELSE max(transaction) END AS until, coalesce(sum(size), 0) > :limit AS more
    FROM mark LEFT JOIN ahead ON true
)"""


def advance_mark(name: str, condition: str) -> str:
    """Return the part of a statement that advances the mark to the end of the batch, under a condition."""
    return f"""marked AS (
    INSERT INTO folds (name, transaction) SELECT '{name}', until FROM batch WHERE {condition}
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)"""
