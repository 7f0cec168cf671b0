"""Workers: registered, seen, told what to do, and ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.hot_path import columns
from app.db.retention import BATCH, deletion
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.queue.store import lease_ledger
from app.workers.rules.assignment import Assignment
from app.workers.rules.workers import Sighting, origins
from app.workers.store.roster import ASSIGNED
from app.workers.store.tables import LIVE

_WORKERS = text(f"""
SELECT CASE WHEN w.state = 'ready' AND held.id IS NOT NULL THEN 'busy' ELSE w.state END AS state, count(*) AS workers
FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.{LIVE} GROUP BY 1
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker says of itself; memory in GB, CPU in cores."""

    name: str
    host: str
    pid: int
    capabilities: Sequence[str]
    labels: str
    version: str
    memory_gb: float
    cpu_cores: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One heartbeat; the lease that the worker believes it holds, if any. `errors` is JSON text."""

    worker_id: WorkerId
    draining: bool
    task_id: UUID | None
    token: int | None
    cpu_percent: float | None
    memory_mb: float | None
    errors: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """What the store answers to a heartbeat."""

    state: WorkerState
    directive: str | None
    directive_reason: str | None
    lease_state: str | None
    lease_expires_at: Any
    assignment: Assignment
    memory_gb: float | None
    cpu_cores: float | None


# Registrations of one name queue up, so that each finds the one before it.
_QUEUE_UP = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")

_SUPERSEDE = text(f"SELECT id FROM workers WHERE name = :name AND {LIVE} FOR UPDATE")

_REGISTER = text("""
INSERT INTO workers (id, name, incarnation, state, host, pid, capabilities, labels, version, memory_gb, cpu_cores,
                     started_at, registered_at)
SELECT :id, :name, 1 + coalesce((SELECT max(incarnation) FROM workers WHERE name = :name), 0), 'starting', :host, :pid,
       CAST(:capabilities AS text[]), CAST(:labels AS jsonb), :version, :memory_gb, :cpu_cores, now(), now()
RETURNING name, incarnation
""")

# Registering again with the same launch token is a lost answer given again, unless the worker is over. The host stays
# that of the provisioner, by which the pool is counted, whatever the worker calls it.
_REGISTER_LAUNCHED = text(f"""
UPDATE workers SET pid = :pid, capabilities = CAST(:capabilities AS text[]),
    labels = CAST(:labels AS jsonb), version = :version, memory_gb = :memory_gb, cpu_cores = :cpu_cores,
    registered_at = coalesce(registered_at, now()), started_at = coalesce(started_at, now())
WHERE id = :id AND {LIVE}
RETURNING name, incarnation
""")

_BEAT = f"""
WITH beat AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::boolean[], $3::uuid[], $4::bigint[], $5::float8[], $6::float8[], $7::jsonb[])
        AS b (worker_id, draining, task_id, token, cpu_percent, memory_mb, errors)
), ours AS MATERIALIZED (
    SELECT w.id FROM workers w JOIN beat b ON b.worker_id = w.id ORDER BY w.id FOR NO KEY UPDATE OF w
), seen AS (
    UPDATE workers w
    SET last_seen_at = now(), first_beat_at = coalesce(w.first_beat_at, now()),
        cpu_percent = b.cpu_percent, memory_mb = b.memory_mb, recent_errors = coalesce(b.errors, w.recent_errors),
        state = CASE WHEN b.draining OR w.directive IS NOT NULL THEN 'draining'
                     WHEN w.state = 'starting' THEN 'ready' ELSE w.state END
    FROM beat b JOIN ours ON ours.id = b.worker_id
    WHERE w.id = b.worker_id AND w.{LIVE}
    RETURNING w.id, w.state, w.directive, w.directive_reason, w.memory_gb, w.cpu_cores,
              {ASSIGNED}
), held AS MATERIALIZED (
    SELECT t.id FROM beat b JOIN seen ON seen.id = b.worker_id
    JOIN tasks t ON t.id = b.task_id AND t.token = b.token AND t.worker_id IS NOT DISTINCT FROM b.worker_id
    ORDER BY t.id FOR NO KEY UPDATE OF t
), renewed AS (
    UPDATE tasks t
    SET lease_expires_at = CASE WHEN t.state = 'executing' THEN now() + make_interval(secs => $8::float8)
                                ELSE t.lease_expires_at END
    FROM held WHERE t.id = held.id
    RETURNING t.worker_id, t.state, t.lease_expires_at
)
SELECT beat.worker_id, seen.state, directive, directive_reason, renewed.state AS lease_state, lease_expires_at,
       memory_gb, cpu_cores, {ASSIGNED}
FROM beat LEFT JOIN seen ON seen.id = beat.worker_id LEFT JOIN renewed ON renewed.worker_id = beat.worker_id
"""

_READ = f"SELECT w.*, held.id AS task_id FROM workers w {lease_ledger.last_and_held('w.id')}"

_SIGHTINGS = text(f"""
SELECT id, state, requested_at, launched_at, last_seen_at FROM workers WHERE {LIVE} ORDER BY id FOR UPDATE SKIP LOCKED
""")

_END = text("""
UPDATE workers SET state = :state, ended_reason = :reason, ended_at = now()
WHERE id = :id AND state = ANY (CAST(:origins AS text[])) RETURNING name, slot, provisioner
""")

