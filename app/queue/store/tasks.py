"""Tasks: taken in, read, listed, and moved into history when they end without a result."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.states import TaskState
from app.queue.store import dependencies, history, lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task as it is stored at submit; JSON values as text."""

    id: UUID
    id_is_chosen: bool
    agent_type: str
    goal_id: str | None
    priority: int
    payload: str
    labels: str
    timeout_seconds: float
    deadline: datetime | None
    run_at: datetime | None
    max_attempts: int
    retry_delays: Sequence[float]
    trace_context: str | None
    request_hash: bytes
    idempotency_key: str | None = None
    depends_on: Sequence[UUID] = ()
    blockers: int = 0
    tag: float = 0.0
    is_held: bool = False

    @property
    def state(self) -> TaskState:
        """Where the task begins."""
        return TaskState.BLOCKED if self.blockers else TaskState.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What is known of a task after submit."""

    id: UUID
    state: str
    request_hash: bytes


_INSERT = """
INSERT INTO tasks (id, state, agent_type, goal_id, priority, payload, labels, timeout_seconds, deadline, run_at,
                   max_attempts, retry_delays, trace_context, request_hash, created_at,
                   idempotency_key, depends_on, blockers, tag, due_at)
SELECT id, CASE WHEN blockers > 0 THEN 'blocked' ELSE 'pending' END,
       agent_type, goal_id, priority, payload, labels, timeout_seconds, deadline,
       CASE WHEN is_held THEN 'infinity' WHEN run_at > now() THEN run_at END,
       max_attempts, CAST(retry_delays AS float8[]), trace_context,
       request_hash, now(), idempotency_key,
       CAST(depends_on AS uuid[]), blockers, tag, CASE WHEN is_held AND run_at > now() THEN run_at END
FROM unnest(
    CAST(:id AS uuid[]), CAST(:agent_type AS text[]), CAST(:goal_id AS text[]), CAST(:priority AS smallint[]),
    CAST(:payload AS jsonb[]), CAST(:labels AS jsonb[]), CAST(:timeout_seconds AS float8[]),
    CAST(:deadline AS timestamptz[]), CAST(:run_at AS timestamptz[]), CAST(:max_attempts AS integer[]),
    CAST(:retry_delays AS text[]), CAST(:trace_context AS text[]), CAST(:request_hash AS bytea[]),
    CAST(:idempotency_key AS text[]), CAST(:depends_on AS text[]), CAST(:blockers AS integer[]),
    CAST(:tag AS float8[]), CAST(:is_held AS boolean[])
) WITH ORDINALITY AS new (id, agent_type, goal_id, priority, payload, labels, timeout_seconds, deadline, run_at,
    max_attempts, retry_delays, trace_context, request_hash, idempotency_key, depends_on, blockers, tag, is_held, place)
ORDER BY place
ON CONFLICT (id) DO NOTHING
RETURNING id, seq, agent_type, goal_id, priority
"""

_TAKE_IN_CHOSEN = text(_INSERT)

_TAKE_IN = text(f"""
WITH fresh AS ({_INSERT}), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority)
    SELECT 'task.submitted', id, agent_type, goal_id, priority FROM fresh ORDER BY seq
)
SELECT id FROM fresh
""")

_DROP_FINISHED = text("""
DELETE FROM tasks WHERE id = ANY (:ids) AND EXISTS (SELECT FROM task_history h WHERE h.id = tasks.id) RETURNING id
""")

_TELL = text("""
INSERT INTO events (kind, task_id, agent_type, goal_id, priority)
SELECT 'task.submitted', id, agent_type, goal_id, priority FROM tasks WHERE id = ANY (:ids) ORDER BY seq
""")

_RESERVE = text("""
SELECT pg_try_advisory_xact_lock(hashtextextended(key, 7241)) FROM unnest(CAST(:keys AS text[])) AS key
""")

_TAKEN = text("""
SELECT id, state, request_hash FROM tasks WHERE id = ANY (:ids)
UNION ALL SELECT id, state, request_hash FROM task_history WHERE id = ANY (:ids)
""")

_COLUMNS = (
    "id, seq, state, agent_type, goal_id, priority, labels, timeout_seconds, deadline, max_attempts, failures, "
    "rescues, token, worker_id, created_at, waiting_since, leased_at, progress, depends_on, idempotency_key"
)
# A task that is held back runs when its goal goes on, and not before its own time.
_LIVE = (
    "CASE WHEN run_at = 'infinity' THEN due_at ELSE run_at END AS run_at, "
    "coalesce(run_at = 'infinity', false) AS held, NULL::timestamptz AS finished_at, error"
)
_PAST = "NULL::timestamptz AS run_at, false AS held, finished_at, error"

_READ = text(f"""
SELECT {_COLUMNS}, {_LIVE}, payload, checkpoint, NULL::jsonb AS result, NULL::jsonb AS usage,
       NULL::float8 AS quality
