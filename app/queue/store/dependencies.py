"""Dependencies: an edge from each blocked task to each task that it waits for, until that one completes.

A task that gets dependents is marked, under its row's lock, before an edge is written. Its completion takes the same
lock before it looks for edges, so whichever of the two comes second sees the work of the first.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.namespaces import WITHIN
from app.kernel.events import TaskEvent
from app.kernel.lanes import Lane
from app.queue.store import history, lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A task and another that it waits for."""

    task_id: UUID
    depends_on: UUID


# Completing or cancelling a task locks it first and then its dependents, so unblocked tasks come first here, too.
_MARK = text(f"""
WITH live AS (SELECT id FROM tasks WHERE id = ANY (:ids) AND {WITHIN} ORDER BY state = 'blocked', id FOR UPDATE)
UPDATE tasks SET has_dependents = true FROM live WHERE tasks.id = live.id
RETURNING tasks.id, agent_type, priority, tag, state = 'pending' AND run_at IS NULL AS is_ready
""")

_CONNECT = text("""
INSERT INTO task_dependencies (task_id, depends_on)
SELECT * FROM unnest(CAST(:task_ids AS uuid[]), CAST(:depends_on AS uuid[])) ON CONFLICT DO NOTHING
""")

# Tasks are locked before their edges, as in a cancellation: the count makes sure of all of them before any DELETE.
_UNBLOCK = f"""
WITH dependent AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id IN (SELECT task_id FROM task_dependencies WHERE depends_on = ANY ($1::uuid[]))
    ORDER BY t.id FOR UPDATE OF t
), met AS (
    DELETE FROM task_dependencies WHERE depends_on = ANY ($1::uuid[]) AND (SELECT count(*) FROM dependent) >= 0
    RETURNING task_id
), counted AS (
    SELECT task_id, count(*) AS met FROM met GROUP BY task_id
), unblocked AS (
    UPDATE tasks t
    SET blockers = t.blockers - counted.met,
        state = CASE WHEN t.blockers = counted.met THEN 'pending' ELSE t.state END,
        waiting_since = now(), tag = {lanes.TAG_ON_RETURN}
    FROM counted JOIN dependent ON dependent.id = counted.task_id
    WHERE t.id = counted.task_id
    RETURNING t.id, t.state, t.agent_type, t.priority, t.goal_id, t.tag, t.run_at
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority)
    SELECT '{TaskEvent.UNBLOCKED}', id, agent_type, goal_id, priority FROM unblocked WHERE state = 'pending'
)
SELECT agent_type, priority, min(tag) AS tag FROM unblocked
WHERE state = 'pending' AND run_at IS NULL GROUP BY agent_type, priority, {lanes.sql_class_of("tag")}
"""

# All levels at once, in one order. Level by level, two transactions that end tasks could wait for each other.
_LOCK_WAITING = text("""
WITH RECURSIVE waiting AS (
    SELECT id FROM unnest(CAST(:ids AS uuid[])) AS start (id)
    UNION
    SELECT d.task_id FROM task_dependencies d JOIN waiting w ON d.depends_on = w.id
)
SELECT t.id FROM tasks t
WHERE t.id IN (SELECT id FROM waiting) AND t.state = 'blocked' ORDER BY t.id FOR UPDATE OF t
""")

# One level at a time: only a statement that begins after the locks of its level sees every edge of the next.
_CANCEL_LEVEL = text(f"""
WITH dependent AS (
    SELECT t.id FROM tasks t
    WHERE t.id IN (SELECT task_id FROM task_dependencies WHERE depends_on = ANY (:ids)) AND t.state = 'blocked'
    ORDER BY t.id FOR UPDATE OF t
), deleted AS (
    DELETE FROM tasks t USING dependent WHERE t.id = dependent.id RETURNING t.*
), finished AS (
    {history.entry("deleted", "'cancelled'", error="CAST(:error AS jsonb)")}
), cut AS (
    DELETE FROM task_dependencies d USING deleted WHERE d.task_id = deleted.id
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT '{TaskEvent.CANCELLED}', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM deleted
)
SELECT id FROM deleted
""")

_CUT = text("DELETE FROM task_dependencies WHERE task_id = :id")


async def mark(connection: AsyncConnection, ids: Collection[UUID], namespace: str | None = None) -> dict[UUID, str]:
    """Mark tasks that get dependents; return the state of each that exists: `live`, or its final state.

    With a namespace no others exist.

    Live ones stay locked until the transaction ends.
    """
    rows = (await connection.execute(_MARK, {"ids": list(ids), "namespace": namespace})).mappings().all()
    # A claim skips what is locked here, so it has to look again after the commit.
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["is_ready"]))
    live = {row["id"] for row in rows}
    return dict.fromkeys(live, "live") | await history.states(
        connection, [task_id for task_id in ids if task_id not in live], namespace
    )


async def connect(connection: AsyncConnection, edges: Sequence[Edge]) -> None:
    """Insert edges."""
    task_ids, depends_on = [edge.task_id for edge in edges], [edge.depends_on for edge in edges]
    await connection.execute(_CONNECT, {"task_ids": task_ids, "depends_on": depends_on})


async def unblock(connection: "asyncpg.Connection[asyncpg.Record]", completed_ids: Sequence[UUID]) -> dict[Lane, float]:
    """Delete the edges to completed tasks; return the lanes, with the lowest tags, of tasks that are ready now.

    To be called in the transaction of the completion, after it has locked the tasks: only then it sees every edge.
    """
    return lanes.lowest_tags(await connection.fetch(_UNBLOCK, completed_ids))


async def lock_waiting(connection: AsyncConnection, ids: Collection[UUID]) -> bool:
    """Lock all blocked tasks among these and their direct and indirect dependents; return whether there are any."""
    return (await connection.execute(_LOCK_WAITING, {"ids": list(ids)})).first() is not None


async def cancel_dependents(connection: AsyncConnection, task_id: UUID, outcome: str) -> int:
    """Cancel all direct and indirect dependents of a task that failed or was cancelled; return their number.

    The caller has locked that task.
    """
    message = f"it depends, directly or not, on the task {task_id}, which {outcome}"
    error = json.dumps({"code": "dependency_failed", "message": message, "dependency": str(task_id)})
    await connection.execute(_CUT, {"id": task_id})
    count = 0
    level = [task_id] if await lock_waiting(connection, [task_id]) else []
    while level:
        level = list((await connection.execute(_CANCEL_LEVEL, {"ids": level, "error": error})).scalars())
        count += len(level)
    if count:
        notify.note(connection, notify.EVENTS)
    return count
