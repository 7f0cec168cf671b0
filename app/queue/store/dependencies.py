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

# Edges that one statement takes away, so that each ends in time however many tasks wait for one.
_PORTION = 10_000


# Tasks are locked before their edges, as in a cancellation: the count makes sure of all of them before any DELETE. One
# portion after another, they are locked in the order of their ids as well.
def _unblocking(edges: int) -> str:
    # As text, since no planner knows what comes of a parameter here, and expects one row. OFFSET 0 has the edges of
    # these tasks looked up first: to get them in order a planner without statistics would walk over those of all.
    return f"""
WITH edge AS MATERIALIZED (
    SELECT task_id FROM (SELECT task_id FROM task_dependencies WHERE depends_on = ANY ($1::uuid[]) OFFSET 0) following
    ORDER BY task_id LIMIT {edges}
), dependent AS MATERIALIZED (
    SELECT t.id FROM tasks t WHERE t.id IN (SELECT task_id FROM edge) ORDER BY t.id FOR UPDATE OF t
), met AS (
    DELETE FROM task_dependencies
    WHERE depends_on = ANY ($1::uuid[]) AND task_id <= (SELECT task_id FROM edge ORDER BY task_id DESC LIMIT 1)
      AND (SELECT count(*) FROM dependent) >= 0
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
SELECT 0 AS edges, agent_type, priority, min(tag) AS tag FROM unblocked
WHERE state = 'pending' AND run_at IS NULL GROUP BY agent_type, priority, {lanes.sql_class_of("tag")}
UNION ALL SELECT count(*), NULL, NULL, NULL FROM edge
"""


# All levels at once, in one order. Level by level, two transactions that end tasks could wait for each other.
_LOCK_WAITING = """
WITH RECURSIVE waiting AS (
    {start}
    UNION
    SELECT d.task_id FROM waiting w CROSS JOIN LATERAL (
        SELECT task_id FROM task_dependencies WHERE depends_on = w.id OFFSET 0
    ) d
)
SELECT t.id FROM tasks t
WHERE t.id = ANY (ARRAY(SELECT id FROM waiting)) AND t.state = 'blocked' ORDER BY t.id FOR UPDATE OF t
"""
_LOCK_ALL_WAITING = text(_LOCK_WAITING.format(start="SELECT id FROM unnest(CAST(:ids AS uuid[])) AS start (id)"))
_LOCK_BLOCKED = text(
    _LOCK_WAITING.format(start=f"SELECT id FROM tasks WHERE id = :id AND state = 'blocked' AND {WITHIN}")
)

_CANCEL_WAITING = text(f"""
WITH deleted AS (
    DELETE FROM tasks t WHERE t.id = ANY (:ids) RETURNING t.*
), finished AS (
    {history.entry("deleted", "'cancelled'", error="CAST(:error AS jsonb)")}
), cut AS (
    DELETE FROM task_dependencies WHERE task_id = ANY (ARRAY(SELECT id FROM deleted))
)
INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
SELECT '{TaskEvent.CANCELLED}', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM deleted ORDER BY seq
""")

_CUT = text("DELETE FROM task_dependencies WHERE task_id = :id")


async def mark(connection: AsyncConnection, ids: Collection[UUID], namespace: str | None = None) -> dict[UUID, str]:
    """Mark tasks that get dependents; return the state of each that exists: `live`, or its final state.

    With a namespace no others exist.

    Live ones stay locked until the transaction ends.
    """
    rows = (await connection.execute(_MARK, {"ids": list(ids), "namespace": namespace})).mappings().all()
    # A claim skips what is locked here, so it has to look again afterwards.
    notify.note_locked_work(connection, lanes.lowest_tags(row for row in rows if row["is_ready"]))
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
    rows: list[asyncpg.Record] = []
    is_done = False
    while not is_done:
        portion = await connection.fetch(_unblocking(_PORTION), completed_ids)
        rows += [row for row in portion if row["agent_type"]]
        is_done = sum(row["edges"] for row in portion) < _PORTION
    return lanes.lowest_tags(rows)


async def lock_waiting(connection: AsyncConnection, ids: Collection[UUID]) -> list[UUID]:
    """Lock all blocked tasks among these and their direct and indirect dependents; return their ids.

    The caller has locked those of them that are not blocked.
    """
    locked_ids: list[UUID] = []
    while True:
        found_ids = list((await connection.execute(_LOCK_ALL_WAITING, {"ids": list(ids)})).scalars())
        # While a look waits for a lock its holder may give that task a dependent, which only the next look sees.
        if len(found_ids) == len(locked_ids):
            return found_ids
        locked_ids = found_ids


async def lock_blocked(connection: AsyncConnection, task_id: UUID, namespace: str | None) -> None:
    """Lock a task, if it is blocked and of this namespace, with all that wait for it, in the order of their ids."""
    await connection.execute(_LOCK_BLOCKED, {"id": task_id, "namespace": namespace})


async def cancel_dependents(connection: AsyncConnection, task_id: UUID, outcome: str) -> None:
    """Cancel all direct and indirect dependents of a task that failed or was cancelled, which the caller has locked."""
    message = f"it depends, directly or not, on the task {task_id}, which {outcome}"
    error = json.dumps({"code": "dependency_failed", "message": message, "dependency": str(task_id)})
    await connection.execute(_CUT, {"id": task_id})
    waiting_ids = await lock_waiting(connection, [task_id])
    for start in range(0, len(waiting_ids), _PORTION):
        ids = waiting_ids[start : start + _PORTION]
        await connection.execute(_CANCEL_WAITING, {"ids": ids, "error": error})
    if waiting_ids:
        notify.note(connection, notify.EVENTS)
