"""The managed pool: its members, the launches that provisioners claim, and the replacements of lost workers."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.db.retention import pruning
from app.queue.store import lease_ledger
from app.workers.rules.pool import CrashPolicy, PoolMember, SlotDeaths
from app.workers.rules.recovery import EnginePool, RecoveryPolicy, RecoverySnapshot, SlotRecord
from app.workers.store import hosts
from app.workers.store.tables import LIVE

STEPS = ("requested", "started", "registered", "first_lease")

_PERCENTILES = ",\n       ".join(
    f"percentile_cont(CAST(:shares AS float8[])) WITHIN GROUP (ORDER BY extract(epoch FROM {step}_at - detected_at))"
    f" AS {step}"
    for step in STEPS
)

# Only the newest: older ones belong to other conditions, and many would take long to sort.
_TIMES = text(f"""
SELECT count(*) AS replacements, count(first_lease_at) AS working, min(detected_at) AS since,
       {_PERCENTILES}
FROM (SELECT * FROM replacements ORDER BY id DESC LIMIT :newest) latest
""")

prune = pruning("replacements", "detected_at", "id")


# Live workers and recently ended ones are read by an index each; one condition for both would read all workers.
_SLOTS = text(f"""
SELECT host, slot,
       count(*) FILTER (WHERE ended_at - requested_at < make_interval(secs => :young)
                          AND state IN ('lost', 'failed')) AS young_deaths,
       (array_agg(ended_reason ORDER BY ended_at DESC) FILTER (WHERE state IN ('lost', 'failed')))[1] AS last_reason,
       coalesce(bool_or(ended_at IS NULL AND first_beat_at < now() - make_interval(secs => :young)), false) AS is_steady
FROM (
    SELECT w.* FROM workers w WHERE w.{LIVE}
    UNION ALL
    SELECT w.* FROM workers w WHERE w.ended_at > now() - make_interval(secs => :window)
) members
WHERE slot IS NOT NULL AND provisioner IS NOT NULL GROUP BY provisioner, host, slot
HAVING bool_or(state <> 'stopped') ORDER BY host, slot
""")

# Replacements that were requested and whose worker still has not registered.
_OVERDUE = text("""
SELECT count(*) FROM replacements r
WHERE r.id > (SELECT coalesce(max(id), 0) - 1000 FROM replacements)
  AND r.detected_at BETWEEN now() - make_interval(secs => :window) AND now() - make_interval(secs => :within)
  AND r.worker_id IS NOT NULL AND r.registered_at IS NULL
  AND EXISTS (SELECT FROM workers w WHERE w.id = r.worker_id AND w.state = 'starting')
""")


# Of a machine that has restarted the former workers are not heard of after the new ones have come.
_SHARED_HOSTS = text(f"""
SELECT host FROM (
    SELECT provisioner, host, max(last_seen_at) AS heard_at, min(registered_at) AS began_at
    FROM workers WHERE {LIVE} AND handle ->> 'table' IS NOT NULL GROUP BY provisioner, host, handle ->> 'table'
) machines
GROUP BY provisioner, host
HAVING count(*) > 1 AND min(heard_at) > max(began_at) + interval '{hosts.FRESH_SECONDS:g} s' ORDER BY host
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A worker that a provisioner is to start now."""

    worker_id: UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedWorker:
    """A live worker of a provisioner on one host; without a `handle` no process was recorded yet.

    It was heard of `heard_seconds_ago`, None before it registers; it is silent for `silent_seconds`, if for longer than
    it may, else 0.
    """

    worker_id: UUID
    handle: dict[str, Any] | None
    directive: str | None
    heard_seconds_ago: float | None
    silent_seconds: float


_MEMBERS = text(f"""
SELECT w.id AS worker_id, w.slot, w.state = 'draining' OR w.directive IS NOT NULL AS leaving,
       held.id IS NOT NULL AS busy, coalesce(w.directive = 'restart', false) AS restarting
FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.{LIVE} AND w.provisioner = :provisioner AND w.host = :host ORDER BY w.slot
""")

# Young deaths count only since the last worker of the same name that was ready for longer.
_DEATHS = """
SELECT w.host, w.slot, count(*) AS deaths, max(w.ended_at) AS last_at FROM workers w
WHERE {where} AND w.slot IS NOT NULL AND w.state IN ('lost', 'failed')
  AND w.ended_at > now() - make_interval(secs => :window)
  AND w.ended_at - coalesce(w.first_beat_at, w.ended_at) < make_interval(secs => :young)
  AND NOT EXISTS (
      SELECT FROM workers later WHERE later.name = w.name AND later.incarnation > w.incarnation
        AND coalesce(later.ended_at, now()) - later.first_beat_at >= make_interval(secs => :young)
  )
GROUP BY w.host, w.slot
"""

# Claiming a launch is a commit of its own: a crash after it leaves a row that the start deadline ends. Rows that
# another run of the loops is claiming are skipped, so that no worker is started twice.
HAS_LAUNCHES = "EXISTS (SELECT FROM workers WHERE state = 'starting' AND launched_at IS NULL)"
_CLAIM_LAUNCHES = text("""
UPDATE workers SET launched_at = now() WHERE id IN (
    SELECT id FROM workers WHERE state = 'starting' AND provisioner = :provisioner AND host = :host
      AND launched_at IS NULL ORDER BY slot FOR UPDATE SKIP LOCKED
) RETURNING id AS worker_id, name
""")

_STARTED = text("UPDATE workers SET handle = CAST(:handle AS jsonb), started_at = now() WHERE id = :id")

_MANAGED = text(f"""
SELECT w.id AS worker_id, w.handle, w.directive, silence.seconds AS heard_seconds_ago,
       CASE WHEN silence.seconds > w.lost_after_seconds THEN silence.seconds ELSE 0 END AS silent_seconds
FROM workers w CROSS JOIN LATERAL (
    SELECT extract(epoch FROM now() - coalesce(w.last_seen_at, w.registered_at))::float8 AS seconds
) silence
WHERE w.{LIVE} AND w.provisioner = :provisioner AND w.host = :host ORDER BY w.slot
""")

# Once for each lost worker, however often its loss is reported.
_OPEN = text("""
INSERT INTO replacements (lost_worker_id, slot, worker_name, cause, detected_at)
VALUES (:lost, :slot, :name, :cause, now()) ON CONFLICT (lost_worker_id) DO NOTHING
""")

# Of several open losses of the slot the new worker follows the newest. A transaction of other loops that has waited
# for the one which found the loss has begun before it.
_ANSWER = text("""
UPDATE replacements SET worker_id = :worker_id, requested_at = greatest(now(), detected_at)
WHERE id = (SELECT id FROM replacements WHERE slot = :slot AND worker_name = :name AND worker_id IS NULL
              AND closed_at IS NULL ORDER BY id DESC LIMIT 1)
""")

# By the lost worker's host, since a slot alone does not tell whose it is.
_CLOSE_ON_GONE_HOSTS = text(f"""
UPDATE replacements r SET closed_at = now(), closed_reason = 'its host does not report any more'
WHERE worker_id IS NULL AND closed_at IS NULL AND detected_at < now() - interval '{hosts.FORGET_SECONDS:g} s'
  AND NOT EXISTS (SELECT FROM workers w JOIN hosts h ON h.provisioner = w.provisioner AND h.host = w.host
                  WHERE w.id = r.lost_worker_id AND h.seen_at > now() - interval '{hosts.FORGET_SECONDS:g} s')
""")

_CLOSE_UNNEEDED = text("""
UPDATE replacements SET closed_at = now(), closed_reason = 'the pool has as many workers as it is to have'
WHERE worker_id IS NULL AND closed_at IS NULL AND slot = ANY (CAST(:slots AS integer[]))
  AND worker_name = :host || '-' || slot::text
""")

# A worker that restarts leaves no replacement, since nothing was lost; its slot counts as vacated for a minute.
_VACATED = text("""
SELECT slot FROM replacements WHERE worker_id IS NULL AND closed_at IS NULL AND worker_name = :host || '-' || slot::text
UNION
SELECT w.slot FROM workers w
WHERE w.host = :host AND w.slot IS NOT NULL AND w.state = 'stopped' AND w.directive = 'restart'
  AND w.ended_at > now() - interval '1 min'
  AND NOT EXISTS (SELECT FROM workers later WHERE later.name = w.name AND later.incarnation > w.incarnation)
