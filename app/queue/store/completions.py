"""The hot path: renewing and finishing leases, one coalesced statement for all concurrent callers.

Lock order, here and everywhere: workers before tasks, several rows of a table by id. Claims skip locked rows, so
they wait for nobody. Completions and claims are separate transactions: together they deadlock, because SKIP LOCKED
may lock the newest version of a row that another transaction is finishing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from app.db.hot_path import columns
from app.kernel.agents import AgentType
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import dependencies, history


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A result, fenced by task, token and worker. `result` and `usage` are JSON text; the quality is 0 to 1."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    result: str
    result_hash: bytes
    usage: str | None
    quality: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How long a completed task held its lease."""

    agent_type: AgentType
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """A sign of life for one lease: a start (percent None) or progress, with what the next attempt should know."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    progress: str | None = None
    checkpoint: str | None = None


# The predicate of every fence: this lease, held by this worker, not yet expired. An equality of workers would let the
# planner walk the index of leases and all its dead entries, where the key of the task leads to one row.
_FENCE = """t.id = c.task_id AND t.token = c.token AND t.worker_id IS NOT DISTINCT FROM c.worker_id
    AND t.state IN ('assigned', 'executing') AND t.lease_expires_at > now()"""

_CALLS = """unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::jsonb[], $5::bytea[], $6::jsonb[], $7::float8[])
    AS c (task_id, token, worker_id, result, result_hash, usage, quality)"""


_FINISH = history.entry(
    "deleted JOIN call ON call.task_id = deleted.id",
    "'completed'",
    result="call.result",
    result_hash="call.result_hash",
    usage="call.usage",
    quality="deleted.quality",
)


def _completion(condition: str) -> str:
    return f"""
WITH call AS MATERIALIZED (
    SELECT * FROM {_CALLS}
), held AS MATERIALIZED (
    SELECT t.id, c.quality FROM tasks t JOIN call c ON {_FENCE} AND {condition} ORDER BY t.id FOR UPDATE OF t
), deleted AS (
    DELETE FROM tasks t USING held WHERE t.id = held.id RETURNING t.*, held.quality
), finished AS (
    {_FINISH}
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, priority, seconds, quality)
    SELECT 'task.completed', id, agent_type, goal_id, worker_id, token, priority,
           extract(epoch FROM now() - leased_at), quality
    FROM deleted
)
SELECT id, agent_type, extract(epoch FROM now() - leased_at)::float8 AS seconds FROM deleted
"""


_COMPLETE = _completion("NOT t.has_dependents")
_COMPLETE_ANY = _completion("true")
_LOCK_HELD = f"SELECT t.id FROM tasks t JOIN {_CALLS} ON {_FENCE} ORDER BY t.id FOR UPDATE OF t"

_SIGN = f"""
WITH call AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::jsonb[], $5::jsonb[])
        AS c (task_id, token, worker_id, progress, checkpoint)
), held AS MATERIALIZED (
    SELECT t.id, t.state, c.progress, c.checkpoint FROM tasks t JOIN call c ON {_FENCE} ORDER BY t.id FOR UPDATE OF t
), renewed AS (
    UPDATE tasks t
    SET state = 'executing', lease_expires_at = now() + make_interval(secs => $6::float8),
        progress = coalesce(held.progress, t.progress), checkpoint = coalesce(held.checkpoint, t.checkpoint)
    FROM held WHERE t.id = held.id
    RETURNING t.id, t.lease_expires_at, held.state AS before, t.agent_type, t.goal_id, t.worker_id, t.token
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token)
    SELECT 'task.executing', id, agent_type, goal_id, worker_id, token FROM renewed WHERE before = 'assigned'
)
SELECT id, lease_expires_at FROM renewed
"""


async def complete(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> dict[UUID, Service]:
    """Move the tasks whose lease the calls hold into history; returns what those accepted cost.

    Leaves tasks alone that others wait for: `complete_and_unblock` takes them.
    """
    return _services(await connection.fetch(_COMPLETE, *_columns(calls)))


async def complete_and_unblock(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> tuple[dict[UUID, Service], dict[Lane, float]]:
    """As `complete`, for tasks that others may wait for; also returns the lanes and lowest tags of those let go.

    Locks first, so that the statements which follow see every edge that was written before.
    """
    async with connection.transaction():
        await connection.fetch(_LOCK_HELD, *_columns(calls))
        accepted = _services(await connection.fetch(_COMPLETE_ANY, *_columns(calls)))
        freed = await dependencies.unblock(connection, list(accepted)) if accepted else {}
    return accepted, freed


async def sign(
    connection: "asyncpg.Connection[asyncpg.Record]", signs: Sequence[Renewal], policy: LeasePolicy
) -> dict[UUID, datetime]:
    """Acknowledge and renew leases, keeping progress and checkpoints; returns the new expiry of those still held."""
    rows = await connection.fetch(
        _SIGN, *columns(signs, "task_id", "token", "worker_id", "progress", "checkpoint"), policy.lease_seconds
    )
    return {row["id"]: row["lease_expires_at"] for row in rows}


def _columns(calls: Sequence[Completion]) -> list[list[object]]:
    return columns(calls, "task_id", "token", "worker_id", "result", "result_hash", "usage", "quality")


def _services(rows: Sequence[asyncpg.Record]) -> dict[UUID, Service]:
    return {row["id"]: Service(agent_type=AgentType(row["agent_type"]), seconds=row["seconds"]) for row in rows}
