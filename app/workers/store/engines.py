"""Pools of engines: their rows among the hosts, their workers, and what a registration as a member depends on."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.queue.store import lease_ledger
from app.workers.rules.engines import MemberWorker
from app.workers.rules.hosts import MemberWait
from app.workers.store.hosts import FORGET_SECONDS
from app.workers.store.tables import LIVE

# Among the members that are awaited: all that are not dismissed.
ANY_MEMBER = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """Report on the pool of an engine; `serves` is the JSON text of a class of workers."""

    provisioner: str
    host: str
    usual_size: int
    max_size: int
    block_size: int
    serves: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    """A pool as recorded: its size within its limit, the members that go, and whether its engine is being asked.

    `scaling_until` changes whenever a process begins or ends to ask.
    """

    size: int
    is_scaling: bool
    scaling_until: datetime | None
    dismissed: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Facts by which a worker may register as a member or not: the size of its pool, and who is there.

    `staying` are the live workers that do not leave, but for those of the same name. `is_awaited` tells whether the
    member was seen at the engine and may stay; `created_at` is when its start began, None where that is not known.
    """

    size: int
    block_size: int
    staying: int
    is_dismissed: bool
    is_awaited: bool
    created_at: datetime | None


# As that of a host: a pool that comes back soon keeps its size. One that comes back later keeps as much of it as its
# engine still has: what waits in a queue would else be cancelled, and ask for a place at its end.
_REPORT = text(f"""
INSERT INTO hosts AS stored (provisioner, host, size, usual_size, memory_gb, memory_used_gb, cpu_cores, max_size,
                             block_size, serves, seen_at)
VALUES (:provisioner, :host, greatest(CAST(:usual_size AS integer), CAST(:living AS integer)),
        CAST(:usual_size AS integer), 0, 0, 0, :max_size, :block_size,
        CAST(:serves AS jsonb), now())
ON CONFLICT (provisioner, host) DO UPDATE SET
    size = CASE WHEN stored.seen_at < now() - interval '{FORGET_SECONDS:g} s'
        THEN greatest(excluded.size, least(stored.size, CAST(:requested AS integer))) ELSE stored.size END,
    extra = CASE WHEN stored.seen_at < now() - interval '{FORGET_SECONDS:g} s' THEN 0 ELSE stored.extra END,
    usual_size = excluded.usual_size, max_size = excluded.max_size, block_size = excluded.block_size,
    serves = excluded.serves, seen_at = now()
RETURNING least(size, max_size) AS size, coalesce(scaling_until > now(), false) AS is_scaling, scaling_until,
    dismissed
""")

_WAITS = text("""
UPDATE hosts SET member_waits = CAST(:waits AS jsonb) WHERE provisioner = :provisioner AND host = :host
  AND member_waits IS DISTINCT FROM CAST(:waits AS jsonb)
""")

_MEMBERS = text("""
UPDATE hosts SET awaited = CAST(:awaited AS jsonb), dismissed = CAST(:dismissed AS text[])
WHERE provisioner = :provisioner AND host = :host
  AND (awaited, dismissed) IS DISTINCT FROM (CAST(:awaited AS jsonb), CAST(:dismissed AS text[]))
""")

_SCALING = text("""
UPDATE hosts SET scaling_until = now() + make_interval(secs => :seconds)
WHERE provisioner = :provisioner AND host = :host
""")

_WORKERS = text(f"""
SELECT w.id AS worker_id, w.name, w.state = 'draining' OR w.directive IS NOT NULL AS leaving,
       held.id IS NOT NULL AS busy
FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.{LIVE} AND w.provisioner = :provisioner AND w.host = :host ORDER BY w.name
""")

_MEMBERSHIP = text(f"""
SELECT least(h.size, h.max_size) AS size, h.block_size, :member = ANY (h.dismissed) AS is_dismissed,
       coalesce(jsonb_exists_any(h.awaited, ARRAY[:member, '{ANY_MEMBER}']), false)
       OR EXISTS (SELECT FROM workers w WHERE w.{LIVE} AND w.provisioner = h.provisioner AND w.host = h.host
          AND w.name = :member) AS is_awaited,
       CAST(h.awaited ->> :member AS timestamptz) AS created_at,
       (SELECT count(*) FROM workers w WHERE w.{LIVE} AND w.provisioner = h.provisioner AND w.host = h.host
          AND w.state <> 'draining' AND w.directive IS NULL AND w.name <> :member) AS staying
FROM hosts h WHERE h.provisioner = :provisioner AND h.host = :host AND h.max_size IS NOT NULL
""")


async def record_report(
    connection: AsyncConnection, report: PoolReport, living: int, requested: int | None = None
) -> PoolRecord:
    """Record the report on a pool of so many workers, whose engine was last `requested` so many; None: nobody knows.

    One that is new has its usual size, or the number of its workers where that is more.
    """
    values = {**asdict(report), "living": living, "requested": requested}
    row = (await connection.execute(_REPORT, values)).mappings().one()
    return PoolRecord(**row)


async def record_waits(connection: AsyncConnection, report: PoolReport, waits: Sequence[MemberWait]) -> None:
    """Record why members do not come."""
    values = {"provisioner": report.provisioner, "host": report.host}
    await connection.execute(_WAITS, {**values, "waits": json.dumps([asdict(wait) for wait in waits])})


async def record_members(
    connection: AsyncConnection,
    report: PoolReport,
    awaited: Mapping[str, datetime | None],
    dismissed: Collection[str],
) -> None:
    """Record the members that may register, with the times of their creation, and those that may not any more."""
    times = {name: created_at and created_at.isoformat() for name, created_at in awaited.items()}
    values = {"provisioner": report.provisioner, "host": report.host}
    await connection.execute(
        _MEMBERS, {**values, "awaited": json.dumps(times, sort_keys=True), "dismissed": sorted(dismissed)}
    )


async def begin_scaling(connection: AsyncConnection, report: PoolReport, seconds: float) -> None:
    """Keep others from asking the engine for another size for so long, or until `end_scaling`."""
    values = {"provisioner": report.provisioner, "host": report.host, "seconds": seconds}
    await connection.execute(_SCALING, values)


async def end_scaling(connection: AsyncConnection, report: PoolReport, rest_seconds: float) -> None:
    """Let others ask the engine again, after so long."""
    await begin_scaling(connection, report, rest_seconds)


async def workers(connection: AsyncConnection, provisioner: str, host: str) -> list[MemberWorker]:
    """The live workers of a pool, with what they hold by the leases that were given."""
    rows = (await connection.execute(_WORKERS, {"provisioner": provisioner, "host": host})).mappings()
    return [MemberWorker(**row) for row in rows]


async def membership(connection: AsyncConnection, provisioner: str, host: str, member: str) -> Membership | None:
    """Facts about a registration as this member; None where nobody keeps such a pool."""
    values = {"provisioner": provisioner, "host": host, "member": member}
    row = (await connection.execute(_MEMBERSHIP, values)).mappings().first()
    return Membership(**row) if row else None
