"""The hot path: claiming, renewing and finishing leases, one coalesced statement for all concurrent callers.

Lock order, here and everywhere: workers before tasks, several rows of a table by id. Claims skip locked rows, so
they wait for nobody. Completions and claims are separate transactions: together they deadlock, because SKIP LOCKED
may lock the newest version of a row that another transaction is finishing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from app.domain.agents import AgentType
from app.domain.leases import LeasePolicy
from app.domain.tasks import TaskId
from app.domain.workers import WorkerId
from app.store import dependencies
from app.store.hot import columns
from app.store.tables import KEPT_COLUMNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One waiting worker and the agent type that it is to be served from."""

    worker_id: WorkerId
    request_id: UUID
    agent_type: AgentType | None
    acknowledge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One task, given to one worker until `expires_at`. JSON values are kept as text: nobody here reads them."""

    task_id: TaskId
    token: int
    attempt: int
    agent_type: str
    goal_id: str | None
    priority: int
    payload: str
    labels: str
    timeout_seconds: float
    leased_at: datetime
    expires_at: datetime
    deadline_at: datetime
    checkpoint: str | None
    trace_context: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What became of one Ask: a lease, or how the worker stands instead."""

    worker_state: str | None
    holds_another: bool
    is_repeat: bool
    lease: Lease | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A result, fenced by task, token and worker. `result` and `usage` are JSON text."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    result: str
    result_hash: bytes
    usage: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How long a completed task held its lease."""

    agent_type: AgentType
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A sign of life for one lease: a start (percent None) or progress, with what the next attempt should know."""

    task_id: TaskId
    token: int
    worker_id: WorkerId
    progress: str | None = None
    checkpoint: str | None = None


_LEASE_COLUMNS = """t.id AS task_id, t.token, t.failures + 1 AS attempt, t.agent_type, t.goal_id, t.priority, t.payload,
    t.labels, t.timeout_seconds, t.leased_at, t.lease_expires_at AS expires_at, t.deadline_at, t.checkpoint,
    t.trace_context"""

_CLAIM = f"""
WITH asked AS MATERIALIZED (
    SELECT a.*, CASE WHEN w.ended_reason LIKE 'superseded%' THEN 'superseded' ELSE w.state END AS worker_state,
           held.id IS NOT NULL AS holds_another,
           coalesce(held.lease_request_id = a.request_id, false) AS is_repeat
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::boolean[])
         WITH ORDINALITY AS a (worker_id, request_id, agent_type, acknowledge, turn)
    LEFT JOIN workers w ON w.id = a.worker_id
    LEFT JOIN tasks held ON held.worker_id = a.worker_id
), eligible AS (
    SELECT *, row_number() OVER (PARTITION BY agent_type ORDER BY turn) AS place
    FROM asked WHERE worker_state = 'ready' AND NOT holds_another
), wanted AS (
    SELECT agent_type, count(*) AS places FROM eligible GROUP BY agent_type
), picked AS MATERIALIZED (
    SELECT head.id, wanted.agent_type,
           row_number() OVER (PARTITION BY wanted.agent_type ORDER BY head.priority DESC, head.seq) AS place
    FROM wanted CROSS JOIN LATERAL (
        SELECT id, priority, seq FROM tasks
        WHERE tasks.agent_type = wanted.agent_type AND state = 'pending' AND run_at IS NULL
        ORDER BY priority DESC, seq LIMIT wanted.places FOR UPDATE SKIP LOCKED
    ) head
), leased AS (
    UPDATE tasks t
    SET state = CASE WHEN e.acknowledge THEN 'executing' ELSE 'assigned' END,
        token = t.token + 1, worker_id = e.worker_id, lease_request_id = e.request_id, leased_at = now(),
        lease_expires_at = now() + make_interval(secs => CASE WHEN e.acknowledge THEN $5::float8 ELSE $6::float8 END),
        deadline_at = now() + make_interval(secs => t.timeout_seconds)
    FROM picked p JOIN eligible e USING (agent_type, place)
    WHERE t.id = p.id
    RETURNING {_LEASE_COLUMNS}, e.turn, e.worker_id, t.state
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token)
    SELECT kind, task_id, agent_type, goal_id, worker_id, token
    FROM leased CROSS JOIN LATERAL (VALUES (1, 'task.assigned'), (2, 'task.executing')) AS move (step, kind)
    WHERE step = 1 OR state = 'executing' ORDER BY turn, step
)
SELECT asked.worker_state, asked.holds_another, asked.is_repeat, leased.*
FROM asked LEFT JOIN leased USING (turn) ORDER BY asked.turn
"""

_HELD = f"""
SELECT {_LEASE_COLUMNS} FROM tasks t WHERE t.worker_id = $1 AND t.lease_request_id = $2
"""

