"""How many live tasks there are, by lane and phase, at a cost that does not grow with their number.

A trigger on `tasks` adds a line for every change; a duty folds old lines into totals. A count is the totals and the
lines that are not folded yet, read in one statement, so it is exact at any moment.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.folds import HORIZON
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import QUEUED_PHASES

_NAME = "counts"


# Entries of tasks that have left stay at the head of the index while somebody keeps an old snapshot open; from a floor
# on, the look does not begin with them. The bound on the priority is what the index `tasks_waiting` asks for.
_OLDEST = text("""
SELECT asked.priority, head.waiting_since
FROM unnest(CAST(:priorities AS smallint[]), CAST(:floors AS timestamptz[])) AS asked (priority, floor)
CROSS JOIN LATERAL (
    SELECT waiting_since FROM tasks t
    WHERE t.priority = asked.priority AND t.priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since >= asked.floor
    ORDER BY waiting_since LIMIT 1
) head
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Live tasks of a lane in one phase: see `queues.PHASES`."""

    lane: Lane
    phase: str
    tasks: int


# The counts as of one statement: what was folded, and the lines since.
KNOWN = f"""
    SELECT agent_type, priority, phase, tasks FROM queue_counts
    UNION ALL
    SELECT agent_type, priority, phase, tasks FROM queue_changes
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
"""

_READ = text(f"""
SELECT agent_type, priority, phase, sum(tasks)::bigint AS tasks FROM ({KNOWN}) known
GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
""")

# Below the oldest running transaction no line can appear any more, so none is left behind and none is folded twice.
_FOLD = text(f"""
WITH mark AS MATERIALIZED (
    SELECT coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0) AS since, {HORIZON} AS until
), taken AS (
    DELETE FROM queue_changes c USING mark WHERE c.transaction >= mark.since AND c.transaction < mark.until
    RETURNING c.agent_type, c.priority, c.phase, c.tasks
), folded AS (
    INSERT INTO queue_counts AS known (agent_type, priority, phase, tasks)
    SELECT agent_type, priority, phase, sum(tasks) FROM taken GROUP BY agent_type, priority, phase
    HAVING sum(tasks) <> 0
    ON CONFLICT (agent_type, priority, phase) DO UPDATE SET tasks = known.tasks + excluded.tasks
), marked AS (
    INSERT INTO folds (name, transaction) SELECT '{_NAME}', until FROM mark
    WHERE EXISTS (SELECT FROM taken)
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)
SELECT count(*) FROM taken
""")

_ACTUAL = text("""
SELECT agent_type, priority, convener_phase(state, run_at) AS phase, count(*) AS tasks FROM tasks GROUP BY 1, 2, 3
""")

# One statement has one snapshot, so what is under way meanwhile makes no difference.
_DIFFERENCES = text(f"""
SELECT agent_type, priority, phase, sum(tasks)::bigint AS tasks FROM (
    SELECT agent_type, priority, convener_phase(state, run_at) AS phase, count(*) AS tasks FROM tasks GROUP BY 1, 2, 3
    UNION ALL
    SELECT agent_type, priority, phase, -tasks FROM ({KNOWN}) known
) compared GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
""")

_CORRECT = text("""
INSERT INTO queue_changes (agent_type, priority, phase, tasks)
SELECT * FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:phases AS text[]),
                     CAST(:tasks AS integer[]))
""")

_SIZE = text("SELECT pg_relation_size('tasks')")

_GATE = "7241, 8"
# The epoch is read after the lock was granted: the inner query needs the outer one's row.
_ENTER_TOGETHER = text(f"""
SELECT epoch FROM (SELECT CAST(pg_advisory_xact_lock_shared({_GATE}) AS text) AS granted OFFSET 0) gate
CROSS JOIN LATERAL (SELECT last_value + length(gate.granted) AS epoch FROM admission_epoch OFFSET 0) known
""")
_ENTER_ALONE = text(f"SELECT pg_advisory_xact_lock({_GATE}), nextval('admission_epoch')")


async def read(connection: AsyncConnection) -> list[Count]:
    """All counts that are not zero, as of this statement."""
    return _counts((await connection.execute(_READ)).mappings())


async def fold(connection: AsyncConnection) -> int:
    """Fold the lines of transactions that are over; returns how many. One at a time: the caller holds a duty's turn."""
    return int((await connection.execute(_FOLD)).scalar_one())


async def actual(connection: AsyncConnection) -> list[Count]:
    """The truth, by counting every task: for checks only."""
    return _counts((await connection.execute(_ACTUAL)).mappings())


async def differences(connection: AsyncConnection) -> list[Count]:
    """What is missing from the counts, or too much in them where `tasks` is negative; counts every task."""
    return _counts((await connection.execute(_DIFFERENCES)).mappings())


async def correct(connection: AsyncConnection, missing: Sequence[Count]) -> None:
    """Add what is missing. It is a change like any other, so it stays right whatever else has changed since."""
    values = {
        "agents": [count.lane.agent_type.value for count in missing],
        "priorities": [count.lane.priority.value for count in missing],
        "phases": [count.phase for count in missing],
        "tasks": [count.tasks for count in missing],
    }
    await connection.execute(_CORRECT, values)


async def bytes_to_count(connection: AsyncConnection) -> int:
    """What counting every task would have to read: the size of their table, dead rows included."""
    return int((await connection.execute(_SIZE)).scalar_one())


async def enter_together(connection: AsyncConnection) -> int:
    """Hold the gate together with others until the transaction, or its savepoint, ends; waits for who has it alone.

    Returns the epoch: it has changed when somebody has had the gate alone since.
    """
    return int((await connection.execute(_ENTER_TOGETHER)).scalar_one())


async def enter_alone(connection: AsyncConnection) -> None:
    """Wait until nobody else is on the way in, and keep others out: every task let in before is then to be seen."""
    await connection.execute(_ENTER_ALONE)


def queued(counts: Iterable[Count]) -> dict[Priority, int]:
    """Tasks that wait in the queue, by priority."""
    depth = dict.fromkeys(Priority, 0)
    for count in counts:
        if count.phase in QUEUED_PHASES:
            depth[count.lane.priority] += count.tasks
    return depth


def _counts(rows: Iterable[Mapping[str, Any] | Any]) -> list[Count]:
    return [
        Count(
            lane=Lane(agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"])),
            phase=row["phase"],
            tasks=row["tasks"],
        )
        for row in rows
    ]


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


_OVERVIEW = text(f"""
SELECT 'count' AS source, agent_type, priority, phase AS name, sum(tasks)::bigint AS tasks, 0::float8 AS seconds
FROM ({KNOWN}) known GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
UNION ALL
SELECT 'total', agent_type, priority, kind, tasks, seconds FROM queue_totals WHERE kind = ANY (CAST(:kinds AS text[]))
UNION ALL
SELECT 'pause', agent_type, NULL, reason, 0, 0 FROM pauses
""")


async def overview(connection: AsyncConnection, kinds: Collection[str]) -> Overview:
    """Look at it; of the totals those of these kinds of moves. Costs the same however many tasks there are."""
    rows = (await connection.execute(_OVERVIEW, {"kinds": list(kinds)})).all()
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


async def oldest(connection: AsyncConnection, floors: Mapping[Priority, datetime]) -> dict[Priority, datetime]:
    """One index probe each: the priorities in which a task may run that waits since its floor or later."""
    values = {"priorities": [priority.value for priority in floors], "floors": list(floors.values())}
    rows = (await connection.execute(_OLDEST, values)).mappings()
    return {Priority(row["priority"]): row["waiting_since"] for row in rows}
