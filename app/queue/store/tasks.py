"""Tasks: find, read and lock them, and move them into history when they end without a result."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.namespaces import WITHIN
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.store import dependencies, history, lanes
from app.queue.store.listing import COLUMNS, HISTORY_COLUMNS, LIVE_COLUMNS
from app.queue.store.worker_names import worker_name


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTask:
    """Id, state and request hash of a task that exists, live or finished."""

    id: UUID
    state: str
    request_hash: bytes


_FIND = text("""
SELECT id, state, request_hash FROM tasks WHERE id = ANY (:ids)
UNION ALL SELECT id, state, request_hash FROM task_history WHERE id = ANY (:ids)
""")

_PAYLOAD = "coalesce(payload_text, CAST(payload AS text))"

_READ = text(f"""
SELECT {COLUMNS}, {worker_name("tasks")}, {LIVE_COLUMNS}, {_PAYLOAD} AS payload, checkpoint, trace_context,
       NULL::jsonb AS result, NULL::jsonb AS usage,
       NULL::float8 AS quality
FROM tasks WHERE id = :id AND {WITHIN}
UNION ALL
SELECT {COLUMNS}, {worker_name("task_history")}, {HISTORY_COLUMNS}, {_PAYLOAD} AS payload, checkpoint, trace_context,
       result, usage, quality
FROM task_history
WHERE id = :id AND {WITHIN}
""")

_ATTEMPTS = text(f"""
SELECT attempt, token, worker_id, {worker_name("task_attempts")}, leased_at, ended_at, outcome, error, usage
FROM task_attempts
WHERE task_id = :id ORDER BY token
""")

_OUTCOME = {
    "failures": ":failures",
    "rescues": ":rescues",
    "unacknowledged": "coalesce(CAST(:unacknowledged AS integer), deleted.unacknowledged)",
    "error": "CAST(:error AS jsonb)",
    "usage": "CAST(:usage AS jsonb)",
}
_FINISH = text(
    f"WITH deleted AS (DELETE FROM tasks WHERE id = :id RETURNING *) {history.entry('deleted', ':state', **_OUTCOME)}"
)

_LOCK = text(f"""
SELECT id, state, agent_type, priority, goal_id, failures, rescues, token, worker_id, leased_at, has_dependents,
       deadline, resource_class, CASE WHEN state = 'pending' AND run_at IS NULL THEN tag END AS ready_tag
FROM tasks WHERE id = :id AND {WITHIN} FOR UPDATE
""")

# One that goes down waits anew: ageing and displacement expect that tasks come to a priority now, or from below.
_CHANGE = text("""
UPDATE tasks SET priority = :priority, deadline = :deadline, tag = coalesce(:tag, tag),
    waiting_since = CASE WHEN :priority < priority THEN now() ELSE waiting_since END,
    submitted_priority = CASE WHEN CAST(:tag AS float8) IS NULL THEN submitted_priority END
WHERE id = :id RETURNING agent_type, priority, tag, state = 'pending' AND run_at IS NULL AS is_ready
""")

_STATE = text(f"SELECT state FROM task_history WHERE id = :id AND {WITHIN}")

HAS_DUE = "EXISTS (SELECT FROM tasks WHERE run_at <= now())"
_PROMOTE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id FROM tasks WHERE run_at <= now() ORDER BY run_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET run_at = NULL, waiting_since = now(),
    tag = {lanes.TAG_ON_RETURN}
FROM due WHERE t.id = due.id RETURNING agent_type, priority, tag, state
""")


async def find(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, StoredTask]:
    """Return the tasks of these ids that exist, live or finished."""
    rows = (await connection.execute(_FIND, {"ids": list(ids)})).mappings()
    return {row["id"]: StoredTask(**row) for row in rows}


async def read(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> dict[str, Any] | None:
    """Return everything about a task, of this namespace if one is given, and its attempts that failed; else None."""
    row = (await connection.execute(_READ, {"id": task_id, "namespace": namespace})).mappings().first()
    if row is None:
        return None
    # One that was never leased has no attempts.
    attempts = (await connection.execute(_ATTEMPTS, {"id": task_id})).mappings() if row["token"] else ()
    return {**row, "payload": json.loads(row["payload"]), "attempts": [dict(attempt) for attempt in attempts]}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTask:
    """A live task whose row this transaction has locked."""

    id: UUID
    state: TaskState
    agent_type: str
    priority: int
    goal_id: str | None
    failures: int
    rescues: int
    token: int
    worker_id: UUID | None
    leased_at: datetime | None
    has_dependents: bool
    deadline: datetime | None
    resource_class: int | None
    ready_tag: float | None


async def lock(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> LiveTask | None:
    """Lock a live task, of this namespace if one is given, until the transaction ends; None when there is none."""
    row = (await connection.execute(_LOCK, {"id": task_id, "namespace": namespace})).mappings().first()
    return LiveTask(**{**row, "state": TaskState(row["state"])}) if row else None


async def change(
    connection: AsyncConnection, task_id: UUID, *, priority: Priority, tag: float | None, deadline: datetime | None
) -> None:
    """Change a waiting task that the caller has locked; a tag takes it to another lane, as if submitted to that one."""
    values = {"id": task_id, "priority": priority.value, "tag": tag, "deadline": deadline}
    rows = (await connection.execute(_CHANGE, values)).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["is_ready"]))


async def finished_state(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> TaskState | None:
    """Return the final state of a task, of this namespace if one is given; None when it is not in history."""
    state = (await connection.execute(_STATE, {"id": task_id, "namespace": namespace})).scalar()
    return TaskState(state) if state else None


async def finish(
    connection: AsyncConnection,
    task_id: UUID,
    state: TaskState,
    *,
    failures: int,
    rescues: int,
    unacknowledged: int | None = None,
    error: str | None = None,
    usage: str | None = None,
) -> None:
    """Move a task that the caller has locked into history, as failed or cancelled, and cancel its dependents.

    `unacknowledged` is None where it stays as it was.
    """
    counts = {"failures": failures, "rescues": rescues, "unacknowledged": unacknowledged}
    await connection.execute(_FINISH, {"id": task_id, "state": state.value, "error": error, "usage": usage, **counts})
    await dependencies.cancel_dependents(
        connection, task_id, "failed" if state is TaskState.FAILED else "was cancelled"
    )


async def promote(connection: AsyncConnection, limit: int) -> int:
    """Make delayed tasks ready whose time has come, at most `limit`; return their number."""
    rows = (await connection.execute(_PROMOTE, {"limit": limit})).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["state"] == "pending"))
    return len(rows)
