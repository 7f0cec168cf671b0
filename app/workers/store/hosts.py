"""Hosts of workers, and the lock under which the pool is counted and its size changed."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import pruning
from app.workers.rules import classes as worker_classes
from app.workers.rules.classes import WorkerClass
from app.workers.rules.hosts import Host, MemberWait
from app.workers.rules.recovery import SilentHost

# A host that is silent for longer does not count: its provisioner, which reports every 2 s, is away.
FRESH_SECONDS = 15.0
# After a longer break the size that a host had no longer matters, and it starts from its setting again.
FORGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Report of a provisioner on its host; the fields are those of Host."""

    provisioner: str
    host: str
    usual_size: int
    memory_gb: float
    memory_used_gb: float
    cpu_cores: float
    cpu_share: float | None


# Whoever counts live workers and then adds some must be alone, or two could fill the same room.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('convener pool', 0))")

# A host that comes back soon keeps the size that the scaling loop gave it.
_REPORT = text(f"""
INSERT INTO hosts AS stored (provisioner, host, size, usual_size, memory_gb, memory_used_gb, cpu_cores, cpu_share,
                            seen_at)
VALUES (:provisioner, :host, greatest(CAST(:usual_size AS integer), CAST(:living AS integer)),
        CAST(:usual_size AS integer), :memory_gb, :memory_used_gb, :cpu_cores,
        :cpu_share, now())
ON CONFLICT (provisioner, host) DO UPDATE SET
    size = CASE WHEN stored.seen_at < now() - interval '{FORGET_SECONDS:g} s' THEN excluded.size ELSE stored.size END,
    extra = CASE WHEN stored.seen_at < now() - interval '{FORGET_SECONDS:g} s' THEN 0 ELSE stored.extra END,
    usual_size = excluded.usual_size, memory_gb = excluded.memory_gb, memory_used_gb = excluded.memory_used_gb,
    cpu_cores = excluded.cpu_cores, cpu_share = excluded.cpu_share, seen_at = now()
RETURNING size
""")

_LIVE = text(f"""
SELECT provisioner, host, size, usual_size, extra, memory_gb, memory_used_gb, cpu_cores, cpu_share, max_size,
       block_size, coalesce(member_waits, '[]') AS member_waits, serves
FROM hosts
WHERE seen_at >= now() - interval '{FRESH_SECONDS:g} s' ORDER BY provisioner, host
""")

_CLASSES = text(f"""
SELECT host, serves FROM hosts
WHERE serves IS NOT NULL AND seen_at >= now() - interval '{FRESH_SECONDS:g} s' ORDER BY provisioner, host
""")

# A host that was stopped in order is removed; one that will not come back is nobody's concern after an hour.
_SILENT = text(f"""
SELECT host, size, extract(epoch FROM now() - seen_at)::float8 AS silent_seconds FROM hosts
WHERE seen_at < now() - interval '{FRESH_SECONDS:g} s' AND seen_at > now() - interval '1 h' AND size > 0
ORDER BY host
""")

_RESIZE = text("UPDATE hosts SET size = :size WHERE provisioner = :provisioner AND host = :host")

_ENLARGE = text("""
UPDATE hosts SET size = size + :count, extra = extra + :count WHERE provisioner = :provisioner AND host = :host
""")

# A host that was killed was not removed, and where machines get new names it never comes back. One that does counts as
# new after a minute already, so nothing is lost with its row.
prune = pruning("hosts", "seen_at", "provisioner, host")

_LEAVE = text("DELETE FROM hosts WHERE provisioner = :provisioner AND host = :host")


async def lock_pool(connection: AsyncConnection) -> None:
    """Be the only one to change the size of the pool until the transaction ends."""
    await connection.execute(_LOCK)


async def record_report(connection: AsyncConnection, report: Report, living: int) -> int:
    """Record the report of a host; return the number of workers that it is to keep.

    For a host that is new or was away for long that is its usual size, or the number `living` there if that is more.
    """
    values = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    return int((await connection.execute(_REPORT, {**values, "living": living})).scalar_one())


async def live(connection: AsyncConnection) -> list[Host]:
    """The hosts that have reported lately; their numbers of workers are not filled in."""
    rows = (await connection.execute(_LIVE)).mappings()
    return [
        Host(
            **{
                **row,
                "member_waits": tuple(MemberWait(**wait) for wait in row["member_waits"]),
                "serves": worker_classes.read(row["serves"]) if row["serves"] else None,
            }
        )
        for row in rows
    ]


async def classes(connection: AsyncConnection) -> dict[str, WorkerClass]:
    """The classes of workers that have reported lately, by their names."""
    rows = (await connection.execute(_CLASSES)).mappings()
    return {row["host"]: worker_classes.read(row["serves"]) for row in rows}


async def silent(connection: AsyncConnection) -> list[SilentHost]:
    """The hosts that have stopped to report within the last hour although they were to keep workers."""
    return [SilentHost(**row) for row in (await connection.execute(_SILENT)).mappings()]


async def resize(connection: AsyncConnection, host: Host, size: int) -> None:
    """Set the number of workers that a host keeps."""
    await connection.execute(_RESIZE, {"provisioner": host.provisioner, "host": host.host, "size": size})


async def enlarge(connection: AsyncConnection, host: Host, count: int) -> None:
    """Let a host keep `count` more workers until it leaves, also where the size of the pool is fixed."""
    await connection.execute(_ENLARGE, {"provisioner": host.provisioner, "host": host.host, "count": count})


async def remove(connection: AsyncConnection, provisioner: str, host: str) -> None:
    """Delete a host, which starts no more workers."""
    await connection.execute(_LEAVE, {"provisioner": provisioner, "host": host})
