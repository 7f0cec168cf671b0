"""Workers: registration, heartbeats, states and ends."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import CursorResult, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.hot_path import columns
from app.db.pages import Page
from app.db.retention import BATCH
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.queue.store import counters, lease_ledger
from app.workers.rules.assignment import Assignment
from app.workers.rules.workers import Liveness, NameHolder, origins
from app.workers.store.roster import ASSIGNED
from app.workers.store.tables import LIVE
from app.workers.store.tables import workers as table

_WORKERS = text(f"""
SELECT CASE WHEN w.state = 'ready' AND held.id IS NOT NULL THEN 'busy' ELSE w.state END AS state, count(*) AS workers
FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.{LIVE} GROUP BY 1
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A worker as it introduces itself; memory in GB, CPU in cores; `labels` and `resources` are JSON text.

    `registered_by` is the id of the key that it showed, `lost_after_seconds` the silence that it is told to avoid. Its
    tasks must end in `seconds_left`, where its time is limited. A member of an engine's pool has the `provisioner` and,
    as its host, the pool; its start began at `member_created_at`. It repeats a registration by its `request_id`.
    """

    name: str
    host: str
    pid: int
    capabilities: Sequence[str]
    labels: str
    version: str
    memory_gb: float
    cpu_cores: float
    gpus: int = 0
    resources: str | None = None
    registered_by: str | None = None
    lost_after_seconds: float | None = None
    seconds_left: float | None = None
    provisioner: str | None = None
    member_created_at: datetime | None = None
    request_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One heartbeat with the lease that the worker believes it holds, if any; `errors` is JSON text.

    `not_ready_reason` is why it cannot work yet, by its own check.
    """

    worker_id: WorkerId
    draining: bool
    task_id: UUID | None
    token: int | None
    cpu_percent: float | None
    memory_mb: float | None
    errors: str | None
    not_ready_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """State of a worker, and of the lease that its heartbeat named; None in `lease_state`: it holds no such lease.

    `not_ready_reason` says why the report has not passed, and `is_first_failure` that none has failed before.
    """

    state: WorkerState
    not_ready_reason: str | None
    is_first_failure: bool
    directive: str | None
    directive_reason: str | None
    lease_state: str | None
    lease_expires_at: Any
    assignment: Assignment
    memory_gb: float | None
    cpu_cores: float | None


# Registrations and requests of one name wait for each other, so that each finds the one before it.
_LOCK_NAMES = text("""
SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM unnest(CAST(:names AS text[])) AS name
""")

_LIVE_BY_NAME = text(f"""
SELECT id, name, incarnation, slot IS NOT NULL AS is_provisioned, registered_by,
       extract(epoch FROM now() - coalesce(last_seen_at, registered_at, launched_at, requested_at))::float8
           AS silent_seconds
FROM workers WHERE name = ANY (CAST(:names AS text[])) AND {LIVE} ORDER BY id FOR UPDATE
""")

# In steps: a claim takes each lane for workers of one and the same end, and those of one job register seconds apart.
# The end is the earlier one, and short lives lose no more than a second of it.
_ENDS_AT = """date_bin(
    CASE WHEN CAST(:seconds_left AS float8) >= 600 THEN interval '15 seconds' ELSE interval '1 second' END,
    now() + make_interval(secs => CAST(:seconds_left AS float8)), 'epoch')"""

_REGISTER = text(f"""
INSERT INTO workers (id, name, incarnation, state, host, pid, capabilities, labels, version, memory_gb, cpu_cores,
                     gpus, resources, registered_by, lost_after_seconds, ends_at, provisioner, requested_at,
                     launched_at, started_at, registered_at, request_id)
SELECT :id, :name, 1 + coalesce((SELECT max(incarnation) FROM workers WHERE name = :name), 0), 'starting', :host, :pid,
       CAST(:capabilities AS text[]), CAST(:labels AS jsonb), :version, :memory_gb, :cpu_cores,
       :gpus, CAST(:resources AS jsonb), :registered_by, :lost_after_seconds,
       {_ENDS_AT}, CAST(:provisioner AS text),
       least(coalesce(CAST(:member_created_at AS timestamptz), now()), now()),
       CASE WHEN CAST(:provisioner AS text) IS NOT NULL THEN now() END, now(), now(), :request_id
RETURNING name, incarnation
""")

