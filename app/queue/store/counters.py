"""Counts of live tasks by lane and phase, exact at any moment, at a cost that does not grow with the number of tasks.

A trigger on `tasks` adds lines to `queue_changes` for every statement that does not do so itself, as those of the hot
path do; a duty folds old lines into `queue_counts`. A count is the sum of both, read in one statement. Updating a
counter row in place would make all writers wait for it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.db.hot_path import HotConnection
from app.db.namespaces import within
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.namespaces import split_name
from app.kernel.states import TaskState
from app.queue.rules.status import QUEUED_PHASES

_NAME = "counts"
# Of one batch: half a second's work.
FOLDED_LINES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCount:
    """Number of live tasks of a lane in one phase, which is what `convener_phase` returns.

    `submitted` is their priority at submit, where they are counted by it and it is not that of the lane.
    """

    lane: Lane
    phase: str
    tasks: int
    submitted: Priority | None = None


# The phase without what `convener_counted` puts before it.
PHASE = "split_part(phase, '/', -1)"


# Folded counts and the lines since, for one statement. By the mark, because folded lines may not be vacuumed yet, and a
# look should not walk over them.
COUNTS = f"""
    SELECT agent_type, priority, phase, tasks FROM queue_counts
    UNION ALL
    SELECT agent_type, priority, phase, tasks FROM queue_changes
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
"""

# Conditions under which duties have something to do. Lines that cancel each other out are none the less some.
HAS_CHANGES = f"""EXISTS (SELECT FROM queue_changes
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0))"""
HAS_TASKS = f"EXISTS (SELECT FROM ({COUNTS}) counts WHERE tasks <> 0)"
HAS_LEASES = f"""EXISTS (SELECT FROM ({COUNTS}) counts
    WHERE tasks <> 0 AND {PHASE} IN ('{TaskState.ASSIGNED}', '{TaskState.EXECUTING}'))"""
HAS_NAMESPACES = f"EXISTS (SELECT FROM ({COUNTS}) counts WHERE tasks <> 0 AND phase LIKE '@%')"

_READ = text(f"""
SELECT agent_type, priority, {PHASE} AS phase, sum(tasks)::bigint AS tasks FROM ({COUNTS}) counts
GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0
""")

_READ_STORED = text(f"""
SELECT agent_type, priority, phase, sum(tasks)::bigint AS tasks FROM ({COUNTS}) counts WHERE {within("phase")}
GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0
""")

# Up to a horizon, below which no line can appear any more: so none is left behind by the mark. A batch ends between two
# transactions, as the mark knows only whole ones; after a long break all would take longer than a statement may.
_FOLD = text(f"""
WITH stored AS MATERIALIZED (
    {folds.mark(_NAME)}
), mark AS MATERIALIZED (
    SELECT since, least(until, (
        SELECT CASE WHEN count(*) > :limit THEN greatest(max(transaction), min(transaction) + 1) END
        FROM (
            SELECT transaction FROM queue_changes WHERE transaction >= since ORDER BY transaction LIMIT :limit + 1
        ) ahead
    )) AS until FROM stored
), lines AS (
    DELETE FROM queue_changes c USING mark WHERE c.transaction >= mark.since AND c.transaction < mark.until
    RETURNING c.agent_type, c.priority, c.phase, c.tasks
), folded AS (
    INSERT INTO queue_counts AS stored (agent_type, priority, phase, tasks)
    SELECT agent_type, priority, phase, sum(tasks) FROM lines GROUP BY agent_type, priority, phase
    HAVING sum(tasks) <> 0
    ON CONFLICT (agent_type, priority, phase) DO UPDATE SET tasks = stored.tasks + excluded.tasks
), marked AS (
    INSERT INTO folds (name, transaction) SELECT '{_NAME}', until FROM mark
    WHERE EXISTS (SELECT FROM lines)
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)
SELECT count(*) FROM lines
""")

_COUNT_TASKS = text("""
SELECT agent_type, priority, convener_phase(state, run_at) AS phase, count(*) AS tasks FROM tasks GROUP BY 1, 2, 3
""")

# One statement has one snapshot, so changes under way make no difference.
_DIFFERENCES = text(f"""
SELECT agent_type, priority, phase, sum(tasks)::bigint AS tasks FROM (
    SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority) AS phase,
           count(*) AS tasks
    FROM tasks GROUP BY 1, 2, 3
    UNION ALL
    SELECT agent_type, priority, phase, -tasks FROM ({COUNTS}) counts
) compared GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
""")

_CORRECT = text("""
INSERT INTO queue_changes (agent_type, priority, phase, tasks)
SELECT * FROM unnest(CAST(:agents AS text[]), CAST(:priorities AS smallint[]), CAST(:phases AS text[]),
                     CAST(:tasks AS integer[]))
