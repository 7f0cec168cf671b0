"""Cancel many selected tasks at once, with all tasks that depend on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.events import TaskEvent
from app.kernel.text import NO_REASON
from app.queue.store import dependencies, history
from app.queue.store.listing import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCounts:
    """Number of selected tasks that were cancelled, and of others that were because they depended on those."""

    selected_tasks: int
    dependents: int


# A completion locks its task first and then, in the order of their ids, the dependents. So this locks tasks that depend
# on nothing first, too, and blocked ones after them: two transactions never wait for each other.
_LOCK_FREE = "SELECT id FROM tasks WHERE {where} ORDER BY id FOR UPDATE"

# UNION visits every dependent once, however many paths lead to it: the work grows with the number of tasks and edges.
# What it comes to no planner knows, and joined, all tasks or edges that there are would be read: arrays and OFFSET 0
# have those of the batch looked up.
_CANCEL = """
WITH RECURSIVE chosen AS MATERIALIZED (
    SELECT id FROM tasks WHERE {where}
), doomed AS (
    SELECT id FROM chosen
    UNION
    SELECT d.task_id FROM doomed CROSS JOIN LATERAL (
        SELECT task_id FROM task_dependencies WHERE depends_on = doomed.id OFFSET 0
    ) d
), cause AS (
    SELECT DISTINCT ON (task_id) task_id, depends_on
    FROM task_dependencies WHERE depends_on = ANY (ARRAY(SELECT id FROM doomed)) ORDER BY task_id, depends_on
), deleted AS (
    DELETE FROM tasks t WHERE id = ANY (ARRAY(SELECT id FROM doomed)) RETURNING t.*
), ended AS MATERIALIZED (
    SELECT doomed.*, CASE WHEN selected THEN CAST(:error AS jsonb) ELSE jsonb_build_object(
               'code', 'dependency_failed',
               'message', 'it depends on the task ' || cause.depends_on || ', which was cancelled',
               'dependency', cause.depends_on) END AS why
    FROM (SELECT deleted.*, coalesce({selected}, false) AS selected FROM deleted) doomed
    LEFT JOIN cause ON cause.task_id = doomed.id
), finished AS (
    {finish}
), cut AS (
    DELETE FROM task_dependencies WHERE task_id = ANY (ARRAY(SELECT id FROM deleted))
), recorded AS (
    INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome, error)
    SELECT id, failures + 1, token, worker_id, leased_at, 'cancelled', why FROM ended WHERE worker_id IS NOT NULL
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, seconds, detail)
    SELECT '{kind}', id, agent_type, goal_id, worker_id, token, priority,
           CASE WHEN leased_at IS NOT NULL THEN greatest(extract(epoch FROM now() - leased_at), 0) END,
           CASE WHEN selected THEN CAST(:detail AS jsonb) ELSE why END
    FROM ended ORDER BY seq
)
SELECT count(*) FILTER (WHERE selected) AS selected, count(*) FILTER (WHERE NOT selected) AS dependents FROM ended
"""


async def count(connection: AsyncConnection, selection: Selection) -> int:
    """Number of live tasks that are selected."""
    query = text(f"SELECT count(*) FROM tasks WHERE {selection.where()}")
    number: int = (await connection.execute(query, selection.values())).scalar_one()
    return number


async def find(connection: AsyncConnection, selection: Selection, limit: int) -> list[UUID]:
    """Up to `limit` of the selected live tasks, the oldest first."""
    query = text(f"SELECT id FROM tasks WHERE {selection.where()} ORDER BY seq LIMIT :limit")
    return list((await connection.execute(query, {**selection.values(), "limit": limit})).scalars())


async def cancel(connection: AsyncConnection, ids: Sequence[UUID], selection: Selection, reason: str) -> CancelCounts:
    """Cancel those of these tasks that are still live and selected, and all their direct and indirect dependents.

    Running attempts are recorded as cancelled; their workers learn of it with their next heartbeat or call.
    """
    values = {**selection.values(), "ids": list(ids)}
    await connection.execute(text(_LOCK_FREE.format(where=_selected_ids(selection, "state <> 'blocked'"))), values)
    await dependencies.lock_waiting(connection, ids)
    shown_reason = reason or NO_REASON
    error = json.dumps({"code": "cancelled", "message": shown_reason})
    detail = json.dumps({"reason": shown_reason})
    where = {"where": _selected_ids(selection), "selected": selection.where()}
    finish = history.entry("ended AS deleted", "'cancelled'", error="deleted.why")
    statement = text(_CANCEL.format(**where, finish=finish, kind=TaskEvent.CANCELLED))
    row = (await connection.execute(statement, {**values, "error": error, "detail": detail})).one()
    if row.selected:
        notify.note(connection, notify.EVENTS)
    return CancelCounts(selected_tasks=row.selected, dependents=row.dependents)


def _selected_ids(selection: Selection, *conditions: str) -> str:
    return selection.where("id = ANY (:ids)", *conditions)