# The predicate of every fence: this lease, held by this worker, not yet expired. An equality of workers would let the
# planner walk the index of leases and all its dead entries, where the key of the task leads to one row.
_FENCE = """t.id = c.task_id AND t.token = c.token AND t.worker_id IS NOT DISTINCT FROM c.worker_id
    AND t.state IN ('assigned', 'executing') AND t.lease_expires_at > now()"""

_KEPT = ", ".join(KEPT_COLUMNS)
_CALLS = """unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::jsonb[], $5::bytea[], $6::jsonb[])
    AS c (task_id, token, worker_id, result, result_hash, usage)"""


def _completion(condition: str) -> str:
    return f"""
WITH call AS MATERIALIZED (
    SELECT * FROM {_CALLS}
), held AS MATERIALIZED (
    SELECT t.id FROM tasks t JOIN call c ON {_FENCE} AND {condition} ORDER BY t.id FOR UPDATE OF t
), gone AS (
    DELETE FROM tasks t USING held WHERE t.id = held.id RETURNING t.*
), kept AS (
    INSERT INTO task_history ({_KEPT}, state, finished_at, result, result_hash, usage)
    SELECT {", ".join(f"gone.{column}" for column in KEPT_COLUMNS)},
           'completed', now(), call.result, call.result_hash, call.usage
    FROM gone JOIN call ON call.task_id = gone.id
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token)
    SELECT 'task.completed', id, agent_type, goal_id, worker_id, token FROM gone
)
SELECT id, agent_type, extract(epoch FROM now() - leased_at)::float8 AS seconds FROM gone
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

_WITH_WORK = """
SELECT agent_type FROM unnest($1::text[]) AS agent_type
WHERE EXISTS (SELECT FROM tasks t WHERE t.agent_type = agent_type.agent_type AND state = 'pending' AND run_at IS NULL)
"""


async def claim(
    connection: "asyncpg.Connection[asyncpg.Record]", asks: Sequence[Ask], policy: LeasePolicy
) -> list[Claim]:
    """Lease one task to each ask for which there is one; answers in the order of the asks.

    Raises asyncpg.UniqueViolationError when another replica has just served one of the workers.
    """
    rows = await connection.fetch(
        _CLAIM,
        *columns(asks, "worker_id", "request_id", "agent_type", "acknowledge"),
        policy.lease_seconds,
        policy.acknowledge_within_seconds,
    )
    return [
        Claim(
            worker_state=row["worker_state"],
            holds_another=row["holds_another"],
            is_repeat=row["is_repeat"],
            lease=_lease(row) if row["task_id"] else None,
        )
        for row in rows
    ]


async def held_by_request(
    connection: "asyncpg.Connection[asyncpg.Record]", worker_id: WorkerId, request_id: UUID
) -> Lease | None:
    """The lease that an earlier call with this request id received, so that a lost answer can be given again."""
    row = await connection.fetchrow(_HELD, worker_id, request_id)
    return _lease(row) if row else None


async def complete(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> dict[UUID, Service]:
    """Move the tasks whose lease the calls hold into history; returns what those accepted cost.

    Leaves tasks alone that others wait for: `complete_and_unblock` takes them.
    """
    return _services(await connection.fetch(_COMPLETE, *_columns(calls)))


async def complete_and_unblock(
    connection: "asyncpg.Connection[asyncpg.Record]", calls: Sequence[Completion]
) -> tuple[dict[UUID, Service], set[AgentType]]:
    """As `complete`, for tasks that others may wait for; also returns the agent types of those let go.

    Locks first, so that the statements which follow see every edge that was written before.
    """
    async with connection.transaction():
        await connection.fetch(_LOCK_HELD, *_columns(calls))
        accepted = _services(await connection.fetch(_COMPLETE_ANY, *_columns(calls)))
        freed = await dependencies.unblock(connection, list(accepted)) if accepted else set()
    return accepted, freed


async def sign(
    connection: "asyncpg.Connection[asyncpg.Record]", signs: Sequence[Sign], policy: LeasePolicy
) -> dict[UUID, datetime]:
    """Acknowledge and renew leases, keeping progress and checkpoints; returns the new expiry of those still held."""
    rows = await connection.fetch(
        _SIGN, *columns(signs, "task_id", "token", "worker_id", "progress", "checkpoint"), policy.lease_seconds
    )
    return {row["id"]: row["lease_expires_at"] for row in rows}


async def types_with_work(connection: "asyncpg.Connection[asyncpg.Record]") -> set[AgentType]:
    """The agent types that have a task which may run now: one index probe each."""
    rows = await connection.fetch(_WITH_WORK, list(AgentType))
    return {AgentType(row["agent_type"]) for row in rows}


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(**{field: row[field] for field in Lease.__dataclass_fields__})


def _columns(calls: Sequence[Completion]) -> list[list[object]]:
    return columns(calls, "task_id", "token", "worker_id", "result", "result_hash", "usage")


def _services(rows: Sequence[asyncpg.Record]) -> dict[UUID, Service]:
    return {row["id"]: Service(agent_type=AgentType(row["agent_type"]), seconds=row["seconds"]) for row in rows}
