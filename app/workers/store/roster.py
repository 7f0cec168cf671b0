"""All live workers of the pool at once, as the scaling loop reads, assigns and requests them.

Through the driver, since a thousand rows are read every few seconds; all but the busy ones in the loop's transaction.
"""

from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.ids import WorkerId
from app.queue.store import lease_ledger
from app.workers.rules.assignment import UNDECIDED, Assignment
from app.workers.rules.blocks import BLOCK_LABEL
from app.workers.store.tables import LIVE


class Worker(NamedTuple):
    """A live worker; `state` is starting, ready or draining. A tuple, since there may be many.

    Without a `provisioner` somebody else started it. `capabilities` are the agent types that it can run, separated by
    commas, as most can run the same; None before it has registered. `age_seconds` is the time since a starting worker
    was requested or launched; `took_seconds` that from the request to the first heartbeat of one that has sent it since
    the last decision; None for the others. A `restarting` worker leaves, and a successor takes its slot. Those of a
    `block` can only be removed together.
    """

    id: WorkerId
    state: str
    provisioner: str | None
    host: str | None
    slot: int | None
    capabilities: str | None
    assigned_agent: str | None
    assigned_memory_gb: float | None
    assigned_cpu_cores: float | None
    assigned_compute_seconds: float | None
    memory_gb: float | None
    cpu_cores: float | None
    cpu_percent: float | None
    memory_mb: float | None
    age_seconds: float | None
    took_seconds: float | None
    restarting: bool
    block: str | None
    busy: bool


# Where a Worker has the values of an Assignment, so that the two compare without a call.
ASSIGNED_FIELDS = slice(Worker._fields.index("assigned_agent"), Worker._fields.index("assigned_compute_seconds") + 1)
# As the columns of a worker, in the order of the fields of an Assignment.
_COLUMNS = tuple(f"assigned_{field}" for field in Assignment._fields)
ASSIGNED = ", ".join(_COLUMNS)

# A worker with a directive leaves, whatever its state, and counts as draining. now() is when the transaction began: a
# first heartbeat that came later is counted by the next decision, once. Anybody may have the label of a block, but not
# the name.
_READ = f"""
SELECT w.id, CASE WHEN w.directive IS NOT NULL THEN 'draining' ELSE w.state END AS state, w.provisioner, w.host, w.slot,
    CASE WHEN w.registered_at IS NOT NULL THEN array_to_string(w.capabilities, ',') END AS capabilities,
    {ASSIGNED},
    w.memory_gb, w.cpu_cores, w.cpu_percent, w.memory_mb,
    CASE WHEN w.state = 'starting' THEN extract(epoch FROM now() - coalesce(w.launched_at, w.requested_at))::float8 END
        AS age_seconds,
    CASE WHEN w.first_beat_at > $1 AND w.first_beat_at <= now()
        THEN extract(epoch FROM w.first_beat_at - w.requested_at)::float8 END AS took_seconds,
    coalesce(w.directive = 'restart', false) AS restarting,
    CASE WHEN starts_with(w.name, w.host || '-' || (w.labels ->> '{BLOCK_LABEL}') || '-')
        THEN w.labels ->> '{BLOCK_LABEL}' END AS block
FROM workers w WHERE w.{LIVE} ORDER BY w.id
"""

_BUSY = f"""
SELECT array_agg(w.id) FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.{LIVE} AND held.id IS NOT NULL
"""

# Known for a while only, as the next workers may have other handlers than the last, which only they can tell.
_FORMER = """
SELECT DISTINCT ON (provisioner, host) provisioner, host, array_to_string(capabilities, ',') AS capabilities
FROM (
    SELECT provisioner, host, capabilities, ended_at FROM workers
    WHERE ended_at > now() - interval '10 min' AND provisioner IS NOT NULL AND registered_at IS NOT NULL
    ORDER BY ended_at DESC LIMIT 100
) ended
ORDER BY provisioner, host, ended_at DESC
"""

# Locked in the order of ids, as by heartbeats, or the two could deadlock.
_ASSIGN = f"""
WITH decided AS MATERIALIZED (
    SELECT d.* FROM unnest($1::uuid[], $2::text[], $3::float8[], $4::float8[], $5::float8[]) AS d (id, {ASSIGNED})
    JOIN workers w ON w.id = d.id WHERE w.{LIVE} ORDER BY w.id FOR NO KEY UPDATE OF w
)
UPDATE workers w SET ({ASSIGNED}) = ROW ({", ".join(f"d.{column}" for column in _COLUMNS)})
FROM decided d WHERE w.id = d.id
"""