""")

# A condition, always true, of a statement that writes the lines of what it does to `tasks` itself: the triggers leave
# it alone. It holds for one statement, as no other of its transaction begins at the same microsecond.
COUNTS_ITSELF = "(SELECT set_config('convener.counted', statement_timestamp()::text, true)) <> ''"

_SIZE = text("SELECT pg_relation_size('tasks')")

# The gate before the limit of the queue. Submits far from the limit pass together, each process by its own estimate.
# One near the limit passes alone and counts exactly, so that nobody else takes the room that it has counted.
_GATE = "7241, 8"
# OFFSET 0 and the row of the outer query make PostgreSQL read the epoch only after it has granted the lock.
ENTER_SHARED = f"""
SELECT epoch FROM (SELECT CAST(pg_advisory_xact_lock_shared({_GATE}) AS text) AS granted OFFSET 0) gate
CROSS JOIN LATERAL (
    SELECT last_value + is_called::integer + length(gate.granted) AS epoch FROM admission_epoch OFFSET 0
) sequence
"""
_ENTER_SHARED = text(ENTER_SHARED)
_ENTER_ALONE = text(f"SELECT pg_advisory_xact_lock({_GATE}), nextval('admission_epoch')")


class Move(NamedTuple):
    """Tasks of `source` that leave a state, and enter another one unless they are deleted; states are SQL expressions.

    `source` has the columns of tasks that may run.
    """

    source: str
    left_state: str
    entered_state: str | None = None


def entry(*moves: Move) -> str:
    """Return the INSERT of the lines for tasks that move, without those of moves that cancel each other out."""
    changes = " UNION ALL ".join(map(_changes, moves))
    if len(moves) > 1:
        changes = f"""SELECT agent_type, priority, phase, sum(change) FROM ({changes}) change
    GROUP BY 1, 2, 3 HAVING sum(change) <> 0"""
    return f"INSERT INTO queue_changes (agent_type, priority, phase, tasks) {changes}"


def _changes(move: Move) -> str:
    # The phase of a task that may run ends in its state. Grouped once, as another step costs more to start than to do.
    tasks_of_phase = f"""SELECT agent_type, priority, convener_counted(goal_id, '', NULL, submitted_priority) AS prefix,
               state, count(*)::integer AS tasks
        FROM {move.source} GROUP BY 1, 2, 3, 4"""
    steps, state, change = "", move.left_state, "-tasks"
    if move.entered_state:
        both = f"(VALUES ({move.left_state}, -tasks), ({move.entered_state}, tasks)) AS step (state, change)"
        steps, state, change = f" CROSS JOIN LATERAL {both}", "step.state", "step.change"
    return f"""SELECT agent_type, priority, prefix || {state} AS phase, {change} AS change
    FROM (
        {tasks_of_phase}
    ) moved{steps}"""


def entry_of_new(source: str) -> str:
    """Return the INSERT of the lines for new tasks; `source` has the columns of tasks."""
    return f"""INSERT INTO queue_changes (agent_type, priority, phase, tasks)
    SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority), count(*) FROM {source}
    GROUP BY 1, 2, 3"""


async def read(connection: AsyncConnection) -> list[TaskCount]:
    """Return all counts that are not zero, over all namespaces."""
    return _counts((await connection.execute(_READ)).mappings())


async def read_by_namespace(connection: AsyncConnection, namespace: str | None = None) -> dict[str, list[TaskCount]]:
    """Return the counts of each namespace, or of one, that are not zero."""
    counts: dict[str, list[TaskCount]] = {}
    for count in _counts((await connection.execute(_READ_STORED, {"namespace": namespace})).mappings()):
        namespace, name = split_name(count.phase)
        submitted, _, phase = str(name).rpartition("/")
        priority = Priority(int(submitted)) if submitted else None
        counts.setdefault(namespace, []).append(replace(count, phase=phase, submitted=priority))
    return counts


async def fold(connection: AsyncConnection, limit: int = FOLDED_LINES) -> int:
    """Fold the lines of ended transactions, about `limit` of them; return their number.

    The caller holds a duty's turn: one fold at a time.
    """
    horizon = await folds.horizon(connection, "queue_changes")
    return int((await connection.execute(_FOLD, {"until": horizon.until, "limit": limit})).scalar_one())


async def count_tasks(connection: AsyncConnection) -> list[TaskCount]:
    """Count every task, for checks."""
    return _counts((await connection.execute(_COUNT_TASKS)).mappings())


async def differences(connection: AsyncConnection) -> list[TaskCount]:
    """Return by how much the counts are too low, negative where they are too high; counts every task."""
    return _counts((await connection.execute(_DIFFERENCES)).mappings())


async def correct(connection: AsyncConnection, differences: Sequence[TaskCount]) -> None:
    """Add differences as changes like any others, which makes them right whatever else has changed since."""
    values = {
        "agents": [count.lane.agent_type.value for count in differences],
        "priorities": [count.lane.priority.value for count in differences],
        "phases": [count.phase for count in differences],
        "tasks": [count.tasks for count in differences],
    }
    await connection.execute(_CORRECT, values)


async def table_bytes(connection: AsyncConnection) -> int:
    """Size of the table of tasks, dead rows included, which counting every task would read."""
    return int((await connection.execute(_SIZE)).scalar_one())


async def enter_shared(connection: AsyncConnection) -> int:
    """Pass the gate together with others, until the transaction or its savepoint ends; wait for one that passes alone.

    Return the epoch, which changes whenever somebody passes alone.
    """
    return int((await connection.execute(_ENTER_SHARED)).scalar_one())


async def enter_alone(connection: AsyncConnection) -> None:
    """Pass the gate alone, until the transaction ends: all submits that passed before have committed then."""
    await connection.execute(_ENTER_ALONE)


def queue_depths(counts: Iterable[TaskCount]) -> dict[Priority, int]:
    """Number of tasks that wait in the queue, by their priority at submit where they are counted by it."""
    depth = dict.fromkeys(Priority, 0)
    for count in counts:
        if count.phase in QUEUED_PHASES:
            depth[count.submitted or count.lane.priority] += count.tasks
    return depth


def _counts(rows: Iterable[Mapping[str, Any] | Any]) -> list[TaskCount]:
    return [
        TaskCount(
            lane=Lane(agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"])),
            phase=row["phase"],
            tasks=row["tasks"],
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTotal:
    """Number of events of one kind in a lane since ever, and the sum of their seconds; for differences over time."""

    lane: Lane
    kind: str
    tasks: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts of live tasks, totals of events, and the reasons of paused agent types."""

    counts: Sequence[TaskCount]
    totals: Sequence[EventTotal]
    pause_reasons: Mapping[AgentType, str]