""")

# The first time counts: a worker whose answer was lost registers again.
_MARK = {
    column: text(
        f"UPDATE replacements SET {column} = coalesce({column}, greatest(now(), {earlier})) WHERE worker_id = :id"
    )
    for column, earlier in (("started_at", "requested_at"), ("registered_at", "requested_at, started_at"))
}

# By the ledger, as whoever records it may come late: after an outage, or after the process that served it was killed.
_FIRST_LEASED_AT = "(SELECT l.leased_at FROM leases l WHERE l.worker_id = r.worker_id ORDER BY l.n LIMIT 1)"
_FIRST_LEASES = f"""
UPDATE replacements r SET first_lease_at = coalesce({_FIRST_LEASED_AT}, now())
WHERE worker_id = ANY ($1::uuid[]) AND first_lease_at IS NULL
"""

_MISSED_FIRST_LEASES = text(f"""
UPDATE replacements r SET first_lease_at = {_FIRST_LEASED_AT}
WHERE r.id > (SELECT coalesce(max(id), 0) - 1000 FROM replacements)
  AND r.worker_id IS NOT NULL AND r.first_lease_at IS NULL AND r.closed_at IS NULL AND {_FIRST_LEASED_AT} IS NOT NULL
""")

_CONCLUDE = text(f"""
UPDATE replacements r SET first_lease_at = {_FIRST_LEASED_AT},
    closed_at = CASE WHEN {_FIRST_LEASED_AT} IS NULL THEN now() END,
    closed_reason = CASE WHEN {_FIRST_LEASED_AT} IS NULL THEN 'it ended before its first lease: ' || :reason END
WHERE worker_id = :worker_id AND first_lease_at IS NULL AND closed_at IS NULL
""")

_REPLACEMENTS = """
SELECT id, lost_worker_id, worker_id, worker_name, cause, detected_at, requested_at, started_at, registered_at,
       first_lease_at, closed_at, closed_reason FROM replacements
