"""Results of completed tasks in the order of their completion, for a reader that keeps a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.folds import HORIZON
from app.queue.store.events import Cursor

# Stored sizes of results count, which are known without reading them; one result goes out however large it is.
PAGE_BYTES = 4 << 20
# How many events one page looks at, at most: other kinds, and other agents and goals, lie in between.
_LOOK_AT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a task has come to."""

    cursor: Cursor
    task_id: UUID
    agent_type: str
    goal_id: str | None
    priority: int
    labels: dict[str, str]
    worker_id: UUID | None
    created_at: datetime
    finished_at: datetime
    result: Any
    usage: dict[str, float] | None
    quality: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Outputs, where to go on, and whether there may be more already."""

    items: Sequence[Output]
    next: Cursor
    more: bool


_HISTORY = "h.priority, h.labels, h.worker_id, h.created_at, h.finished_at, h.result, h.usage, h.quality"

# The event and the row in history are written together, so they bear the same time: that names the partition, and the
# row is found by one probe.
_PAGE = text(f"""
WITH seen AS MATERIALIZED (
    SELECT transaction, seq, at, kind, task_id, agent_type, goal_id FROM events
    WHERE (transaction, seq) > (:transaction, :seq) AND transaction < {HORIZON}
    ORDER BY transaction, seq LIMIT :window
), edge AS (
    SELECT transaction AS edge_transaction, seq AS edge_seq, (SELECT count(*) FROM seen) AS looked_at
    FROM seen ORDER BY transaction DESC, seq DESC LIMIT 1
), wanted AS (
    SELECT * FROM seen WHERE kind = 'task.completed'
      AND agent_type = coalesce(CAST(:agent_type AS text), agent_type)
      AND (CAST(:goal_id AS text) IS NULL OR goal_id = CAST(:goal_id AS text))
    ORDER BY transaction, seq LIMIT :limit
), found AS (
    SELECT w.transaction, w.seq, w.task_id, w.agent_type, w.goal_id, h.id IS NOT NULL AS is_kept, {_HISTORY},
           sum(coalesce(pg_column_size(h.result), 0)) OVER (ORDER BY w.transaction, w.seq) AS bytes
    FROM wanted w LEFT JOIN task_history h ON h.id = w.task_id AND h.finished_at = w.at
)
SELECT edge.*, found.* FROM edge LEFT JOIN found ON true ORDER BY found.transaction, found.seq
""")


async def page(
    connection: AsyncConnection, after: Cursor, *, agent_type: str | None, goal_id: str | None, limit: int
) -> Page:
    """Up to `limit` outputs that follow the cursor, oldest first, at a cost that is bounded by `limit`.

    A page may be empty and still not the last, where it has met nothing but other events.
    """
    window = _LOOK_AT + 10 * limit
    given = {"transaction": after.transaction, "seq": after.seq, "window": window, "limit": limit}
    filters = {"agent_type": agent_type, "goal_id": goal_id}
    rows = [dict(row) for row in (await connection.execute(_PAGE, {**given, **filters})).mappings()]
    if not rows:
        return Page(items=[], next=after, more=False)
    edge = Cursor(transaction=rows[0]["edge_transaction"], seq=rows[0]["edge_seq"])
    completed = [row for row in rows if row["transaction"] is not None]
    taken = [row for place, row in enumerate(completed) if row["bytes"] <= PAGE_BYTES or place == 0]
    full = len(taken) == limit or len(taken) < len(completed)
    return Page(
        # What was pruned from history while its event is still there has nothing to show.
        items=[_output(row) for row in taken if row["is_kept"]],
        next=_cursor(taken[-1]) if full else edge,
        more=full or rows[0]["looked_at"] == window,
    )


def _cursor(row: dict[str, Any]) -> Cursor:
    return Cursor(transaction=row["transaction"], seq=row["seq"])


def _output(row: dict[str, Any]) -> Output:
    plain = {name: row[name] for name in Output.__dataclass_fields__ if name != "cursor"}
    return Output(cursor=_cursor(row), **plain)