_IS_STOPPING = text(f"""
SELECT directive IN ('stop', 'restart') FROM workers WHERE id = :id AND {LIVE} FOR UPDATE
""")

_NAMES = text("SELECT id, name FROM workers WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY host, slot")

_PRUNE = deletion("workers", "ended_at < now() - make_interval(days => :days)", "ended_at")


async def live_by_name(connection: AsyncConnection, name: str) -> list[UUID]:
    """The live workers of this name, locked; nobody else registers the name until the transaction ends."""
    await connection.execute(_QUEUE_UP, {"name": name})
    return list((await connection.execute(_SUPERSEDE, {"name": name})).scalars())


async def register(connection: AsyncConnection, worker_id: UUID, said: Registration) -> tuple[str, int]:
    """Create a worker that somebody started; returns its name and incarnation."""
    row = (await connection.execute(_REGISTER, {"id": worker_id, **_said(said)})).one()
    return row.name, row.incarnation


async def register_launched(connection: AsyncConnection, worker_id: UUID, said: Registration) -> tuple[str, int] | None:
    """Complete the row that a provisioner requested; None when it is over already."""
    row = (await connection.execute(_REGISTER_LAUNCHED, {"id": worker_id, **_said(said)})).first()
    return (row.name, row.incarnation) if row else None


async def beat(
    connection: "asyncpg.Connection[asyncpg.Record]", beats: Sequence[Heartbeat], lease_seconds: float
) -> dict[UUID, HeartbeatReply]:
    """Record heartbeats and renew the acknowledged leases they name; workers that are over are left out."""
    names = ("worker_id", "draining", "task_id", "token", "cpu_percent", "memory_mb", "errors")
    rows = await connection.fetch(_BEAT, *columns(beats, *names), lease_seconds)
    return {
        row["worker_id"]: HeartbeatReply(
            state=WorkerState(row["state"]),
            directive=row["directive"],
            directive_reason=row["directive_reason"],
            lease_state=row["lease_state"],
            lease_expires_at=row["lease_expires_at"],
            assignment=_assignment(row),
            memory_gb=row["memory_gb"],
            cpu_cores=row["cpu_cores"],
        )
        for row in rows
        if row["state"]
    }


async def read(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any] | None:
    """Everything about one worker and the task it holds."""
    row = (await connection.execute(text(f"{_READ} WHERE w.id = :id"), {"id": worker_id})).mappings().first()
    return dict(row) if row else None


async def page(
    connection: AsyncConnection, *, everybody: bool, after: tuple[str, int] | None, limit: int
) -> list[dict[str, Any]]:
    """Workers by name and incarnation; the live ones, or `everybody` that is remembered."""
    filters = ["true" if everybody else f"w.{LIVE}"]
    values: dict[str, Any] = {"limit": limit}
    if after is not None:
        filters.append("(w.name, w.incarnation) > (:name, :incarnation)")
        values |= {"name": after[0], "incarnation": after[1]}
    query = f"{_READ} WHERE {' AND '.join(filters)} ORDER BY w.name, w.incarnation LIMIT :limit"
    return [dict(row) for row in (await connection.execute(text(query), values)).mappings()]


async def sightings(connection: AsyncConnection) -> list[Sighting]:
    """The live workers, locked; those that a heartbeat holds right now are evidently alive and left out."""
    rows = (await connection.execute(_SIGHTINGS)).mappings()
    return [
        Sighting(
            worker_id=WorkerId(row["id"]),
            state=WorkerState(row["state"]),
            since=row["launched_at"] or row["requested_at"],
            last_seen_at=row["last_seen_at"],
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A worker that is over, and the place in the pool that it leaves."""

    name: str
    slot: int | None
    provisioner: str | None


async def end(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> Ended | None:
    """Move a worker to a final state where that is a legal move; None when it was over already."""
    values = {"id": worker_id, "state": state.value, "reason": reason, "origins": sorted(origins(state))}
    row = (await connection.execute(_END, values)).mappings().first()
    return Ended(**row) if row else None


async def is_stopping(connection: AsyncConnection, worker_id: UUID) -> bool:
    """Whether a live worker, which is locked, has been told to stop or restart."""
    return bool((await connection.execute(_IS_STOPPING, {"id": worker_id})).scalar())


async def names(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The names of those of these workers that are remembered, in the order of the slots."""
    rows = await connection.execute(_NAMES, {"ids": list(ids)})
    return {row.id: row.name for row in rows}


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget workers that ended long ago; returns how many. Their leases went back when they ended."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _assignment(row: asyncpg.Record) -> Assignment:
    return Assignment(
        agent=AgentType(row["assigned_agent"]) if row["assigned_agent"] else None,
        memory_gb=row["assigned_memory_gb"],
        cpu_cores=row["assigned_cpu_cores"],
        compute_seconds=row["assigned_compute_seconds"],
    )


def _said(said: Registration) -> dict[str, Any]:
    return {name: getattr(said, name) for name in Registration.__dataclass_fields__}


async def workers_by_state(connection: AsyncConnection) -> dict[str, int]:
    """Live workers by state, `busy` being those that hold a task: a look at each worker, none at other tasks."""
    return {row["state"]: row["workers"] for row in (await connection.execute(_WORKERS)).mappings()}