FROM tasks WHERE id = :id
UNION ALL
SELECT {_COLUMNS}, {_PAST}, payload, checkpoint, result, usage, quality FROM task_history WHERE id = :id
""")

_ATTEMPTS = text("""
SELECT attempt, token, worker_id, leased_at, ended_at, outcome, error, usage FROM task_attempts
WHERE task_id = :id ORDER BY token
""")

_OUTCOME = {
    "failures": ":failures",
    "rescues": ":rescues",
    "error": "CAST(:error AS jsonb)",
    "usage": "CAST(:usage AS jsonb)",
}
_FINISH = text(
    f"WITH deleted AS (DELETE FROM tasks WHERE id = :id RETURNING *) {history.entry('deleted', ':state', **_OUTCOME)}"
)

_LOCK = text("""
SELECT id, state, agent_type, priority, goal_id, failures, rescues, token, worker_id, leased_at, has_dependents
FROM tasks WHERE id = :id FOR UPDATE
""")

_STATE = text("SELECT state FROM task_history WHERE id = :id")

_PROMOTE = text(f"""
WITH due AS MATERIALIZED (
    SELECT id FROM tasks WHERE run_at <= now() ORDER BY run_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET run_at = NULL, waiting_since = now(),
    tag = {lanes.TAG_ON_RETURN}
FROM due WHERE t.id = due.id RETURNING agent_type, priority, tag, state
""")


async def insert(connection: AsyncConnection, tasks: Sequence[NewTask]) -> list[Taken]:
    """Take in the tasks whose id is new; returns only those, the rest exist already.

    A chosen id may belong to a task that finished between our snapshot and our insert. The insert succeeds only
    after that task's row is gone for good, so a look into history by a later statement is certain to see it.
    """
    columns = {name: [getattr(task, name) for task in tasks] for name in _ARRAYS}
    # Arrays of arrays would have to be rectangular, so each goes as PostgreSQL writes it.
    columns["retry_delays"] = [_array(task.retry_delays) for task in tasks]
    columns["depends_on"] = [_array(task.depends_on) for task in tasks]
    chosen = [task.id for task in tasks if task.id_is_chosen]
    inserted = set((await connection.execute(_TAKE_IN_CHOSEN if chosen else _TAKE_IN, columns)).scalars())
    if chosen:
        inserted -= set((await connection.execute(_DROP_FINISHED, {"ids": chosen})).scalars())
        await connection.execute(_TELL, {"ids": list(inserted)})
    fresh = [task for task in tasks if task.id in inserted]
    notify.note(connection, notify.EVENTS)
    ready = [task for task in fresh if not task.blockers and not task.is_held]
    notify.note_work(connection, lanes.lowest_tags(_stand(task) for task in ready))
    return [Taken(id=task.id, state=task.state, request_hash=task.request_hash) for task in fresh]


_ARRAYS = (
    "id",
    "agent_type",
    "goal_id",
    "priority",
    "payload",
    "labels",
    "timeout_seconds",
    "deadline",
    "run_at",
    "max_attempts",
    "trace_context",
    "request_hash",
    "idempotency_key",
    "blockers",
    "tag",
    "is_held",
)


def _stand(task: NewTask) -> dict[str, object]:
    return {"agent_type": task.agent_type, "priority": task.priority, "tag": task.tag}


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


async def reserve_keys(connection: AsyncConnection, keys: Collection[str]) -> bool:
    """Whether no other transaction is at work on any of these idempotency keys; they are ours until this one ends."""
    rows = await connection.execute(_RESERVE, {"keys": sorted(set(keys))})
    return all(rows.scalars())


async def taken(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, Taken]:
    """The tasks of these ids that exist, live or finished."""
    rows = (await connection.execute(_TAKEN, {"ids": list(ids)})).mappings()
    return {row["id"]: Taken(**row) for row in rows}


async def read(connection: AsyncConnection, task_id: UUID) -> dict[str, Any] | None:
    """Everything about one task, with the attempts that did not complete it."""
    row = (await connection.execute(_READ, {"id": task_id})).mappings().first()
    if row is None:
        return None
    if not row["token"]:
        # Never leased, so there is no attempt to look for.
        return {**row, "attempts": []}
    attempts = (await connection.execute(_ATTEMPTS, {"id": task_id})).mappings()
    return {**row, "attempts": [dict(attempt) for attempt in attempts]}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTask:
    """A live task under our lock."""

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


async def lock(connection: AsyncConnection, task_id: UUID) -> LiveTask | None:
    """Lock a live task until the transaction ends; None when it has finished or never was."""
    row = (await connection.execute(_LOCK, {"id": task_id})).mappings().first()
    return LiveTask(**{**row, "state": TaskState(row["state"])}) if row else None


async def finished_state(connection: AsyncConnection, task_id: UUID) -> TaskState | None:
    """How a task ended, or None when it is not in history."""
    state = (await connection.execute(_STATE, {"id": task_id})).scalar()
    return TaskState(state) if state else None


async def finish(
    connection: AsyncConnection,
    task_id: UUID,
    state: TaskState,
    *,
    failures: int,
    rescues: int,
    error: str | None = None,
    usage: str | None = None,
) -> None:
    """Move a task that did not complete into history, as failed or cancelled, and cancel all that waited for it.

    The caller holds its lock.
    """
    values = {"failures": failures, "rescues": rescues, "error": error, "usage": usage}
    await connection.execute(_FINISH, {"id": task_id, "state": state.value, **values})
    await dependencies.cancel_dependents(
        connection, task_id, "failed" if state is TaskState.FAILED else "was cancelled"
    )


async def promote(connection: AsyncConnection, limit: int = 1000) -> int:
    """Let tasks run whose time has come; returns how many."""
    rows = (await connection.execute(_PROMOTE, {"limit": limit})).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["state"] == "pending"))
    return len(rows)
