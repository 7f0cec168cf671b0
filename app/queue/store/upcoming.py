"""The tasks that are leased next: the heads of the lanes, in the order in which claims read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.namespaces import WITHIN
from app.kernel.agents import AgentType
from app.queue.store import holds


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcomingTask:
    """A task that may run now, and its place among those of its agent type, from 1."""

    place: int
    id: UUID
    agent_type: AgentType
    goal_id: str | None
    priority: int
    submitted_priority: int | None
    created_at: datetime
    waiting_since: datetime


# `place` counts the tasks of all namespaces, so that a namespace sees how far in front its own are.
_HEADS = text(f"""
SELECT placed.* FROM unnest(CAST(:agents AS text[])) AS kind (agent_type) CROSS JOIN LATERAL (
    SELECT row_number() OVER (ORDER BY head.priority DESC, head.tag, head.seq) AS place, head.id, head.agent_type,
           head.goal_id, head.priority, head.submitted_priority, head.created_at, head.waiting_since
    FROM generate_series(1, 4) AS lane (priority) CROSS JOIN LATERAL (
        SELECT id, agent_type, goal_id, priority, submitted_priority, created_at, waiting_since, tag, seq FROM tasks
        WHERE tasks.agent_type = kind.agent_type AND tasks.priority = lane.priority::smallint
          AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND {holds.IS_OPEN}
        ORDER BY tag, seq LIMIT :limit
    ) head
    ORDER BY place LIMIT :limit
) placed WHERE {WITHIN} ORDER BY placed.agent_type, place
""")


async def read(
    connection: AsyncConnection, agents: Sequence[AgentType], namespace: str | None, limit: int
) -> list[UpcomingTask]:
    """Return those of the next `limit` tasks of each agent type that are of the namespace, if one is given."""
    values = {"agents": [agent.value for agent in agents], "namespace": namespace, "limit": limit}
    rows = (await connection.execute(_HEADS, values)).mappings()
    return [UpcomingTask(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]
