"""Tasks that claims have missed: ready ones whose rows were locked for a moment while a claim went by."""

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from app.kernel.lanes import Lane
from app.queue.store import holds, lanes


class TagRange(NamedTuple):
    """The tags of a lane from `start` on that are below `end`."""

    lane: Lane
    start: float
    end: float


# What no claim would lease is left out, or the next one would start from there in vain.
_LOWEST = f"""
SELECT span.agent_type, span.priority, head.tag
FROM unnest($1::text[], $2::smallint[], $3::float8[], $4::float8[]) AS span (agent_type, priority, start_tag, end_tag)
CROSS JOIN LATERAL (
    SELECT tag FROM tasks
    WHERE tasks.agent_type = span.agent_type AND tasks.priority = span.priority
      AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND tag >= span.start_tag AND tag < span.end_tag
      AND {holds.IS_OPEN}
    ORDER BY tag LIMIT 1
) head
WHERE NOT EXISTS (SELECT FROM pauses p WHERE p.agent_type = span.agent_type)
"""


async def find(connection: "asyncpg.Connection[asyncpg.Record]", tag_ranges: Sequence[TagRange]) -> dict[Lane, float]:
    """Return the lanes in which a task of these ranges may run now, with the lowest tag: one index scan each."""
    agents = [tags.lane.agent_type for tags in tag_ranges]
    priorities = [tags.lane.priority for tags in tag_ranges]
    starts, ends = [tags.start for tags in tag_ranges], [tags.end for tags in tag_ranges]
    return lanes.lowest_tags(await connection.fetch(_LOWEST, agents, priorities, starts, ends))