# Once, and only while it is awaited. The host stays that of the provisioner, by which the pool is counted, whatever the
# worker calls it.
_REGISTER_LAUNCHED = text(f"""
UPDATE workers SET pid = :pid, capabilities = CAST(:capabilities AS text[]),
    labels = CAST(:labels AS jsonb), version = :version, memory_gb = :memory_gb, cpu_cores = :cpu_cores,
    gpus = :gpus, resources = CAST(:resources AS jsonb), lost_after_seconds = :lost_after_seconds, ends_at = {_ENDS_AT},
    registered_at = now(), started_at = coalesce(started_at, now()), request_id = :request_id
WHERE id = :id AND state = 'starting' AND registered_at IS NULL
RETURNING name, incarnation
""")

# Why the report of a starting worker does not pass: by its own word, or because its figures cannot be. Without a task
# it needs some memory and a core itself, however little it offers to tasks.
_NOT_READY_REASON = """coalesce(b.not_ready_reason, CASE
    WHEN b.memory_mb > 1024 * greatest(w.memory_gb, 0.25)
        THEN format('it reports %s MB of memory in use, and it registered with %s GB', round(b.memory_mb), w.memory_gb)
    WHEN b.cpu_percent > 100 * (w.cpu_cores + 1)
        THEN format('it reports %s %% of a core in use, and it registered with %s cores',
                    round(b.cpu_percent), w.cpu_cores) END)"""

# Workers before tasks, each in the order of ids: the lock order of everything that takes both. The materialized parts
# lock first, as an UPDATE alone would lock in the order of its join. What somebody else has locked is skipped, so that
# it does not hold up the others. A lease that is not acknowledged is not renewed, so that one whose answer was lost
# expires soon. The beats go from step to step with what was locked, and the last join is a full one, which is never a
# nested loop: no planner knows the sizes of the steps.
_HEARTBEATS = f"""
WITH locked AS MATERIALIZED (
    SELECT w.id, b.draining, b.task_id, b.token, b.cpu_percent, b.memory_mb, b.errors,
           w.not_ready_reason AS former_reason, CASE WHEN w.state = 'starting' THEN {_NOT_READY_REASON} END AS reason
    FROM unnest($1::uuid[], $2::boolean[], $3::uuid[], $4::bigint[], $5::float8[], $6::float8[], $7::jsonb[],
                $8::text[])
        AS b (worker_id, draining, task_id, token, cpu_percent, memory_mb, errors, not_ready_reason)
    JOIN workers w ON w.id = b.worker_id ORDER BY w.id FOR NO KEY UPDATE OF w SKIP LOCKED
), updated AS (
    UPDATE workers w
    SET last_seen_at = now(), not_ready_reason = b.reason,
        first_beat_at = CASE WHEN b.reason IS NULL THEN coalesce(w.first_beat_at, now()) END,
        cpu_percent = b.cpu_percent, memory_mb = b.memory_mb, recent_errors = coalesce(b.errors, w.recent_errors),
        state = CASE WHEN b.draining OR w.directive IS NOT NULL THEN 'draining'
                     WHEN w.state = 'starting' AND b.reason IS NULL THEN 'ready' ELSE w.state END
    FROM locked b WHERE w.id = b.id AND w.{LIVE}
    RETURNING w.id, w.state, w.directive, w.directive_reason, w.memory_gb, w.cpu_cores, b.task_id, b.token,
              w.not_ready_reason, w.not_ready_reason IS NOT NULL AND b.former_reason IS NULL AS is_first_failure,
              {ASSIGNED}
), held AS MATERIALIZED (
    SELECT t.id FROM updated b
    JOIN tasks t ON t.id = b.task_id AND t.token = b.token AND t.worker_id IS NOT DISTINCT FROM b.id
    ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), renewed AS (
    UPDATE tasks t
    SET lease_expires_at = CASE WHEN t.state = 'executing' THEN now() + make_interval(secs => $9::float8)
                                ELSE t.lease_expires_at END
    FROM held WHERE t.id = held.id AND {counters.COUNTS_ITSELF}
    RETURNING t.worker_id, t.state, t.lease_expires_at
)
SELECT updated.id AS worker_id, updated.state, directive, directive_reason, renewed.state AS lease_state,
       lease_expires_at, memory_gb, cpu_cores, not_ready_reason, is_first_failure, {ASSIGNED}
FROM updated FULL JOIN renewed ON renewed.worker_id = updated.id
"""

_LOG_FILE = "w.handle ->> 'log' AS log_file"
_HELD = "held.id AS task_id, held.leased_at, held.lease_expires_at"
_READ = f"SELECT w.*, {_LOG_FILE}, {_HELD} FROM workers w {lease_ledger.last_and_held('w.id')}"
# A worker's errors may be 64 KiB, and a page has hundreds of workers: each shows its newest one there.
_LISTED = f"""
SELECT {", ".join(f"w.{column.name}" for column in table.c if column.name != "recent_errors")},
       jsonb_path_query_array(w.recent_errors, '$[last]') AS recent_errors, {_LOG_FILE}, {_HELD}
FROM workers w {lease_ledger.last_and_held("w.id")}
"""