_OVERVIEW = text(f"""
SELECT 'count' AS source, agent_type, priority, {PHASE} AS name, sum(tasks)::bigint AS tasks, 0::float8 AS seconds
FROM ({COUNTS}) counts GROUP BY 2, 3, 4 HAVING sum(tasks) <> 0
UNION ALL
SELECT 'total', agent_type, priority, kind, tasks, seconds FROM queue_totals WHERE kind = ANY (CAST(:kinds AS text[]))
UNION ALL
SELECT 'pause', agent_type, NULL, reason, 0, 0 FROM pauses
""")


async def overview(connection: AsyncConnection, kinds: Collection[str]) -> Overview:
    """Read counts, totals of these kinds of events, and pauses, by one statement."""
    rows = (await connection.execute(_OVERVIEW, {"kinds": list(kinds)})).all()
    return Overview(
        counts=[
            TaskCount(lane=_lane(agent, priority), phase=phase, tasks=tasks)
            for source, agent, priority, phase, tasks, _ in rows
            if source == "count"
        ],
        totals=[
            EventTotal(lane=_lane(agent, priority), kind=kind, tasks=tasks, seconds=seconds)
            for source, agent, priority, kind, tasks, seconds in rows
            if source == "total"
        ],
        pause_reasons={AgentType(agent): reason for source, agent, _, reason, _, _ in rows if source == "pause"},
    )


_DEPTHS = f"""
SELECT agent_type, priority, {PHASE} AS phase, sum(tasks)::bigint AS tasks
FROM ({COUNTS}) counts GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0
UNION ALL
SELECT agent_type, NULL, NULL, NULL FROM pauses
"""


async def depths(connection: HotConnection) -> tuple[list[TaskCount], frozenset[AgentType]]:
    """Read the counts and the paused agent types, by one statement without a transaction around it."""
    rows = await connection.fetch(_DEPTHS)
    counts = [
        TaskCount(lane=_lane(agent, priority), phase=phase, tasks=tasks)
        for agent, priority, phase, tasks in rows
        if priority is not None
    ]
    return counts, frozenset(AgentType(agent) for agent, priority, _, _ in rows if priority is None)


def _lane(agent: str, priority: int) -> Lane:
    return Lane(agent_type=AgentType(agent), priority=Priority(priority))
