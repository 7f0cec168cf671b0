"""Where lanes and goals stand, so that a task gets its tag at submit and a claim stays one index scan.

What every submit and claim would have to update is kept in memory by each process and written once a second: a row
that changes with every task would make its writers queue up, and its readers walk over its old versions. Nothing is
lost with a process: the tasks that wait carry their tags, and a virtual time that is a second old only lets a goal
that submits just then go ahead by what was leased within that second.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.fair_queueing import TagRun, assign_tags

_FRESH_SECONDS = 1.0
_FORGET_SECONDS = 60.0
_MOST_GOALS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a goal stands in a lane by the database: the later of the lane's time and its own last tag."""

    tag: float
    weight: float


@dataclass(slots=True)
class _Issued:
    tag: float
    weight: float
    read_at: float


Place = tuple[Lane, str | None]


class Lanes:
    """What this process knows: the virtual time of each lane, and the last tag it gave to each goal."""

    def __init__(self) -> None:
        self._virtual: dict[Lane, float] = {}
        self._shared: dict[Lane, float] = {}
        self._issued: OrderedDict[Place, _Issued] = OrderedDict()

    def passed(self, lane: Lane, tag: float) -> None:
        """A task with this tag was leased."""
        self._virtual[lane] = max(tag, self._virtual.get(lane, 0.0))

    def news(self) -> Mapping[Lane, float]:
        """The virtual times that the database does not know of yet."""
        return {lane: tag for lane, tag in self._virtual.items() if tag > self._shared.get(lane, 0.0)}

    def shared(self, times: Mapping[Lane, float]) -> None:
        """What the database knows, from all processes."""
        self._shared = dict(times)
        for lane, tag in times.items():
            self.passed(lane, tag)

    def unsure(self, places: Iterable[Place]) -> list[Place]:
        """Those about which the database should be asked: another process may have submitted for them since."""
        moment = time.monotonic()
        return [p for p in places if p not in self._issued or moment - self._issued[p].read_at > _FRESH_SECONDS]

    def learn(self, stands: Mapping[Place, Stand]) -> None:
        """What the database says of places."""
        moment = time.monotonic()
        for place, stand in stands.items():
            known = self._issued.get(place)
            recent = known is not None and moment - known.read_at < _FORGET_SECONDS
            tag = max(stand.tag, known.tag) if known is not None and recent else stand.tag
            self._issued[place] = _Issued(tag, stand.weight, moment)
            self._issued.move_to_end(place)
        while len(self._issued) > _MOST_GOALS:
            self._issued.popitem(last=False)

    def reserve(self, place: Place, count: int) -> TagRun:
        """Tags for the next `count` tasks of a goal; nobody else in this process gets the same."""
        issued = self._issued[place]
        virtual_time = self._virtual.get(place[0], 0.0)
        reserved = assign_tags(virtual_time=virtual_time, last_tag=issued.tag, count=count, weight=issued.weight)
        issued.tag = reserved.last
        return reserved

    def give_back(self, place: Place, reserved: TagRun) -> None:
        """The submit came to nothing: unless the goal has gone on since, it shall not stand further back for it."""
        issued = self._issued.get(place)
        if issued is not None and issued.tag == reserved.last:
            issued.tag = reserved.first - reserved.step


# A goal's tasks above the lane's time are those that still wait, so the probe meets no entries of finished ones.
_STAND = text("""
SELECT asked.agent_type, asked.priority, asked.goal_id, coalesce(goals.weight, 1) AS weight,
       greatest(coalesce(lanes.virtual_time, 0), coalesce(last.tag, 0)) AS tag
FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:goals AS text[]))
     AS asked (agent_type, priority, goal_id)
LEFT JOIN lanes ON lanes.agent_type = asked.agent_type AND lanes.priority = asked.priority
LEFT JOIN goals ON goals.id = asked.goal_id
LEFT JOIN LATERAL (
    SELECT tag FROM tasks t
    WHERE t.agent_type = asked.agent_type AND t.priority = asked.priority
      AND coalesce(t.goal_id, '') = coalesce(asked.goal_id, '') AND state IN ('blocked', 'pending') AND t.priority <= 4
      AND t.tag > coalesce(lanes.virtual_time, 0)
    ORDER BY tag DESC LIMIT 1
) last ON true
""")

_ADVANCE = """
INSERT INTO lanes AS known (agent_type, priority, virtual_time)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::float8[]) AS seen (agent_type, priority, virtual_time)
ORDER BY agent_type, priority
ON CONFLICT (agent_type, priority) DO UPDATE SET virtual_time = excluded.virtual_time
WHERE excluded.virtual_time > known.virtual_time
"""

_TIMES = "SELECT agent_type, priority, virtual_time AS tag FROM lanes"


async def stand(connection: AsyncConnection, places: Iterable[Place]) -> dict[Place, Stand]:
    """Where goals stand in lanes."""
    asked = list(places)
    values = {
        "agents": [lane.agent_type.value for lane, _ in asked],
        "priorities": [lane.priority.value for lane, _ in asked],
        "goals": [goal_id for _, goal_id in asked],
    }
    rows = (await connection.execute(_STAND, values)).mappings()
    return {(_lane(row), row["goal_id"]): Stand(tag=row["tag"], weight=row["weight"]) for row in rows}


async def exchange(connection: "asyncpg.Connection[asyncpg.Record]", known: Mapping[Lane, float]) -> dict[Lane, float]:
    """Write down the virtual times that this process has seen, and read what all of them have."""
    if known:
        agents, priorities = [lane.agent_type for lane in known], [lane.priority for lane in known]
        await connection.execute(_ADVANCE, agents, priorities, list(known.values()))
    return lowest(await connection.fetch(_TIMES))


def lowest(rows: Iterable[Mapping[str, Any] | Any]) -> dict[Lane, float]:
    """Lane -> the lowest tag among rows with agent_type, priority and tag."""
    found: dict[Lane, float] = {}
    for row in rows:
        lane = _lane(row)
        found[lane] = min(row["tag"], found.get(lane, row["tag"]))
    return found


def _lane(row: Mapping[str, Any] | Any) -> Lane:
    return Lane(agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"]))
