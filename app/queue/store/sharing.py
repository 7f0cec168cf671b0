"""The heads of lanes in which several namespaces wait, and new tags for their tasks.

Lanes of resource classes are left as they are: there goals have their shares, and namespaces those of their goals.
"""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.lanes import Lane
from app.kernel.namespaces import split_name
from app.queue.rules.sharing import WaitingTask
from app.queue.store import lanes

# Of each namespace the first tasks, among so many of the lane that the cost stays bounded however rare one is.
_HEAD = text("""
WITH head AS MATERIALIZED (
    SELECT id, seq, goal_id, tag, CASE WHEN goal_id LIKE '@%/%' THEN split_part(goal_id, '/', 1) END AS namespace
    FROM tasks WHERE agent_type = :agent_type AND priority = :priority
      AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND tag >= 0
    ORDER BY tag, seq LIMIT :window
)
SELECT id, seq, goal_id, tag
FROM (SELECT *, row_number() OVER (PARTITION BY namespace ORDER BY tag, seq) AS place FROM head) placed
WHERE place <= :limit ORDER BY tag, seq
""")
_WINDOW = 10_000

# A locked task is about to be leased, so its place does not matter any more.
_MOVE = text("""
WITH free AS MATERIALIZED (
    SELECT t.id, move.tag
    FROM tasks t JOIN unnest(CAST(:ids AS uuid[]), CAST(:tags AS float8[])) AS move (id, tag) ON move.id = t.id
    WHERE t.state = 'pending' AND t.run_at IS NULL ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
)
UPDATE tasks t SET tag = free.tag FROM free WHERE t.id = free.id
RETURNING t.agent_type, t.priority, t.tag
""")


async def head(connection: AsyncConnection, lane: Lane, limit: int) -> list[WaitingTask]:
    """Up to `limit` tasks of each namespace at the head of a lane, in the order in which they are leased."""
    values = {"agent_type": lane.agent_type.value, "priority": lane.priority.value, "window": _WINDOW, "limit": limit}
    rows = (await connection.execute(_HEAD, values)).all()
    return [
        WaitingTask(id=row.id, seq=row.seq, namespace=split_name(row.goal_id)[0], flow=row.goal_id, tag=row.tag)
        for row in rows
    ]


async def move(connection: AsyncConnection, tags: Mapping[UUID, float]) -> int:
    """Give tasks that still wait these tags; return the number moved."""
    rows = (await connection.execute(_MOVE, {"ids": list(tags), "tags": list(tags.values())})).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(rows))
    return len(rows)
