"""Moving tasks to a higher priority: they enter the lane at its head, in turns with the other goals."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.lanes import Priority
from app.queue.store import lanes

# Behind what the goal has in that lane already, and ahead of what it submits from now on.
_PLACED = """
, stands AS (
    SELECT goal.agent_type, goal.goal_id, coalesce(goals.weight, 1) AS weight,
           greatest(coalesce(lanes.virtual_time, 0), coalesce(last.tag, 0)) AS tag
    FROM (SELECT DISTINCT agent_type, goal_id FROM due) goal
    LEFT JOIN lanes ON lanes.agent_type = goal.agent_type AND lanes.priority = :to
    LEFT JOIN goals ON goals.id = goal.goal_id
    LEFT JOIN LATERAL (
        SELECT tag FROM tasks t
        WHERE t.agent_type = goal.agent_type AND t.priority = :to AND t.priority <= 4
          AND coalesce(t.goal_id, '') = coalesce(goal.goal_id, '') AND state IN ('blocked', 'pending')
          AND t.tag > coalesce(lanes.virtual_time, 0)
        ORDER BY tag DESC LIMIT 1
    ) last ON true
), placed AS (
    SELECT due.id, stands.tag + stands.weight ^ -1
           * row_number() OVER (PARTITION BY due.agent_type, due.goal_id ORDER BY due.tag, due.seq) AS tag
    FROM due JOIN stands ON stands.agent_type = due.agent_type AND stands.goal_id IS NOT DISTINCT FROM due.goal_id
)
UPDATE tasks t SET priority = :to, tag = placed.tag FROM placed WHERE t.id = placed.id
RETURNING t.agent_type, t.priority, t.tag, t.state, t.run_at, t.waiting_since
"""

# From `since` on: before it are only the entries of what has aged or was leased already.
_AGE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id, agent_type, goal_id, tag, seq FROM tasks
    WHERE priority = :from AND priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since >= coalesce(CAST(:since AS timestamptz), '-infinity')
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """How many tasks were moved, and since when those that have waited most and least of them had been waiting."""

    tasks: int
    since: datetime | None
    until: datetime | None


async def age(
    connection: AsyncConnection, priority: Priority, after: timedelta, since: datetime | None, limit: int = 200
) -> Aged:
    """Move tasks that have waited this long, from `since` on, from `priority` to the next higher; at most `limit`."""
    values = {"from": priority.value, "to": priority.value + 1, "after": after, "since": since, "limit": limit}
    return await _move(connection, _AGE, values)


async def hurry(connection: AsyncConnection, within: timedelta, limit: int = 1000) -> int:
    """Make tasks critical whose deadline is near or past; returns how many."""
    values = {"to": Priority.CRITICAL.value, "within": within, "limit": limit}
    return (await _move(connection, _HURRY, values)).tasks


async def _move(connection: AsyncConnection, statement: TextClause, values: dict[str, Any]) -> Aged:
    rows = (await connection.execute(statement, values)).mappings().all()
    ready = [row for row in rows if row["state"] == "pending" and row["run_at"] is None]
    notify.note_work(connection, lanes.lowest_tags(ready))
    moments = [row["waiting_since"] for row in rows]
    return Aged(tasks=len(rows), since=min(moments, default=None), until=max(moments, default=None))
