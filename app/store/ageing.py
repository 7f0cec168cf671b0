"""Moving tasks to a higher priority: they enter the lane at its head, in turns with the other goals."""

from datetime import timedelta
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.tasks import Priority
from app.store import announcements, lanes

_PLACED = """
, placed AS (
    SELECT due.id, row_number() OVER (PARTITION BY due.agent_type, due.goal_id ORDER BY due.tag, due.seq) AS place
    FROM due
)
UPDATE tasks t SET priority = :to, tag = place + coalesce((
    SELECT virtual_time FROM lanes l WHERE l.agent_type = t.agent_type AND l.priority = :to), 0)
FROM placed WHERE t.id = placed.id
RETURNING t.agent_type, t.priority, t.tag, t.state, t.run_at
"""

_AGE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id, agent_type, goal_id, tag, seq FROM tasks
    WHERE priority = :from AND priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since <= now() - CAST(:after AS interval)
    ORDER BY waiting_since LIMIT :limit FOR UPDATE SKIP LOCKED
){_PLACED}""")

_HURRY = text(f"""
WITH due AS MATERIALIZED (
    SELECT id, agent_type, goal_id, tag, seq FROM tasks
    WHERE deadline IS NOT NULL AND priority < 4 AND state IN ('blocked', 'pending')
      AND deadline < now() + CAST(:within AS interval)
    ORDER BY deadline LIMIT :limit FOR UPDATE SKIP LOCKED
){_PLACED}""")


async def age(connection: AsyncConnection, priority: Priority, after: timedelta, limit: int = 1000) -> int:
    """Move tasks that have waited this long from `priority` to the next higher; returns how many, at most `limit`."""
    values = {"from": priority.value, "to": priority.value + 1, "after": after, "limit": limit}
    return await _move(connection, _AGE, values)


async def hurry(connection: AsyncConnection, within: timedelta, limit: int = 1000) -> int:
    """Make tasks critical whose deadline is near or past; returns how many."""
    return await _move(connection, _HURRY, {"to": Priority.CRITICAL.value, "within": within, "limit": limit})


async def _move(connection: AsyncConnection, statement: TextClause, values: dict[str, Any]) -> int:
    rows = (await connection.execute(statement, values)).mappings().all()
    ready = [row for row in rows if row["state"] == "pending" and row["run_at"] is None]
    announcements.note_work(connection, lanes.lowest(ready))
    return len(rows)