# As the list shows it: `busy` while a worker holds a task, which is looked up for those of the stored state alone.
_SHOWN_STATE = "CASE WHEN state = 'ready' AND task_id IS NOT NULL THEN 'busy' ELSE state END"


_LIVENESS = text(f"""
SELECT id AS worker_id, state, coalesce(launched_at, requested_at) AS since, last_seen_at, lost_after_seconds,
       not_ready_reason FROM workers WHERE {LIVE}""")
_LOCKED = text(f"{_LIVENESS.text} AND id = ANY (CAST(:ids AS uuid[])) ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")

# The condition on the state makes the transition legal and unique: of two that end a worker one gets the row.
_END = text("""
UPDATE workers SET state = :state, ended_reason = :reason, ended_at = now()
WHERE id = :id AND state = ANY (CAST(:origins AS text[])) RETURNING name, slot
""")

_ADD_ERROR = text("""
UPDATE workers SET recent_errors = coalesce(recent_errors, '[]'::jsonb)
    || jsonb_build_array(jsonb_build_object('at', now(), 'message', CAST(:message AS text)))
WHERE id = :id
""")

_IS_STOPPING = text(f"SELECT directive IN ('stop', 'restart') FROM workers WHERE id = :id AND {LIVE} FOR UPDATE")

_REGISTERED_BY = text(f"""
SELECT id FROM workers WHERE registered_by = :key_id AND {LIVE} ORDER BY id LIMIT :limit
""")

_NAMES = text("SELECT id, name FROM workers WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY host, slot")

# They hold nothing: their leases went back when they ended. Their keys go with them and not before: by its key a worker
# that comes back is told that it is over, and registers anew, where a refused key counts against its whole address.
_PRUNE = text("""
WITH gone AS (
    DELETE FROM workers WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM workers WHERE ended_at < now() - make_interval(days => :days)
          AND (SELECT l.n FROM leases l WHERE l.worker_id = workers.id LIMIT 1) IS NULL
        ORDER BY ended_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )) RETURNING id
), keyless AS (
    DELETE FROM keys WHERE worker_id = ANY (ARRAY(SELECT id FROM gone))
)
SELECT count(*) FROM gone
""")


async def live_by_name(connection: AsyncConnection, names: Sequence[str]) -> list[NameHolder]:
    """The live workers of these names, locked; nobody else takes a name of them until the transaction ends."""
    await connection.execute(_LOCK_NAMES, {"names": list(names)})
    rows = (await connection.execute(_LIVE_BY_NAME, {"names": list(names)})).mappings()
    return [NameHolder(**row) for row in rows]


async def register(connection: AsyncConnection, worker_id: UUID, registration: Registration) -> tuple[str, int]:
    """Create a worker that registers by itself; return its name and incarnation."""
    row = (await connection.execute(_REGISTER, {"id": worker_id, **asdict(registration)})).one()
    return row.name, row.incarnation


async def register_launched(
    connection: AsyncConnection, worker_id: UUID, registration: Registration
) -> tuple[str, int] | None:
    """Complete the row that was requested of a provisioner; None when the worker is not awaited any more."""
    row = (await connection.execute(_REGISTER_LAUNCHED, {"id": worker_id, **asdict(registration)})).first()
    return (row.name, row.incarnation) if row else None


async def record_heartbeats(
    connection: "asyncpg.Connection[asyncpg.Record]", beats: Sequence[Heartbeat], lease_seconds: float
) -> dict[UUID, HeartbeatReply]:
    """Record heartbeats and renew the acknowledged leases that they name.

    Workers that have ended, or are locked, are left out of the result; a lease that is locked is as if there were none.
    """
    rows = await connection.fetch(_HEARTBEATS, *columns(beats, *Heartbeat.__dataclass_fields__), lease_seconds)
    return {
        row["worker_id"]: HeartbeatReply(
            state=WorkerState(row["state"]),
            not_ready_reason=row["not_ready_reason"],
            is_first_failure=row["is_first_failure"],
            directive=row["directive"],
            directive_reason=row["directive_reason"],
            lease_state=row["lease_state"],
            lease_expires_at=row["lease_expires_at"],
            assignment=_assignment(row),
            memory_gb=row["memory_gb"],
            cpu_cores=row["cpu_cores"],
        )
        for row in rows
    }


