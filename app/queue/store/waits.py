"""Waits of the oldest tasks, by priority and by agent type, at a cost that does not grow with the queue."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority

# Dead entries of leased tasks stay at the head of the index while somebody keeps an old snapshot; starting from a floor
# skips them. The bound on the priority matches the condition of the index `tasks_waiting`.
_OLDEST = text("""
SELECT lane_priority.priority, head.waiting_since
FROM unnest(CAST(:priorities AS smallint[]), CAST(:floors AS timestamptz[])) AS lane_priority (priority, floor)
CROSS JOIN LATERAL (
    SELECT waiting_since FROM tasks t
    WHERE t.priority = lane_priority.priority AND t.priority <= 4
      AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND waiting_since >= lane_priority.floor
    ORDER BY waiting_since LIMIT 1
) head
""")


# The oldest entries of each priority, as many as `limit`: a type of which none is among them has younger tasks only.
_OLDEST_OF_TYPES = text("""
SELECT agent_type, min(waiting_since) AS since, priority,
       max(max(waiting_since)) OVER (PARTITION BY priority) AS last,
       sum(count(*)) OVER (PARTITION BY priority) AS entries
FROM (
    SELECT lane_priority.priority, head.agent_type, head.waiting_since
    FROM unnest(CAST(:priorities AS smallint[]), CAST(:floors AS timestamptz[])) AS lane_priority (priority, floor)
    CROSS JOIN LATERAL (
        SELECT agent_type, waiting_since FROM tasks t
        WHERE t.priority = lane_priority.priority AND t.priority <= 4
          AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND waiting_since >= lane_priority.floor
        ORDER BY waiting_since LIMIT :limit
    ) head
) heads GROUP BY priority, agent_type
""")
_MOST_LOOKED_AT = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class OldestTask:
    """Since when the oldest task that may run has waited; one that is not exact has waited for that long at most."""

    since: datetime
    is_exact: bool = True


async def oldest_waits(connection: AsyncConnection, floors: Mapping[Priority, datetime]) -> dict[Priority, datetime]:
    """Return since when the oldest ready task of each priority waits, from its floor on: one index probe each."""
    values = {"priorities": [priority.value for priority in floors], "floors": list(floors.values())}
    rows = (await connection.execute(_OLDEST, values)).mappings()
    return {Priority(row["priority"]): row["waiting_since"] for row in rows}


async def oldest_of_types(
    connection: AsyncConnection, floors: Mapping[Priority, datetime], limit: int = _MOST_LOOKED_AT
) -> dict[AgentType, OldestTask]:
    """Return since when the oldest ready task of each agent type waits, from at most `limit` tasks of each priority.

    A type of which none is among these is there as well, where older ones of others have hidden it; it may have none.
    """
    values = {"priorities": [priority.value for priority in floors], "floors": list(floors.values()), "limit": limit}
    rows = (await connection.execute(_OLDEST_OF_TYPES, values)).mappings().all()
    hidden_since = min((row["last"] for row in rows if row["entries"] >= limit), default=None)
    oldest_since: dict[AgentType, datetime] = {}
    for row in rows:
        agent = AgentType(row["agent_type"])
        oldest_since[agent] = min(row["since"], oldest_since.get(agent, row["since"]))
    if hidden_since is None:
        return {agent: OldestTask(since=since) for agent, since in oldest_since.items()}
    return {
        agent: OldestTask(since=oldest_since[agent])
        if agent in oldest_since and oldest_since[agent] <= hidden_since
        else OldestTask(since=hidden_since, is_exact=False)
        for agent in AgentType
    }