"""


async def members(connection: AsyncConnection, provisioner: str, host: str) -> list[PoolMember]:
    """The live workers of one provisioner on one host."""
    rows = (await connection.execute(_MEMBERS, {"provisioner": provisioner, "host": host})).mappings()
    return [PoolMember(**row) for row in rows]


async def young_deaths(
    connection: AsyncConnection, policy: CrashPolicy, *, provisioner: str | None = None, host: str | None = None
) -> list[SlotDeaths]:
    """Slots whose workers died young lately, of one provisioner on one host or of all."""
    filters = {"provisioner": provisioner, "host": host}
    filters = {name: value for name, value in filters.items() if value is not None}
    where = " AND ".join([f"w.{name} = :{name}" for name in filters]) or "true"
    values = {**filters, "window": policy.window_seconds, "young": policy.young_seconds}
    rows = (await connection.execute(text(_DEATHS.format(where=where)), values)).mappings()
    return [SlotDeaths(**row) for row in rows]


async def claim_launches(connection: AsyncConnection, provisioner: str, host: str) -> list[Launch]:
    """Claim the requested workers of a host whose start nobody has begun."""
    rows = (await connection.execute(_CLAIM_LAUNCHES, {"provisioner": provisioner, "host": host})).mappings()
    return [Launch(**row) for row in rows]


async def record_start(connection: AsyncConnection, worker_id: UUID, handle: dict[str, Any]) -> None:
    """Store the handle by which the process of a worker is found again."""
    await connection.execute(_STARTED, {"id": worker_id, "handle": json.dumps(handle)})
    await connection.execute(_MARK["started_at"], {"id": worker_id})


async def record_registration(connection: AsyncConnection, worker_id: UUID) -> None:
    """Record that a worker has registered, in its replacement if it is one."""
    await connection.execute(_MARK["registered_at"], {"id": worker_id})


async def managed_workers(connection: AsyncConnection, provisioner: str, host: str) -> list[ManagedWorker]:
    """All live workers of one provisioner on one host, with the handles of their processes."""
    rows = (await connection.execute(_MANAGED, {"provisioner": provisioner, "host": host})).mappings()
    return [ManagedWorker(**row) for row in rows]


async def open_replacement(connection: AsyncConnection, lost_id: UUID, *, slot: int, name: str, cause: str) -> None:
    """Record that a worker of the pool was lost and its slot needs another; once for each lost worker."""
    await connection.execute(_OPEN, {"lost": lost_id, "slot": slot, "name": name, "cause": cause})


async def fill_replacement(connection: AsyncConnection, worker_id: UUID, *, slot: int, name: str) -> None:
    """Record a new worker as the replacement of the one of its name that was lost from the slot, if there is one."""
    await connection.execute(_ANSWER, {"worker_id": worker_id, "slot": slot, "name": name})


async def close_replacements_on_gone_hosts(connection: AsyncConnection) -> int:
    """Close replacements that nobody starts, as their host is away for longer than it keeps its place; count them."""
    return (await connection.execute(_CLOSE_ON_GONE_HOSTS)).rowcount


async def close_unneeded_replacements(connection: AsyncConnection, host: str, slots: Collection[int]) -> None:
    """Close the replacements that are open for these slots of a host, which has as many workers as it is to have."""
    await connection.execute(_CLOSE_UNNEEDED, {"host": host, "slots": list(slots)})


async def vacated_slots(connection: AsyncConnection, host: str) -> frozenset[int]:
    """The slots of a host without a successor yet to a worker that was lost, or has stopped to restart."""
    return frozenset((await connection.execute(_VACATED, {"host": host})).scalars())


async def record_first_leases(connection: "asyncpg.Connection[asyncpg.Record]", worker_ids: Sequence[UUID]) -> None:
    """Record the first lease of those of these workers that are replacements and had none yet."""
    await connection.execute(_FIRST_LEASES, worker_ids)


async def record_missed_first_leases(connection: AsyncConnection) -> None:
    """Record the first leases of replacements that nobody has recorded, as the process that gave them was killed."""
    await connection.execute(_MISSED_FIRST_LEASES)


async def conclude_replacement(connection: AsyncConnection, worker_id: UUID, reason: str) -> None:
    """Record of a worker that has ended, if it is a replacement, its first lease, or that it had none and why."""
    await connection.execute(_CONCLUDE, {"worker_id": worker_id, "reason": reason})


async def replacements(connection: AsyncConnection, *, below: int | None, limit: int) -> Page[dict[str, Any]]:
    """Replacements with all their times, newest first; those with ids below `below`, if that is set."""
    where = "WHERE id < :below" if below is not None else ""
    values = {"below": below} if below is not None else {}
    return await pages.read(connection, f"{_REPLACEMENTS} {where} ORDER BY id DESC", values, limit, lambda row: row)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementTimes:
    """Times of the newest replacements: their number, the number that work, and percentiles of each step.

    `steps` holds, for each of STEPS, the seconds since the detection of the loss at each of the shares; None where no
    replacement came that far.
    """

    replacements: int
    working: int
    since: datetime | None
    steps: Mapping[str, Sequence[float] | None]


async def replacement_times(
    connection: AsyncConnection, shares: Sequence[float], *, newest: int = 1000
) -> ReplacementTimes:
    """Percentiles, at these shares, of the steps of the `newest` replacements."""
    row = (await connection.execute(_TIMES, {"shares": list(shares), "newest": newest})).mappings().one()
    return ReplacementTimes(
        replacements=row["replacements"],
        working=row["working"],
        since=row["since"],
        steps={step: row[step] for step in STEPS},
    )


async def recovery_snapshot(connection: AsyncConnection, policy: RecoveryPolicy) -> RecoverySnapshot:
    """The slots of the managed pool on all hosts, and the number of overdue replacements."""
    times = {"window": policy.window_seconds}
    rows = (await connection.execute(_SLOTS, {**times, "young": policy.young_seconds})).mappings()
    slots = [SlotRecord(**row) for row in rows]
    overdue = await connection.execute(_OVERDUE, {**times, "within": policy.replace_within_seconds})
    silent_hosts = await hosts.silent(connection)
    shared_hosts = tuple((await connection.execute(_SHARED_HOSTS)).scalars())
    engine_pools = tuple(
        EnginePool(name=host.host, size=host.size, failures=[wait for wait in host.member_waits if wait.is_failure])
        for host in await hosts.live(connection)
        if host.is_scaled
    )
    return RecoverySnapshot(
        slots=slots,
        overdue=overdue.scalar_one(),
        silent_hosts=silent_hosts,
        shared_hosts=shared_hosts,
        engine_pools=engine_pools,
    )
