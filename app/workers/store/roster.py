"""All live workers of the pool at once, as the scaling loop sees and assigns them.

Read and written through the driver: a thousand rows are read every few seconds, all but who is busy in the loop's own
transaction.
"""

from collections.abc import Awaitable, Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.ids import WorkerId
from app.queue.store import lease_ledger


class Worker(NamedTuple):
    """A live worker; `state` is starting, ready or draining. A tuple, since there may be many.

    `provisioner`, `host` and `slot` say who keeps it running; no provisioner: somebody else. `capabilities` are what it
    can run, with commas between, as most can run the same; None before it has said so. `age_seconds` is the time
    since one that is starting was asked for or launched, `took_seconds` that from the request to its first heartbeat of
    one that has sent it since the last look; None for the others. One that is `restarting` leaves, and another comes in
    its place.
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
    busy: bool


# A look is of the moment in which its transaction began: whose first heartbeat came later is the next look's to learn.
_READ = """
SELECT w.id, CASE WHEN w.directive IS NOT NULL THEN 'draining' ELSE w.state END AS state, w.provisioner, w.host, w.slot,
    CASE WHEN w.registered_at IS NOT NULL THEN array_to_string(w.capabilities, ',') END AS capabilities,
    w.assigned_agent, w.assigned_memory_gb, w.assigned_cpu_cores, w.assigned_compute_seconds,
    w.memory_gb, w.cpu_cores, w.cpu_percent, w.memory_mb,
    CASE WHEN w.state = 'starting' THEN extract(epoch FROM now() - coalesce(w.launched_at, w.requested_at))::float8 END
        AS age_seconds,
    CASE WHEN w.first_beat_at > $1 AND w.first_beat_at <= now()
        THEN extract(epoch FROM w.first_beat_at - w.requested_at)::float8 END AS took_seconds,
    coalesce(w.directive = 'restart', false) AS restarting
FROM workers w WHERE w.state IN ('starting', 'ready', 'draining') ORDER BY w.id
"""

_BUSY = f"""
SELECT array_agg(w.id) FROM workers w {lease_ledger.joined("w.id")}
WHERE w.state IN ('starting', 'ready', 'draining') AND held.id IS NOT NULL
"""

# In the order of the ids, as heartbeats lock them too.
_ASSIGN = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::float8[], $4::float8[], $5::float8[])
        AS g (id, agent, memory_gb, cpu_cores, compute_seconds)
), ours AS MATERIALIZED (
    SELECT w.id FROM workers w JOIN given ON given.id = w.id ORDER BY w.id FOR NO KEY UPDATE OF w
)
UPDATE workers w SET assigned_agent = g.agent, assigned_memory_gb = g.memory_gb, assigned_cpu_cores = g.cpu_cores,
    assigned_compute_seconds = g.compute_seconds
FROM given g JOIN ours ON ours.id = g.id
WHERE w.id = g.id AND w.state IN ('starting', 'ready', 'draining')
"""

_LOCK = "SELECT FROM workers WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"

_REQUEST = """
INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, capabilities, labels,
                     assigned_agent, assigned_memory_gb, assigned_cpu_cores, assigned_compute_seconds)
SELECT g.id, g.name, 1 + coalesce((SELECT max(incarnation) FROM workers w WHERE w.name = g.name), 0), 'starting',
       g.provisioner, g.slot, g.host, '{}', '{}', g.agent, g.memory_gb, g.cpu_cores, g.compute_seconds
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::float8[], $8::float8[],
            $9::float8[]) AS g (id, name, provisioner, slot, host, agent, memory_gb, cpu_cores, compute_seconds)
"""

_NAMED = text("""
SELECT name FROM workers WHERE name = ANY (CAST(:names AS text[])) AND state IN ('starting', 'ready', 'draining')
""")

_COUNT = text("SELECT count(*) FROM workers WHERE state IN ('starting', 'ready', 'draining')")


class Given(NamedTuple):
    """What a worker is assigned: agent, GB, cores, and seconds of compute for a task."""

    id: UUID
    agent: str | None
    memory_gb: float | None
    cpu_cores: float | None
    compute_seconds: float | None


class Requested(NamedTuple):
    """A worker that a provisioner is to start, and what it is assigned."""

    id: UUID
    name: str
    provisioner: str
    slot: int
    host: str
    agent: str | None
    memory_gb: float | None
    cpu_cores: float | None
    compute_seconds: float | None


async def read(
    connection: AsyncConnection, since: datetime | None = None, busy: Awaitable[Collection[WorkerId]] | None = None
) -> list[Worker]:
    """All live workers by id; `since` was the last look, and who is busy may be looked up elsewhere meanwhile."""
    driver = await _driver(connection)
    rows = await driver.fetch(_READ, since)
    holders = await (busy or holders_of_tasks(driver))
    return [Worker._make((*row, row[0] in holders)) for row in rows]


async def holders_of_tasks(driver: "asyncpg.Connection[asyncpg.Record]") -> set[WorkerId]:
    """The live workers that hold a task: a look at each, and at the one task of its last lease."""
    return set(await driver.fetchval(_BUSY) or ())


async def lock(connection: AsyncConnection, worker_ids: Collection[UUID]) -> None:
    """Be the only one to change these workers: all at once, in the order in which heartbeats lock them."""
    if worker_ids:
        await (await _driver(connection)).execute(_LOCK, list(worker_ids))


async def assign(connection: AsyncConnection, given: Sequence[Given]) -> None:
    """Write down what workers are assigned; those that are over meanwhile are passed over."""
    if given:
        await (await _driver(connection)).execute(_ASSIGN, *_columns(given))


async def request(connection: AsyncConnection, requested: Sequence[Requested]) -> None:
    """Write down that workers are wanted; a provisioner starts them later."""
    if requested:
        await (await _driver(connection)).execute(_REQUEST, *_columns(requested))


async def named(connection: AsyncConnection, names: Sequence[str]) -> list[str]:
    """Those of the names that live workers bear."""
    return list((await connection.execute(_NAMED, {"names": list(names)})).scalars())


async def count(connection: AsyncConnection) -> int:
    """How many live workers there are, whoever started them."""
    return int((await connection.execute(_COUNT)).scalar_one())


def _columns(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return list(zip(*rows, strict=True))


async def _driver(connection: AsyncConnection) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's connection, inside the transaction that SQLAlchemy began with the first statement on it."""
    raw = await connection.get_raw_connection()
    driver: asyncpg.Connection[asyncpg.Record] | None = raw.driver_connection
    assert driver is not None
    assert driver.is_in_transaction(), "a statement through SQLAlchemy must come first"
    return driver
