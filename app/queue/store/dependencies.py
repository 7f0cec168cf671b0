"""Who waits for whom: an edge for every dependency that is not met yet.

A task that others wait for is marked, under its row's lock, before an edge is written. Its completion takes the same
lock before it looks for edges, so whichever comes second sees what the first has done.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.lanes import Lane
from app.queue.store import history, lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A task and one that it waits for."""

    task_id: UUID
    depends_on: UUID


# Whoever completes or cancels a task locks it first and then those that wait for it, so the free ones come first.
_MARK = text("""
WITH live AS (SELECT id FROM tasks WHERE id = ANY (:ids) ORDER BY state = 'blocked', id FOR UPDATE)
UPDATE tasks SET has_dependents = true FROM live WHERE tasks.id = live.id
RETURNING tasks.id, agent_type, priority, tag, state = 'pending' AND run_at IS NULL AS is_ready
""")

_CONNECT = text("""
INSERT INTO task_dependencies (task_id, depends_on)
SELECT * FROM unnest(CAST(:task_ids AS uuid[]), CAST(:depends_on AS uuid[])) ON CONFLICT DO NOTHING
""")

# Tasks before their edges, as whoever cancels them does: the count has all of them locked before an edge is touched.
_UNBLOCK = """
WITH ours AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id IN (SELECT task_id FROM task_dependencies WHERE depends_on = ANY ($1::uuid[]))
    ORDER BY t.id FOR UPDATE OF t
), met AS (
    DELETE FROM task_dependencies WHERE depends_on = ANY ($1::uuid[]) AND (SELECT count(*) FROM ours) >= 0
    RETURNING task_id
), counted AS (
    SELECT task_id, count(*) AS met FROM met GROUP BY task_id
), unblocked AS (
    UPDATE tasks t
    SET blockers = t.blockers - counted.met,
        state = CASE WHEN t.blockers = counted.met THEN 'pending' ELSE t.state END,
        waiting_since = now(), tag = greatest(t.tag, coalesce(lanes.virtual_time, 0))
    FROM counted JOIN ours ON ours.id = counted.task_id JOIN tasks lane ON lane.id = counted.task_id
    LEFT JOIN lanes ON lanes.agent_type = lane.agent_type AND lanes.priority = lane.priority
    WHERE t.id = counted.task_id
    RETURNING t.id, t.state, t.agent_type, t.priority, t.goal_id, t.tag, t.run_at
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority)
    SELECT 'task.unblocked', id, agent_type, goal_id, priority FROM unblocked WHERE state = 'pending'
)
SELECT agent_type, priority, min(tag) AS tag FROM unblocked
WHERE state = 'pending' AND run_at IS NULL GROUP BY agent_type, priority
"""

# All at once, in one order: level by level two of those who end tasks, or one and a submit, could wait for each other.
_LOCK_WAITING = text("""
WITH RECURSIVE waiting AS (
    SELECT id FROM unnest(CAST(:ids AS uuid[])) AS given (id)
    UNION
    SELECT d.task_id FROM task_dependencies d JOIN waiting w ON d.depends_on = w.id
)
SELECT t.id FROM tasks t
WHERE t.id IN (SELECT id FROM waiting) AND t.state = 'blocked' ORDER BY t.id FOR UPDATE OF t
""")

# One level at a time: only a statement that begins after the locks of its level sees every edge of the next.
_CANCEL_LEVEL = text(f"""
WITH ours AS (
    SELECT t.id FROM tasks t
    WHERE t.id IN (SELECT task_id FROM task_dependencies WHERE depends_on = ANY (:ids)) AND t.state = 'blocked'
    ORDER BY t.id FOR UPDATE OF t
), deleted AS (
    DELETE FROM tasks t USING ours WHERE t.id = ours.id RETURNING t.*
), finished AS (
    {history.entry("deleted", "'cancelled'", error="CAST(:error AS jsonb)")}
), cut AS (
    DELETE FROM task_dependencies d USING deleted WHERE d.task_id = deleted.id
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT 'task.cancelled', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM deleted
)
SELECT id FROM deleted
""")

_CUT = text("DELETE FROM task_dependencies WHERE task_id = :id")


async def mark(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Mark the tasks that others will wait for; returns how each stands: `live`, or how it ended.

    Live ones stay locked until the transaction ends; a claim that passes over them meanwhile must come back for them.
    Ids of tasks that do not exist are left out.
    """
    rows = (await connection.execute(_MARK, {"ids": list(ids)})).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["is_ready"]))
    live = {row["id"] for row in rows}
    return dict.fromkeys(live, "live") | await history.states(
        connection, [task_id for task_id in ids if task_id not in live]
    )


async def connect(connection: AsyncConnection, edges: Sequence[Edge]) -> None:
    """Write down who waits for whom."""
    task_ids, depends_on = [edge.task_id for edge in edges], [edge.depends_on for edge in edges]
    await connection.execute(_CONNECT, {"task_ids": task_ids, "depends_on": depends_on})


async def unblock(connection: "asyncpg.Connection[asyncpg.Record]", completed: Sequence[UUID]) -> dict[Lane, float]:
    """Let go of those that waited for these tasks only; returns their lanes with the lowest tags.

    A statement of its own in the completion's transaction, after the locks: only then does it see every edge.
    """
    return lanes.lowest_tags(await connection.fetch(_UNBLOCK, completed))


async def lock_waiting(connection: AsyncConnection, ids: Collection[UUID]) -> bool:
    """Lock all that wait for these tasks, however indirectly, and of these those that wait; whether there are any."""
    return (await connection.execute(_LOCK_WAITING, {"ids": list(ids)})).first() is not None


async def cancel_dependents(connection: AsyncConnection, task_id: UUID, outcome: str) -> int:
    """Cancel all that wait for a task which failed or was cancelled, however indirectly; returns how many.

    The caller holds the lock of that task.
    """
    message = f"it depends, directly or not, on the task {task_id}, which {outcome}"
    error = json.dumps({"code": "dependency_failed", "message": message, "dependency": str(task_id)})
    await connection.execute(_CUT, {"id": task_id})
    cancelled = 0
    level = [task_id] if await lock_waiting(connection, [task_id]) else []
    while level:
        level = list((await connection.execute(_CANCEL_LEVEL, {"ids": level, "error": error})).scalars())
        cancelled += len(level)
    if cancelled:
        notify.note(connection, notify.EVENTS)
    return cancelled
