"""Signs of life of workers beside their heartbeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.hot_path import columns
from app.kernel.ids import WorkerId
from app.workers.store.tables import LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A sign of life of a worker `age` seconds ago, to be stored where none is of the last `unseen` seconds.

    `is_waiting`: it is a call that waits for a task.
    """

    worker_id: WorkerId
    age: float
    unseen: float
    is_waiting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSign:
    """Seconds since the last sign of life that was stored of a worker before; None before its first heartbeat."""

    silent_seconds: float | None
    is_stored: bool


# What a heartbeat has locked is skipped: it is a later sign of life. Times only rise, whoever comes last.
_SIGNS = f"""
WITH sign AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::float8[], $3::float8[]) AS s (worker_id, age, unseen)
), locked AS MATERIALIZED (
    SELECT w.id, sign.age FROM sign JOIN workers w ON w.id = sign.worker_id
    WHERE w.state IN ('ready', 'draining') AND w.last_seen_at <= now() - make_interval(secs => sign.unseen)
    ORDER BY w.id FOR NO KEY UPDATE OF w SKIP LOCKED
), stored AS (
    UPDATE workers w SET last_seen_at = greatest(w.last_seen_at, now() - make_interval(secs => locked.age))
    FROM locked WHERE w.id = locked.id RETURNING w.id
)
SELECT w.id AS worker_id, extract(epoch FROM now() - w.last_seen_at)::float8 AS silent_seconds,
       stored.id IS NOT NULL AS is_stored
FROM sign JOIN workers w ON w.id = sign.worker_id LEFT JOIN stored ON stored.id = w.id
WHERE w.{LIVE}
"""


# In the order of ids, as heartbeats lock them; one that a heartbeat has locked is told by that. What there is none of
# stays so: a starting worker is one that has not been heard of.
_BEGIN_ANEW = text(f"""
WITH ahead AS MATERIALIZED (
    SELECT id FROM workers
    WHERE {LIVE} AND greatest(last_seen_at, launched_at, requested_at) > now() + interval '1 min'
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), ahead_hosts AS MATERIALIZED (
    SELECT provisioner, host FROM hosts WHERE seen_at > now() + interval '1 min' FOR NO KEY UPDATE SKIP LOCKED
), hosts_begun AS (
    UPDATE hosts h SET seen_at = now() FROM ahead_hosts a WHERE (h.provisioner, h.host) = (a.provisioner, a.host)
)
UPDATE workers w SET last_seen_at = CASE WHEN w.last_seen_at IS NOT NULL THEN least(w.last_seen_at, now()) END,
    launched_at = CASE WHEN w.launched_at IS NOT NULL THEN least(w.launched_at, now()) END,
    requested_at = least(w.requested_at, now())
FROM ahead WHERE w.id = ahead.id
""")


async def begin_anew(connection: AsyncConnection) -> None:
    """Let workers and hosts that were heard of before the clock was set back be silent from now on."""
    await connection.execute(_BEGIN_ANEW)


async def store_signs(
    connection: "asyncpg.Connection[asyncpg.Record]", signs: Sequence[Sign]
) -> dict[UUID, StoredSign]:
    """Store signs of life of workers that are ready or drain; workers that have ended are left out of the result."""
    rows = await connection.fetch(_SIGNS, *columns(signs, "worker_id", "age", "unseen"))
    return {
        row["worker_id"]: StoredSign(silent_seconds=row["silent_seconds"], is_stored=row["is_stored"]) for row in rows
    }
