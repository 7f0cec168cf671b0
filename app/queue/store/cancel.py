"""Cancelling many tasks at once: found by what they have in common, ended with all that wait for them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.queue.rules.events import TaskEvent
from app.queue.store import dependencies, history
from app.queue.store.listing import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How many of the selected tasks were cancelled, and how many others only because they waited for those."""

    selected: int
    dependents: int


# Whoever completes a task locks it first and then, in the order of their ids, those that wait for it. So the free
# tasks come first here too, and those that wait come after.
_LOCK_FREE = "SELECT id FROM tasks WHERE {where} ORDER BY id FOR UPDATE"

# Every task once, however many it waited for: the work grows with the number of tasks and edges.
_CANCEL = """
WITH RECURSIVE chosen AS MATERIALIZED (
    SELECT id FROM tasks WHERE {where}
), doomed AS (
    SELECT id FROM chosen
    UNION
    SELECT d.task_id FROM task_dependencies d JOIN doomed ON d.depends_on = doomed.id
), cause AS (
    SELECT DISTINCT ON (d.task_id) d.task_id, d.depends_on
    FROM task_dependencies d JOIN doomed ON d.depends_on = doomed.id ORDER BY d.task_id, d.depends_on
), gone AS (
    DELETE FROM tasks t USING doomed WHERE t.id = doomed.id RETURNING t.*
), ended AS MATERIALIZED (
    SELECT doomed.*, CASE WHEN selected THEN CAST(:error AS jsonb) ELSE jsonb_build_object(
               'code', 'dependency_failed',
               'message', 'it depends on the task ' || cause.depends_on || ', which was cancelled',
               'dependency', cause.depends_on) END AS why
    FROM (SELECT gone.*, coalesce({selected}, false) AS selected FROM gone) doomed
    LEFT JOIN cause ON cause.task_id = doomed.id
), finished AS (
    {finish}
), cut AS (
    DELETE FROM task_dependencies d USING gone WHERE d.task_id = gone.id
), recorded AS (
    INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome, error)
    SELECT id, failures + 1, token, worker_id, leased_at, 'cancelled', why FROM ended WHERE worker_id IS NOT NULL
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, seconds, detail)
    SELECT '{kind}', id, agent_type, goal_id, worker_id, token, priority, extract(epoch FROM now() - leased_at),
           CASE WHEN selected THEN CAST(:detail AS jsonb) ELSE why END
    FROM ended ORDER BY seq
)
SELECT count(*) FILTER (WHERE selected) AS selected, count(*) FILTER (WHERE NOT selected) AS dependents FROM ended
"""


async def count(connection: AsyncConnection, selection: Selection) -> int:
    """How many live tasks are selected."""
    query = text(f"SELECT count(*) FROM tasks WHERE {selection.where()}")
    number: int = (await connection.execute(query, selection.values())).scalar_one()
    return number


async def find(connection: AsyncConnection, selection: Selection, limit: int) -> list[UUID]:
    """Up to `limit` of the selected live tasks, the oldest first."""
    query = text(f"SELECT id FROM tasks WHERE {selection.where()} ORDER BY seq LIMIT :limit")
    return list((await connection.execute(query, {**selection.values(), "limit": limit})).scalars())


async def cancel(connection: AsyncConnection, ids: Sequence[UUID], selection: Selection, reason: str) -> Cancelled:
    """Cancel those of these tasks that are live and selected still, and all that wait for them, however indirectly.

    An attempt that runs is kept in the record; its worker hears of the end with its next heartbeat or call.
    """
    values = {**selection.values(), "ids": list(ids)}
    await connection.execute(text(_LOCK_FREE.format(where=_ours(selection, "state <> 'blocked'"))), values)
    await dependencies.lock_waiting(connection, ids)
    error, detail = json.dumps({"code": "cancelled", "message": reason}), json.dumps({"reason": reason})
    where = {"where": _ours(selection), "selected": selection.where()}
    finish = history.entry("ended AS deleted", "'cancelled'", error="deleted.why")
    statement = text(_CANCEL.format(**where, finish=finish, kind=TaskEvent.CANCELLED))
    row = (await connection.execute(statement, {**values, "error": error, "detail": detail})).one()
    if row.selected:
        notify.note(connection, notify.EVENTS)
    return Cancelled(selected=row.selected, dependents=row.dependents)


def _ours(selection: Selection, *more: str) -> str:
    return selection.where("id = ANY (:ids)", *more)
