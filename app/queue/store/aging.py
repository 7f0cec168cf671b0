"""Aging: raise the priority of tasks that wait long or whose deadline is near, so that they enter another lane."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.events import TaskEvent
from app.kernel.lanes import SPAN, Priority
from app.queue.store import lanes

MAX_EXPEDITED = 1000


def _priority_name(column: str) -> str:
    names = ", ".join(f"'{priority.name.lower()}'" for priority in sorted(Priority))
    return f"(ARRAY[{names}])[{column}]"


# Tasks that rise get tags behind those of their goal that rose to the new lane before, one step of its weight apart: so
# they come at the head of that lane, in turns with what was submitted to it, by goals, their own included. Those of a
# goal stay together in arrays, as a join of two steps, whose sizes no planner knows, may look at each pair.
_MOVE = f"""
, flow AS (
    SELECT agent_type, goal_id, {lanes.sql_class_of("tag")} AS class,
           array_agg(id ORDER BY tag, seq) AS ids, array_agg(priority ORDER BY tag, seq) AS froms
    FROM due GROUP BY agent_type, goal_id, 3
), placed AS (
    SELECT task.id, task.priority,
           greatest(lane.virtual_time, coalesce(last.tag, lane.virtual_time)) + coalesce(goals.weight, 1) ^ -1 * place
               AS tag
    FROM flow
    CROSS JOIN LATERAL (
        SELECT coalesce(
            CASE WHEN class = 0
                 THEN (SELECT virtual_time FROM lanes l WHERE l.agent_type = flow.agent_type AND l.priority = :to)
                 ELSE (SELECT virtual_time FROM resource_lanes l
                       WHERE l.resource_class = class AND l.agent_type = flow.agent_type AND l.priority = :to) END,
            -class * {SPAN:.0f}::float8) AS virtual_time
    ) lane
    LEFT JOIN goals ON goals.id = flow.goal_id
    LEFT JOIN LATERAL (
        SELECT tag FROM tasks t
        WHERE t.agent_type = flow.agent_type AND t.priority = :to AND t.priority <= 4
          AND coalesce(t.goal_id, '') = coalesce(flow.goal_id, '') AND state IN ('blocked', 'pending')
          AND t.submitted_priority IS NOT NULL
          AND t.tag > lane.virtual_time
          AND t.tag < CASE WHEN class = 0 THEN 'infinity' ELSE (1 - class) * {SPAN:.0f}::float8 END
        ORDER BY tag DESC LIMIT 1
    ) last ON true
    CROSS JOIN LATERAL unnest(ids, froms) WITH ORDINALITY AS task (id, priority, place)
), raised AS (
    UPDATE tasks t SET priority = :to, tag = placed.tag, submitted_priority = coalesce(t.submitted_priority, t.priority)
    FROM placed WHERE t.id = placed.id
    RETURNING t.id, t.agent_type, t.goal_id, t.priority, t.tag, t.state, t.run_at, t.waiting_since,
              placed.priority AS priority_before
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT '{TaskEvent.AGED}', id, agent_type, goal_id, priority,
           jsonb_build_object('from', {_priority_name("priority_before")}, 'to', {_priority_name("priority")},
                              'reason', CAST(:reason AS text))
    FROM raised ORDER BY tag
)
SELECT * FROM raised
"""

# From `since` on: before it are only index entries of tasks that have risen or were leased already.
_AGE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id, agent_type, priority, goal_id, tag, seq FROM tasks
    WHERE priority = :from AND priority <= 4 AND state = 'pending' AND blockers = 0 AND run_at IS NULL
      AND waiting_since >= coalesce(CAST(:since AS timestamptz), '-infinity')
      AND waiting_since <= now() - CAST(:min_wait AS interval)
    ORDER BY waiting_since LIMIT :limit FOR UPDATE SKIP LOCKED
){_MOVE}""")

_EXPEDITE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id, agent_type, priority, goal_id, tag, seq FROM tasks
    WHERE deadline IS NOT NULL AND priority < 4 AND state IN ('blocked', 'pending')
      AND deadline < now() + CAST(:within AS interval)
      AND deadline >= coalesce(now() + CAST(:within AS interval) - CAST(:span AS interval), '-infinity')
    ORDER BY deadline LIMIT :limit FOR UPDATE SKIP LOCKED
){_MOVE}""")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingResult:
    """Number of tasks that moved, and the earliest time since when one of them had been waiting."""

    tasks: int
    since: datetime | None


async def age(
    connection: AsyncConnection, priority: Priority, min_wait: timedelta, since: datetime | None, limit: int = 200
) -> AgingResult:
    """Raise tasks of a priority to the next one, at most `limit`, that wait for `min_wait` or longer, since `since`."""
    values = {"from": priority.value, "to": priority.value + 1, "min_wait": min_wait, "since": since, "limit": limit}
    return await _move(connection, _AGE, {**values, "reason": "waited"})


async def expedite(connection: AsyncConnection, within: timedelta, span: timedelta | None, limit: int) -> int:
    """Make tasks critical, at most `limit`, whose deadline comes within this time or is past; return their number.

    With a `span` only those whose deadline has come so near no longer ago than it.
    """
    values = {"to": Priority.CRITICAL.value, "within": within, "span": span, "limit": limit, "reason": "deadline"}
    return (await _move(connection, _EXPEDITE, values)).tasks


async def _move(connection: AsyncConnection, statement: TextClause, values: dict[str, Any]) -> AgingResult:
    rows = (await connection.execute(statement, values)).mappings().all()
    if rows:
        notify.note(connection, notify.EVENTS)
    ready = [row for row in rows if row["state"] == "pending" and row["run_at"] is None]
    notify.note_work(connection, lanes.lowest_tags(ready))
    return AgingResult(tasks=len(rows), since=min((row["waiting_since"] for row in rows), default=None))
