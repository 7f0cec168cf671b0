"""Results of completed tasks in the order of completion, for readers that keep a cursor."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.namespaces import WITHIN
from app.db.pages import PAGE_BYTES
from app.db.turns import turn
from app.kernel.events import TaskEvent
from app.queue.store import event_rows
from app.queue.store.events import Cursor, bounds
from app.queue.store.worker_names import worker_name

# Events that one page reads at least: other kinds, agents and goals lie between those that it wants.
_MIN_WINDOW = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Result of a completed task, with the task's origin."""

    cursor: Cursor
    task_id: UUID
    agent_type: str
    goal_id: str | None
    priority: int
    labels: dict[str, str]
    worker_id: UUID | None
    worker_name: str | None
    created_at: datetime
    finished_at: datetime
    result: Any
    usage: dict[str, float] | None
    quality: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputBatch:
    """Outputs, the cursor to go on from, and whether there may be more already."""

    items: Sequence[Output]
    next: Cursor
    has_more: bool


_HISTORY = (
    f"h.priority, h.labels, h.worker_id, {worker_name('h')}, h.created_at, h.finished_at, h.result, h.usage, h.quality"
)

# The event and the row in history are written together, so they bear the same time: that names the partition, and the
# row is found by one probe.
_PAGE = text(f"""
WITH RECURSIVE {event_rows.window(":window")}, edge AS (
    SELECT transaction AS edge_transaction, seq AS edge_seq, (SELECT count(*) FROM event) AS looked_at
    FROM event ORDER BY transaction DESC, seq DESC LIMIT 1
), completion AS (
    SELECT * FROM event WHERE kind = '{TaskEvent.COMPLETED}'
      AND agent_type = coalesce(CAST(:agent_type AS text), agent_type)
      AND (CAST(:goal_id AS text) IS NULL OR goal_id = CAST(:goal_id AS text))
      AND {WITHIN}
    ORDER BY transaction, seq LIMIT :limit
), placed AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY transaction, seq) AS place FROM completion
), walk (place, bytes) AS (
    -- One by one, so that no result is unpacked beyond the one with which the page is full. Nobody joins them: each
    -- step might then look for all results of the page again.
    SELECT 0::bigint, 0::bigint
    UNION ALL
    SELECT placed.place, walk.bytes + coalesce((
               SELECT coalesce(octet_length(h.result::text), 0) + octet_length(h.labels::text)
               FROM task_history h WHERE h.id = placed.task_id AND h.finished_at = placed.at LIMIT 1
           ), 0)
    FROM walk JOIN placed ON placed.place = walk.place + 1 WHERE walk.bytes < :page_bytes
), output AS (
    SELECT w.transaction, w.seq, w.task_id, w.agent_type, w.goal_id, h.id IS NOT NULL AS is_kept, walk.bytes, {_HISTORY}
    FROM walk JOIN placed w USING (place)
    LEFT JOIN task_history h ON h.id = w.task_id AND h.finished_at = w.at AND (walk.bytes <= :page_bytes OR place = 1)
)
SELECT edge.*, output.* FROM edge LEFT JOIN output ON true ORDER BY output.transaction, output.seq
""")


async def page(
    connection: AsyncConnection,
    start: Cursor,
    *,
    agent_type: str | None,
    goal_id: str | None,
    namespace: str | None = None,
    limit: int,
) -> OutputBatch:
    """Return up to `limit` outputs that follow the cursor, oldest first, at a cost bounded by `limit`.

    Only of a namespace if one is given; `goal_id` is the stored name of a goal.

    A batch may be empty and still not the last, where other events fill the window that it reads. It has at least one
    result where there is one, however large, and else ends before PAGE_BYTES.
    """
    window = _MIN_WINDOW + 10 * limit
    position = {**await bounds(connection, start), "window": window, "limit": limit, "page_bytes": PAGE_BYTES}
    filters = {"agent_type": agent_type, "goal_id": goal_id, "namespace": namespace}
    window_rows = (await connection.execute(_PAGE, {**position, **filters})).mappings().all()
    await turn(connection)
    rows = [dict(row) for row in window_rows]
    if not rows:
        return OutputBatch(items=[], next=start, has_more=False)
    edge = Cursor(transaction=rows[0]["edge_transaction"], seq=rows[0]["edge_seq"])
    completions = [row for row in rows if row["transaction"] is not None]
    page_rows = [row for place, row in enumerate(completions) if row["bytes"] <= PAGE_BYTES or place == 0]
    is_full = len(page_rows) == limit or (bool(completions) and completions[-1]["bytes"] >= PAGE_BYTES)
    return OutputBatch(
        # A task may have been pruned from history while its event is still there.
        items=[_output(row) for row in page_rows if row["is_kept"]],
        next=_cursor(page_rows[-1]) if is_full else edge,
        has_more=is_full or rows[0]["looked_at"] == window,
    )


def _cursor(row: dict[str, Any]) -> Cursor:
    return Cursor(transaction=row["transaction"], seq=row["seq"])


def _output(row: dict[str, Any]) -> Output:
    plain = {name: row[name] for name in Output.__dataclass_fields__ if name != "cursor"}
    return Output(cursor=_cursor(row), **plain)
