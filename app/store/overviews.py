"""What a decision on the pool reads of the queue, in one statement: all of it as of the same moment."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.lanes import Lane
from app.domain.tasks import Priority
from app.store.counts import KNOWN, Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """How many moves of one kind the tasks of a lane have ever made, and the sum of the seconds that these tell.

    The difference of two looks is what happened between them.
    """

    lane: Lane
    kind: str
    tasks: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Live tasks by lane and phase, what has become of tasks since ever, and why types are paused, where they are."""

    counts: Sequence[Count]
    totals: Sequence[Total]
    paused: Mapping[AgentType, str]


_READ = text(f"""
SELECT 'count' AS source, agent_type, priority, phase AS name, sum(tasks)::bigint AS tasks, 0::float8 AS seconds
FROM ({KNOWN}) known GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
UNION ALL
SELECT 'total', agent_type, priority, kind, tasks, seconds FROM queue_totals WHERE kind = ANY (CAST(:kinds AS text[]))
UNION ALL
SELECT 'pause', agent_type, NULL, reason, 0, 0 FROM pauses
""")


async def read(connection: AsyncConnection, kinds: Collection[str]) -> Overview:
    """Look at it; of the totals those of these kinds of moves. Costs the same however many tasks there are."""
    rows = (await connection.execute(_READ, {"kinds": list(kinds)})).all()
    return Overview(
        counts=[
            Count(lane=_lane(agent, priority), phase=phase, tasks=tasks)
            for source, agent, priority, phase, tasks, _ in rows
            if source == "count"
        ],
        totals=[
            Total(lane=_lane(agent, priority), kind=kind, tasks=tasks, seconds=seconds)
            for source, agent, priority, kind, tasks, seconds in rows
            if source == "total"
        ],
        paused={AgentType(agent): reason for source, agent, _, reason, _, _ in rows if source == "pause"},
    )


def _lane(agent: str, priority: int) -> Lane:
    return Lane(agent_type=AgentType(agent), priority=Priority(priority))