_LOCK = "SELECT FROM workers WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"

# A replacement goes on with the assignment of the last worker of its name, so that it need not wait for a decision.
_REQUEST = f"""
INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, capabilities, labels, {ASSIGNED})
SELECT new.id, new.name, 1 + coalesce(last.incarnation, 0), 'starting', new.provisioner, new.slot, new.host, '{{}}',
       '{{}}', {", ".join(f"CASE WHEN new.inherits THEN last.{column} ELSE new.{column} END" for column in _COLUMNS)}
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::boolean[], $7::text[], $8::float8[],
            $9::float8[], $10::float8[]) AS new (id, name, provisioner, host, slot, inherits, {ASSIGNED})
LEFT JOIN LATERAL (
    SELECT incarnation, {ASSIGNED} FROM workers WHERE name = new.name ORDER BY incarnation DESC LIMIT 1
) last ON true
"""

_COUNT = text(f"SELECT count(*) FROM workers WHERE {LIVE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorker:
    """A worker that a provisioner is to start; `inherits`: with the assignment of the last worker of its name."""

    id: UUID
    provisioner: str
    host: str
    slot: int
    assignment: Assignment = UNDECIDED
    inherits: bool = False

    @property
    def name(self) -> str:
        """The host and the slot, so that whoever takes the slot again is the next incarnation."""
        return f"{self.host}-{self.slot}"


async def read(
    connection: AsyncConnection, since: datetime | None = None, busy: Awaitable[Collection[WorkerId]] | None = None
) -> list[Worker]:
    """All live workers by id; `since` is the time of the last decision, `busy` a query for the busy ones under way."""
    driver = await _driver(connection)
    rows = await driver.fetch(_READ, since)
    busy_ids = await (busy or busy_workers(driver))
    return [Worker._make((*row, row[0] in busy_ids)) for row in rows]


async def former_capabilities(connection: AsyncConnection) -> dict[tuple[str | None, str | None], str]:
    """Return what the worker that ended last could run, by provisioner and host, of those that ended lately."""
    rows = await (await _driver(connection)).fetch(_FORMER)
    return {(row["provisioner"], row["host"]): row["capabilities"] for row in rows}


async def busy_workers(driver: "asyncpg.Connection[asyncpg.Record]") -> set[WorkerId]:
    """Ids of the live workers that hold a task; reads for each the one task of its last lease."""
    return set(await driver.fetchval(_BUSY) or ())


async def lock(connection: AsyncConnection, worker_ids: Collection[UUID]) -> None:
    """Lock these workers at once, in the order in which heartbeats lock them."""
    if worker_ids:
        await (await _driver(connection)).execute(_LOCK, list(worker_ids))


async def assign(connection: AsyncConnection, assignments: Mapping[UUID, Assignment]) -> None:
    """Store assignments of workers; those that have ended meanwhile are left alone."""
    if assignments:
        rows = [(worker_id, *assignment) for worker_id, assignment in assignments.items()]
        await (await _driver(connection)).execute(_ASSIGN, *zip(*rows, strict=True))


async def request(connection: AsyncConnection, workers: Sequence[NewWorker]) -> None:
    """Insert workers as requested; a provisioner starts them later."""
    if workers:
        rows = [(w.id, w.name, w.provisioner, w.host, w.slot, w.inherits, *w.assignment) for w in workers]
        await (await _driver(connection)).execute(_REQUEST, *zip(*rows, strict=True))


async def count(connection: AsyncConnection) -> int:
    """Number of live workers, whoever started them."""
    return int((await connection.execute(_COUNT)).scalar_one())


async def _driver(connection: AsyncConnection) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's connection, inside the transaction that SQLAlchemy began with the first statement on it."""
    raw = await connection.get_raw_connection()
    driver: asyncpg.Connection[asyncpg.Record] | None = raw.driver_connection
    assert driver is not None
    assert driver.is_in_transaction(), "a statement through SQLAlchemy must come first"
    return driver