async def read(connection: AsyncConnection, worker_id: UUID) -> dict[str, Any] | None:
    """All columns of one worker and the id of the task it holds; None when there is no such worker."""
    row = (await connection.execute(text(f"{_READ} WHERE w.id = :id"), {"id": worker_id})).mappings().first()
    return dict(row) if row else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFilter:
    """Workers of a list; every field that is set narrows it. With states also those that are over are listed."""

    with_ended: bool = False
    names: Collection[str] = ()
    states: Collection[str] = ()
    labels: Collection[tuple[str, str]] = ()

    def conditions(self) -> tuple[list[str], dict[str, Any]]:
        """SQL conditions on a listed worker, and their parameters."""
        conditions, values = [], dict[str, Any]()
        if not self.with_ended and not self.states:
            conditions.append(LIVE)
        if self.states:
            conditions += ["state = ANY (CAST(:stored AS text[]))", f"{_SHOWN_STATE} = ANY (CAST(:states AS text[]))"]
            values |= {"stored": ["ready" if s == "busy" else s for s in self.states], "states": list(self.states)}
        if self.names:
            conditions.append("name = ANY (CAST(:names AS text[]))")
            values["names"] = list(self.names)
        if self.labels:
            conditions.append("labels @> ALL (CAST(:labels AS jsonb[]))")
            values["labels"] = [json.dumps({name: value}) for name, value in self.labels]
        return conditions, values


async def page(
    connection: AsyncConnection, selection: WorkerFilter, *, start_after: tuple[str, int] | None, limit: int
) -> Page[dict[str, Any]]:
    """The selected workers by name and incarnation, each with its newest error alone.

    `start_after` is the last of the previous page.
    """
    conditions, values = selection.conditions()
    if start_after is not None:
        conditions.append("(name, incarnation) > (:name, :incarnation)")
        values |= {"name": start_after[0], "incarnation": start_after[1]}
    where = " AND ".join(["true", *conditions])
    query = f"SELECT * FROM ({_LISTED}) listed WHERE {where} ORDER BY name, incarnation"
    return await pages.read(connection, query, values, limit, lambda row: row)


async def liveness(connection: AsyncConnection) -> list[Liveness]:
    """All live workers; none is locked, which would write to each and make its heartbeats wait."""
    return _liveness(await connection.execute(_LIVENESS))


async def lock_liveness(connection: AsyncConnection, ids: Sequence[UUID], limit: int) -> list[Liveness]:
    """At most `limit` of these that live, locked; one that a heartbeat has locked is evidently alive and left out."""
    return _liveness(await connection.execute(_LOCKED, {"ids": ids, "limit": limit}))


def _liveness(rows: CursorResult[Any]) -> list[Liveness]:
    return [Liveness(**{**row, "state": WorkerState(row["state"])}) for row in rows.mappings()]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedWorker:
    """A worker that has just ended, and the slot that it leaves; None for one that no provisioner started."""

    name: str
    slot: int | None


async def end(connection: AsyncConnection, worker_id: UUID, state: WorkerState, reason: str) -> EndedWorker | None:
    """Move a worker to a final state where the transition is legal; None when it has ended already."""
    values = {"id": worker_id, "state": state.value, "reason": reason, "origins": sorted(origins(state))}
    row = (await connection.execute(_END, values)).mappings().first()
    return EndedWorker(**row) if row else None


async def add_error(connection: AsyncConnection, worker_id: UUID, message: str) -> None:
    """Add an error that is found in the log of a worker to those that it has reported itself."""
    await connection.execute(_ADD_ERROR, {"id": worker_id, "message": message})


async def is_stopping(connection: AsyncConnection, worker_id: UUID) -> bool:
    """Whether a live worker has the directive to stop or restart; locks the worker."""
    return bool((await connection.execute(_IS_STOPPING, {"id": worker_id})).scalar())


async def registered_by(connection: AsyncConnection, key_id: str, limit: int) -> list[UUID]:
    """Ids of live workers that registered with this key, at most `limit`."""
    return list((await connection.execute(_REGISTERED_BY, {"key_id": key_id, "limit": limit})).scalars())


async def names(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, str]:
    """The names of those of these workers that are stored, in the order of their slots."""
    rows = await connection.execute(_NAMES, {"ids": list(ids)})
    return {row.id: row.name for row in rows}


def _assignment(row: asyncpg.Record) -> Assignment:
    agent, *limits = (row[f"assigned_{field}"] for field in Assignment._fields)
    return Assignment(AgentType(agent) if agent else None, *limits)


async def workers_by_state(connection: AsyncConnection) -> dict[str, int]:
    """Numbers of live workers by state, `busy` being those that hold a task; reads one lease for each worker."""
    return {row["state"]: row["workers"] for row in (await connection.execute(_WORKERS)).mappings()}


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete workers that ended more than `days` ago, at most `limit`, with their keys; return their number."""
    return int((await connection.execute(_PRUNE, {"days": days, "limit": limit})).scalar_one())
