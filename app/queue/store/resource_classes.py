"""Resource classes: each distinct request of live tasks has a number, from which its lanes follow."""

from collections.abc import Collection

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.resources import MAX_CLASSES

# Locked, so that no class goes while a submit makes tasks of it.
_FIND = text("""
SELECT asked.request, c.id FROM unnest(CAST(:requests AS text[])) AS asked (request)
JOIN resource_classes c ON c.request = CAST(asked.request AS jsonb) ORDER BY c.id FOR KEY SHARE OF c
""")
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('resource classes', 0))")
_ADD = text("""
WITH free AS (
    SELECT id, row_number() OVER (ORDER BY id) AS place
    FROM generate_series(1, :most) AS each (id) WHERE id NOT IN (SELECT id FROM resource_classes)
)
INSERT INTO resource_classes (id, request)
SELECT free.id, CAST(new.request AS jsonb)
FROM unnest(CAST(:requests AS text[])) WITH ORDINALITY AS new (request, place) JOIN free USING (place)
""")
_LOCK_UNUSED = text("SELECT id FROM resource_classes ORDER BY id FOR UPDATE SKIP LOCKED")
# No index serves this, so it reads the whole table, and only where there is no room for another class.
_READ_WHOLE_TABLES = text("SET LOCAL enable_seqscan = on")
_DROP_UNUSED = text("""
WITH used AS MATERIALIZED (SELECT DISTINCT resource_class AS id FROM tasks WHERE resource_class IS NOT NULL),
gone AS (
    DELETE FROM resource_classes WHERE id = ANY (:ids) AND id NOT IN (SELECT id FROM used) RETURNING id
)
DELETE FROM resource_lanes WHERE resource_class IN (SELECT id FROM gone)
""")
_READ = "SELECT id, request::text AS request FROM resource_classes ORDER BY id"


async def find(connection: AsyncConnection, requests: Collection[str]) -> dict[str, int]:
    """Request -> its class, for those that have one; the classes stay until the transaction ends."""
    rows = await connection.execute(_FIND, {"requests": sorted(requests)})
    return {row.request: row.id for row in rows}


async def lock(connection: AsyncConnection) -> None:
    """Let nobody else make classes until the transaction ends."""
    await connection.execute(_LOCK)


async def add(connection: AsyncConnection, requests: Collection[str]) -> dict[str, int]:
    """Make classes for requests that have none, as long as there is room; return those that were made."""
    await connection.execute(_ADD, {"requests": sorted(requests), "most": MAX_CLASSES})
    notify.note(connection, notify.RESOURCES)
    return await find(connection, requests)


async def drop_unused(connection: AsyncConnection) -> None:
    """Delete the classes of which no live task is; to be called under the lock."""
    # A submit that has just made tasks of a class holds its row; the statement after the locks sees those of others.
    ids = list((await connection.execute(_LOCK_UNUSED)).scalars())
    await connection.execute(_READ_WHOLE_TABLES)
    await connection.execute(_DROP_UNUSED, {"ids": ids})


async def read(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[int, str]:
    """Class -> its request as JSON text, of all."""
    return {row["id"]: row["request"] for row in await connection.fetch(_READ)}
