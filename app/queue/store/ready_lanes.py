"""Lanes in which tasks may run, by looks at the heads of their indexes: a claim goes through those alone."""

from collections.abc import Iterable, Mapping
from datetime import datetime

import asyncpg

from app.kernel.lanes import Lane
from app.queue.store import lanes

_FIND = """
SELECT lane.agent_type, lane.priority, head.tag
FROM unnest($1::text[], $2::smallint[], $3::float8[], $4::float8[]) AS lane (agent_type, priority, floor, ceiling)
CROSS JOIN LATERAL (
    SELECT tag FROM tasks t
    WHERE t.agent_type = lane.agent_type AND t.priority = lane.priority
      AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND tag >= lane.floor AND tag < lane.ceiling
    ORDER BY tag LIMIT 1
) head
WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = lane.agent_type)
"""

# By the time since when tasks wait, because going through a lane from its bottom would walk over the dead entries of
# everything leased before. The first OFFSET 0 keeps the planner from turning this into such a walk, the second from
# comparing each task with each lane.
_FIND_BELOW = f"""
SELECT lowest.agent_type, lowest.priority, lowest.tag
FROM (
    SELECT t.agent_type, t.priority, min(t.tag) AS tag
    FROM (SELECT DISTINCT priority FROM unnest($2::smallint[]) AS all_of (priority)) lane_priority
    CROSS JOIN LATERAL (
        SELECT agent_type, priority, tag FROM tasks
        WHERE tasks.priority = lane_priority.priority AND tasks.priority <= 4
          AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND waiting_since >= $4 OFFSET 0
    ) t
    GROUP BY t.agent_type, t.priority, ({lanes.sql_class_of("t.tag")}) OFFSET 0
) lowest
JOIN unnest($1::text[], $2::smallint[], $3::float8[], $5::float8[]) AS lane (agent_type, priority, floor, bottom)
    ON lane.agent_type = lowest.agent_type AND lane.priority = lowest.priority
       AND lowest.tag < lane.floor AND lowest.tag >= lane.bottom
WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = lowest.agent_type)
"""


async def find(
    connection: "asyncpg.Connection[asyncpg.Record]", floors: Mapping[Lane, float] | Iterable[Lane]
) -> dict[Lane, float]:
    """Return the lanes in which a task may run now, with the lowest tag from the floor on: one index probe each."""
    lane_floors = dict(floors) if isinstance(floors, Mapping) else {lane: lane.bottom for lane in floors}
    ceilings = [lane.ceiling for lane in lane_floors]
    return lanes.lowest_tags(await connection.fetch(_FIND, *_floor_columns(lane_floors), ceilings))


async def find_below(
    connection: "asyncpg.Connection[asyncpg.Record]", floors: Mapping[Lane, float], since: datetime
) -> dict[Lane, float]:
    """Return the lanes in which a task that became ready at `since` or later lies below the floor: lowest tag each."""
    bottoms = [lane.bottom for lane in floors]
    return lanes.lowest_tags(await connection.fetch(_FIND_BELOW, *_floor_columns(floors), since, bottoms))


async def current_time(connection: "asyncpg.Connection[asyncpg.Record]") -> datetime:
    """The time by the database's clock."""
    moment: datetime = await connection.fetchval("SELECT now()")
    return moment


def _floor_columns(floors: Mapping[Lane, float]) -> tuple[list[object], ...]:
    return [lane.agent_type for lane in floors], [lane.priority for lane in floors], list(floors.values())
