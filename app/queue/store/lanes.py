"""Virtual times of lanes and last tags of goals, so that a task gets its tag at submit and a claim is one index scan.

Start-time fair queueing (see `rules.fair_queueing`): within a lane, tasks run in the order of their tags.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.hot_path import HotConnection
from app.kernel.agents import AgentType
from app.kernel.lanes import SPAN, Lane, Priority, class_of
from app.queue.rules.fair_queueing import TagRun, assign_tags

_FRESH_SECONDS = 1.0
_REMEMBERED_SECONDS = 60.0
_MAX_FLOWS = 50_000

# Tasks of one goal, or of none, in one lane.
Flow = tuple[Lane, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowState:
    """Tag that the next task of a flow follows (its last tag or the lane's virtual time) and the weight of its goal."""

    tag: float
    weight: float


@dataclass(slots=True)
class _IssuedTag:
    tag: float
    weight: float
    read_at: float


class TagIssuer:
    """Memory of one process: the virtual time of each lane, and the last tag that it issued to each flow.

    The times are written once a second. A row that changed with every task would make its writers queue up, and its
    readers walk over the old versions. A crash loses nothing: waiting tasks carry their tags, and a virtual time that
    is a second old only lets a goal go ahead by the tasks leased within that second.
    """

    def __init__(self) -> None:
        self._virtual_times: dict[Lane, float] = {}
        self._stored_times: dict[Lane, float] = {}
        self._issued_tags: OrderedDict[Flow, _IssuedTag] = OrderedDict()

    def advance(self, lane: Lane, tag: float) -> None:
        """Move the virtual time of a lane to the tag of a leased task, unless it is further already."""
        self._virtual_times[lane] = max(tag, self._virtual_times.get(lane, lane.bottom))

    def unstored_times(self) -> Mapping[Lane, float]:
        """The virtual times that are ahead of those in the database."""
        return {
            lane: tag for lane, tag in self._virtual_times.items() if tag > self._stored_times.get(lane, lane.bottom)
        }

    def merge_stored_times(self, times: Mapping[Lane, float]) -> None:
        """Take over the virtual times in the database, which come from all processes."""
        # Of resource classes that have gone: to store theirs again would give them to the next class of the number.
        for gone in self._stored_times.keys() - times.keys():
            self._virtual_times.pop(gone, None)
        self._stored_times = dict(times)
        for lane, tag in times.items():
            self.advance(lane, tag)

    def stale_flows(self, flows: Iterable[Flow]) -> list[Flow]:
        """The flows to read from the database, because other processes may have issued tags to them since."""
        limit = time.monotonic() - _FRESH_SECONDS
        return [flow for flow in flows if flow not in self._issued_tags or self._issued_tags[flow].read_at < limit]

    def merge_states(self, states: Mapping[Flow, FlowState]) -> None:
        """Take over the states of flows in the database; the longest unread flows beyond the limit are forgotten."""
        moment = time.monotonic()
        for flow, state in states.items():
            previous = self._issued_tags.get(flow)
            # A tag of ours that is not in the database may be that of a submit under way; after a minute none is.
            is_recent = previous is not None and moment - previous.read_at < _REMEMBERED_SECONDS
            tag = max(state.tag, previous.tag) if previous is not None and is_recent else state.tag
            self._issued_tags[flow] = _IssuedTag(tag, state.weight, moment)
            self._issued_tags.move_to_end(flow)
        while len(self._issued_tags) > _MAX_FLOWS:
            self._issued_tags.popitem(last=False)

    def issue(self, flow: Flow, count: int) -> TagRun:
        """Issue tags for the next `count` tasks of a flow; nobody else in this process gets the same."""
        last = self._issued_tags[flow]
        virtual_time = self._virtual_times.get(flow[0], flow[0].bottom)
        run = assign_tags(virtual_time=virtual_time, last_tag=last.tag, count=count, weight=last.weight)
        last.tag = run.last
        return run

    def take_back(self, runs: Mapping[Flow, TagRun]) -> None:
        """Undo the issue of tags for a submit that failed, unless a flow has got others since."""
        for flow, run in runs.items():
            last = self._issued_tags.get(flow)
            if last is not None and last.tag == run.last:
                last.tag = run.first - run.step


def _reading_flows(agents: str, priorities: str, goals: str) -> str:
    """The statement that reads the states of flows; the parameters are SQL."""
    # Tasks of a flow above the lane's virtual time still wait, so the probe meets no dead entries of finished ones.
    return f"""
SELECT flow.agent_type, flow.priority, flow.goal_id, coalesce(goals.weight, 1) AS weight,
       greatest(coalesce(lanes.virtual_time, 0), coalesce(last.tag, 0)) AS tag
FROM unnest(CAST({agents} AS text[]), CAST({priorities} AS smallint[]), CAST({goals} AS text[]))
     AS flow (agent_type, priority, goal_id)
LEFT JOIN lanes ON lanes.agent_type = flow.agent_type AND lanes.priority = flow.priority
LEFT JOIN goals ON goals.id = flow.goal_id
LEFT JOIN LATERAL (
    SELECT tag FROM tasks t
    WHERE t.agent_type = flow.agent_type AND t.priority = flow.priority
      AND coalesce(t.goal_id, '') = coalesce(flow.goal_id, '') AND state IN ('blocked', 'pending') AND t.priority <= 4
      AND t.submitted_priority IS NULL
      AND t.tag > coalesce(lanes.virtual_time, 0)
    ORDER BY tag DESC LIMIT 1
) last ON true
"""


_READ_FLOWS = text(_reading_flows(":agents", ":priorities", ":goals"))
_READ_PLAIN_FLOWS = _reading_flows("$1", "$2", "$3")

# As above, within the range of tags that belongs to the class.
_READ_CLASS_FLOWS = text("""
SELECT flow.agent_type, flow.priority, flow.goal_id, coalesce(goals.weight, 1) AS weight,
       greatest(coalesce(lane.virtual_time, bottom), coalesce(last.tag, bottom)) AS tag
FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:classes AS smallint[]),
            CAST(:goals AS text[]), CAST(:bottoms AS float8[]), CAST(:ceilings AS float8[]))
     AS flow (agent_type, priority, resource_class, goal_id, bottom, ceiling)
LEFT JOIN resource_lanes lane USING (agent_type, priority, resource_class)
LEFT JOIN goals ON goals.id = flow.goal_id
LEFT JOIN LATERAL (
    SELECT tag FROM tasks t
    WHERE t.agent_type = flow.agent_type AND t.priority = flow.priority
      AND coalesce(t.goal_id, '') = coalesce(flow.goal_id, '') AND state IN ('blocked', 'pending') AND t.priority <= 4
      AND t.submitted_priority IS NULL
      AND t.tag > coalesce(lane.virtual_time, bottom) AND t.tag < ceiling
    ORDER BY tag DESC LIMIT 1
) last ON true
""")

# In one order, so that two processes that write at once cannot deadlock. Times only grow, whoever writes last.
_ADVANCE = """
INSERT INTO lanes AS stored (agent_type, priority, virtual_time)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::float8[]) AS lane (agent_type, priority, virtual_time)
ORDER BY agent_type, priority
ON CONFLICT (agent_type, priority) DO UPDATE SET virtual_time = excluded.virtual_time
WHERE excluded.virtual_time > stored.virtual_time
"""

_ADVANCE_CLASSES = """
INSERT INTO resource_lanes AS stored (agent_type, priority, resource_class, virtual_time)
SELECT * FROM unnest($1::text[], $2::smallint[], $3::smallint[], $4::float8[])
    AS lane (agent_type, priority, resource_class, virtual_time)
ORDER BY agent_type, priority, resource_class
ON CONFLICT (resource_class, agent_type, priority) DO UPDATE SET virtual_time = excluded.virtual_time
WHERE excluded.virtual_time > stored.virtual_time
"""

_TIMES = """
SELECT agent_type, priority, virtual_time AS tag FROM lanes
UNION ALL SELECT agent_type, priority, virtual_time FROM resource_lanes
"""


def sql_class_of(tag: str) -> str:
    """SQL for the resource class of a task with this tag."""
    return f"CASE WHEN {tag} < 0 THEN -floor({tag} / {SPAN:.0f})::int ELSE 0 END"


# The tag of a task `t` that comes back to its lane. Never below the virtual time: claims read on from there, and would
# have to walk over the dead entries of leased tasks to anything below.
TAG_ON_RETURN = f"""greatest(t.tag, CASE WHEN t.tag >= 0 THEN coalesce((SELECT virtual_time FROM lanes l
        WHERE l.agent_type = t.agent_type AND l.priority = t.priority), 0)
    ELSE (SELECT virtual_time FROM resource_lanes l WHERE l.agent_type = t.agent_type AND l.priority = t.priority
        AND l.resource_class = {sql_class_of("t.tag")}) END)"""


async def read_flows(connection: AsyncConnection, flows: Iterable[Flow]) -> dict[Flow, FlowState]:
    """Read the states of flows: one index probe each."""
    pairs = list(flows)
    states: dict[Flow, FlowState] = {}
    for statement, group in (
        (_READ_FLOWS, [flow for flow in pairs if not flow[0].resource_class]),
        (_READ_CLASS_FLOWS, [flow for flow in pairs if flow[0].resource_class]),
    ):
        if group:
            states |= await _read_flows(connection, statement, group)
    return states


async def _read_flows(
    connection: AsyncConnection, statement: TextClause, flows: Sequence[Flow]
) -> dict[Flow, FlowState]:
    values: dict[str, object] = {
        "agents": [lane.agent_type.value for lane, _ in flows],
        "priorities": [lane.priority.value for lane, _ in flows],
        "goals": [goal_id for _, goal_id in flows],
    }
    if statement is _READ_CLASS_FLOWS:
        values["classes"] = [lane.resource_class for lane, _ in flows]
        values["bottoms"], values["ceilings"] = [lane.bottom for lane, _ in flows], [lane.ceiling for lane, _ in flows]
    return _states((await connection.execute(statement, values)).mappings())


async def read_plain_flows(connection: HotConnection, flows: Sequence[Flow]) -> dict[Flow, FlowState]:
    """The same for flows that ask for no resources, without a transaction around it."""
    agents, priorities = [lane.agent_type for lane, _ in flows], [lane.priority for lane, _ in flows]
    return _states(await connection.fetch(_READ_PLAIN_FLOWS, agents, priorities, [goal_id for _, goal_id in flows]))


def _states(rows: Iterable[Mapping[str, Any] | Any]) -> dict[Flow, FlowState]:
    return {(_lane(row), row["goal_id"]): FlowState(tag=row["tag"], weight=row["weight"]) for row in rows}


async def exchange_times(connection: HotConnection, times: Mapping[Lane, float]) -> dict[Lane, float]:
    """Store the virtual times of this process where they are ahead; return the stored times of all lanes."""
    plain = [lane for lane in times if not lane.resource_class]
    if plain:
        agents, priorities = [lane.agent_type for lane in plain], [lane.priority for lane in plain]
        await connection.execute(_ADVANCE, agents, priorities, [times[lane] for lane in plain])
    if len(plain) < len(times):
        classed = [lane for lane in times if lane.resource_class]
        columns = [[getattr(lane, name) for lane in classed] for name in ("agent_type", "priority", "resource_class")]
        await connection.execute(_ADVANCE_CLASSES, *columns, [times[lane] for lane in classed])
    return lowest_tags(await connection.fetch(_TIMES))


def lowest_tags(rows: Iterable[Mapping[str, Any] | Any]) -> dict[Lane, float]:
    """Lane -> the lowest tag among rows with agent_type, priority and tag, which tells the resource class."""
    tags: dict[tuple[str, int, int], float] = {}
    for row in rows:
        tag = row["tag"]
        lane = (row["agent_type"], row["priority"], class_of(tag) if tag < 0 else 0)
        tags[lane] = min(tag, tags.get(lane, tag))
    return {
        Lane(agent_type=AgentType(agent), priority=Priority(priority), resource_class=resource_class): tag
        for (agent, priority, resource_class), tag in tags.items()
    }


def _lane(row: Mapping[str, Any] | Any) -> Lane:
    return Lane(
        agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"]), resource_class=class_of(row["tag"])
    )
