"""Resource classes: each distinct request of live tasks has a number, from which its lanes follow."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.database import allow_whole_tables
from app.kernel.lanes import Lane
from app.kernel.resources import MAX_CLASSES
from app.queue.store.claims import LOOKED_AT

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
_DROP_UNUSED = text("""
WITH used AS MATERIALIZED (SELECT DISTINCT resource_class AS id FROM tasks WHERE resource_class IS NOT NULL),
gone AS (
    DELETE FROM resource_classes WHERE id = ANY (:ids) AND id NOT IN (SELECT id FROM used) RETURNING id
)
DELETE FROM resource_lanes WHERE resource_class IN (SELECT id FROM gone)
""")
# From the virtual time of the lane on, below which are dead entries of tasks that were leased.
_WAITING = """FROM tasks t
        WHERE t.agent_type = asked.agent_type AND t.priority = asked.priority
          AND t.tag >= coalesce(plain.virtual_time, classed.virtual_time, asked.bottom) AND t.tag < asked.ceiling
          AND state = 'pending' AND blockers = 0 AND run_at IS NULL"""
_LANES = """LEFT JOIN lanes plain
    ON asked.resource_class = 0 AND plain.agent_type = asked.agent_type AND plain.priority = asked.priority
LEFT JOIN resource_lanes classed ON classed.resource_class = asked.resource_class
    AND classed.agent_type = asked.agent_type AND classed.priority = asked.priority"""
_COUNT_WAITING = text(f"""
SELECT asked.place, (SELECT count(*) FROM (SELECT {_WAITING} LIMIT :limit) first) AS tasks
FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:classes AS smallint[]),
            CAST(:bottoms AS float8[]), CAST(:ceilings AS float8[]))
     WITH ORDINALITY AS asked (agent_type, priority, resource_class, bottom, ceiling, place)
{_LANES}
""")
_COUNT_FITTING = text(f"""
SELECT asked.place, fit.tasks, fit.least_seconds
FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:classes AS smallint[]),
            CAST(:bottoms AS float8[]), CAST(:ceilings AS float8[]), CAST(:longest AS float8[]))
     WITH ORDINALITY AS asked (agent_type, priority, resource_class, bottom, ceiling, longest, place)
{_LANES}
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE seconds <= longest) AS tasks, min(seconds) AS least_seconds FROM (
        SELECT coalesce(t.timeout_seconds, :usual_seconds)::float8 AS seconds {_WAITING} ORDER BY t.tag LIMIT :limit
    ) first
) fit
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
    await allow_whole_tables(connection)
    await connection.execute(_DROP_UNUSED, {"ids": ids})


async def read(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[int, str]:
    """Class -> its request as JSON text, of all."""
    return {row["id"]: row["request"] for row in await connection.fetch(_READ)}


async def requests(connection: AsyncConnection) -> dict[int, str]:
    """Class -> its request as JSON text, of all, in a transaction under way."""
    return {row.id: row.request for row in await connection.execute(text(_READ))}


class FittingTasks(NamedTuple):
    """Number of waiting tasks of a lane whose timeouts fit, and the least timeout of all that were looked at."""

    tasks: int
    least_seconds: float


async def count_fitting(
    connection: AsyncConnection, longest: Mapping[Lane, float], usual_seconds: float
) -> dict[Lane, FittingTasks]:
    """Lane -> its tasks that may run now within so many seconds, of as many as a claim looks at.

    `usual_seconds` is the timeout of those that name none.
    """
    lanes = sorted(longest)
    asked = {**_asked(lanes, LOOKED_AT), "longest": [longest[lane] for lane in lanes], "usual_seconds": usual_seconds}
    rows = await connection.execute(_COUNT_FITTING, asked)
    return {
        lanes[row.place - 1]: FittingTasks(row.tasks, math.inf if row.least_seconds is None else row.least_seconds)
        for row in rows
    }


async def count_waiting(connection: AsyncConnection, lanes: Sequence[Lane], limit: int) -> dict[Lane, int]:
    """Lane -> number of its tasks that may run now, of at most `limit` that are looked at in each."""
    rows = await connection.execute(_COUNT_WAITING, _asked(lanes, limit))
    return {lanes[row.place - 1]: row.tasks for row in rows}


def _asked(lanes: Sequence[Lane], limit: int) -> dict[str, object]:
    return {
        "agents": [lane.agent_type.value for lane in lanes],
        "priorities": [lane.priority.value for lane in lanes],
        "classes": [lane.resource_class for lane in lanes],
        "bottoms": [lane.bottom for lane in lanes],
        "ceilings": [lane.ceiling for lane in lanes],
        "limit": limit,
    }
