"""Compute of research goals in seconds on workers: of attempts that ended, folded from their events, and of those that
run, read from the ledger of leases. Neither relies on the word of a client, and neither grows with history.

Totals of a goal's tasks are folded with them.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.db.folds import FoldedBatch
from app.db.retention import BATCH, deletion
from app.goals.rules.budgets import Compute
from app.goals.store import goals
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.queue.rules.status import TOTALS
from app.queue.store import event_rows, lease_ledger
from app.workers.store.tables import LIVE

# So many goals take some 5 ms of the event loop; then others have a turn.
_SHARE = 200
_NAME = folds.GOALS
HAS_EVENTS = folds.has_events(_NAME)
# Events that say how long an attempt has run. A canceled task that did not run has no seconds.
_END_EVENTS = (
    TaskEvent.COMPLETED,
    TaskEvent.RETRYING,
    TaskEvent.FAILED,
    TaskEvent.RELEASED,
    TaskEvent.EXPIRED,
    TaskEvent.CANCELLED,
)
_END_KINDS = ", ".join(repr(event.value) for event in _END_EVENTS)
_IS_ATTEMPT = f"kind IN ({_END_KINDS}) AND seconds IS NOT NULL AND goal_id IS NOT NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAttempt:
    """A lease of a task that has lasted for `seconds`."""

    task_id: UUID
    token: int
    worker_id: UUID
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalCompute:
    """Compute of a goal in all, and its leases, of which the longest is the first."""

    total: Compute
    running: Sequence[RunningAttempt] = ()

    @property
    def ages(self) -> list[float]:
        """Seconds for which each attempt has been running."""
        return [attempt.seconds for attempt in self.running]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailedCompute(GoalCompute):
    """Compute of a goal with the seconds of it by agent type, and totals of its tasks by name."""

    by_agent: dict[AgentType, float]
    tasks: dict[str, int]


_NAMES = ", ".join(TOTALS)
_COUNTED_KINDS = ", ".join(repr(kind) for kind in TOTALS.values())
# One event as a row of the sums.
_EVENT = f"""
    SELECT goal_id, agent_type, ({_IS_ATTEMPT})::int AS attempts,
           CASE WHEN {_IS_ATTEMPT} THEN seconds::float8 ELSE 0 END AS seconds,
           {", ".join(f"(kind = '{kind}')::int AS {name}" for name, kind in TOTALS.items())}
    FROM every_event WHERE goal_id IS NOT NULL AND (kind IN ({_COUNTED_KINDS}) OR {_IS_ATTEMPT})
      AND {event_rows.of_kinds(sorted({*TOTALS.values(), *(event.value for event in _END_EVENTS)}))}
"""
_SUMS = f"""sum(attempts)::bigint AS attempts, sum(seconds)::float8 AS seconds,
           {", ".join(f"sum({name})::bigint AS {name}" for name in TOTALS)}"""

_FOLD = text(f"""
WITH {folds.batch(_NAME)}, folded AS (
    INSERT INTO goal_compute AS stored (goal_id, agent_type, attempts, seconds, {_NAMES})
    SELECT goal_id, agent_type, {_SUMS} FROM (
        {_EVENT} AND transaction >= (SELECT since FROM mark) AND transaction < (SELECT until FROM batch)
    ) event GROUP BY goal_id, agent_type
    ON CONFLICT (goal_id, agent_type) DO UPDATE
    SET {", ".join(f"{name} = stored.{name} + excluded.{name}" for name in ("attempts", "seconds", *TOTALS))}
), {folds.advance_mark(_NAME, "EXISTS (SELECT FROM ahead)")}
SELECT (SELECT coalesce(sum(size), 0) FROM ahead)::bigint AS events, more AS has_more FROM batch
""")

# Folded rows and events beyond the mark in one statement: its one snapshot counts each event exactly once, also while a
# fold commits.
_SPENT_IN_PARTS = f"""
    SELECT goal_id, agent_type, attempts, seconds, {_NAMES} FROM {{folded}}
    UNION ALL
    {_EVENT} AND {{condition}}
      AND transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
"""
_SUMMED = f"SELECT goal_id, agent_type, {_SUMS} FROM ({_SPENT_IN_PARTS}) spent GROUP BY goal_id, agent_type"
_NAMED = "unnest(CAST(:goal_ids AS text[]))"
# By a set that is hashed: an array of thousands would be walked through for each row once the plan is a generic one.
_AMONG = f"goal_id IN (SELECT {_NAMED})"
# OFFSET 0 keeps it one probe for each goal: joined, the rows of all goals that there ever were would be read.
_OF_NAMED = f"""(SELECT DISTINCT {_NAMED} AS id) named
    CROSS JOIN LATERAL (SELECT * FROM goal_compute WHERE goal_compute.goal_id = named.id OFFSET 0) folded"""
_SPENT = text(f"{_SUMMED.format(folded=_OF_NAMED, condition=_AMONG)} ORDER BY agent_type")
_TOTALS = text(f"""
SELECT goal_id, sum(attempts)::bigint AS attempts, sum(seconds)::float8 AS seconds
FROM ({_SPENT_IN_PARTS.format(folded=_OF_NAMED, condition=_AMONG)}) spent GROUP BY goal_id
""")
# Of all goals: a checkpoint takes no events along, so it needs the sums with what is not folded yet. Totals of tasks
# begin anew after a restore, which submits tasks again.
ALL_SPENT = f"""
SELECT goal_id, agent_type, attempts, seconds FROM ({_SUMMED.format(folded="goal_compute", condition="true")}) summed
WHERE attempts > 0 ORDER BY goal_id, agent_type
"""

# From workers to tasks, since a pool is small: each worker's last lease leads to the one task it may hold.
_RUNNING = text(f"""
SELECT t.goal_id, t.id AS task_id, t.token, t.worker_id,
       greatest(0, extract(epoch FROM now() - t.leased_at))::float8 AS seconds
FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
CROSS JOIN LATERAL {lease_ledger.held_task("w.id")} t
WHERE w.{LIVE} AND t.{_AMONG}
ORDER BY t.leased_at, t.id
""")

# The order of one index, starting at the goal: with `seq` alone the planner might scan all tasks for the first one of a
# goal that has none.
_FIRST_TYPES = text("""
SELECT first.goal_id, first.agent_type FROM unnest(CAST(:goal_ids AS text[])) AS goal (id)
CROSS JOIN LATERAL (
    SELECT goal_id, agent_type FROM tasks t WHERE t.goal_id >= goal.id ORDER BY t.goal_id, t.seq LIMIT 1
) first
WHERE first.goal_id = goal.id
""")

# Examines a random sample of the names that are no goal's, as each is looked for in every day of history. EXCEPT reads
# either side once, whatever the planner knows.
_PRUNE = deletion(
    "goal_compute",
    f"""goal_id = ANY (ARRAY(
        SELECT named.id FROM (
            SELECT id FROM (SELECT goal_id AS id FROM goal_compute EXCEPT SELECT id FROM goals) every
            ORDER BY random() LIMIT 2000
        ) named
        WHERE {goals.NO_TASKS.format(goal="named.id")}
        LIMIT :limit
    ))""",
    "goal_id",
)


async def fold(connection: AsyncConnection, limit: int = 20_000) -> FoldedBatch:
    """Fold about `limit` of the oldest new events. The caller holds a duty's turn: two at once would count twice."""
    horizon = await folds.horizon(connection, "events")
    row = (await connection.execute(_FOLD, {"until": horizon.until, "limit": limit})).mappings().one()
    return FoldedBatch(events=row["events"], has_more=row["has_more"])


async def read_many(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, GoalCompute]:
    """Exact compute of each of these goals until now, including attempts not folded yet and those that run."""
    rows = (await connection.execute(_TOTALS, {"goal_ids": list(goal_ids)})).all()
    spent = {goal_id: (seconds, attempts) for goal_id, attempts, seconds in rows}
    running, compute = await _running(connection, goal_ids), {}
    for number, goal_id in enumerate(goal_ids, 1):
        if number % _SHARE == 0:
            await asyncio.sleep(0)
        total = _total(*spent.get(goal_id, (0.0, 0)), running[goal_id])
        compute[goal_id] = GoalCompute(total=total, running=running[goal_id])
    return compute


async def read(connection: AsyncConnection, goal_id: str) -> DetailedCompute:
    """Exact compute of one goal until now."""
    rows = (await connection.execute(_SPENT, {"goal_ids": [goal_id]})).mappings().all()
    running = (await _running(connection, [goal_id]))[goal_id]
    seconds, attempts = sum(row["seconds"] for row in rows), sum(row["attempts"] for row in rows)
    return DetailedCompute(
        total=_total(seconds, attempts, running),
        running=running,
        by_agent={AgentType(row["agent_type"]): row["seconds"] for row in rows if row["attempts"]},
        tasks={name: sum(row[name] for row in rows) for name in TOTALS},
    )


async def _running(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, list[RunningAttempt]]:
    running: dict[str, list[RunningAttempt]] = {goal_id: [] for goal_id in goal_ids}
    for row in (await connection.execute(_RUNNING, {"goal_ids": list(goal_ids)})).mappings():
        fields = {name: row[name] for name in RunningAttempt.__dataclass_fields__}
        running[row["goal_id"]].append(RunningAttempt(**fields))
    return running


def _total(seconds: float, attempts: int, running: Sequence[RunningAttempt]) -> Compute:
    return Compute(
        spent_seconds=seconds,
        attempts=attempts,
        running=len(running),
        running_seconds=sum(attempt.seconds for attempt in running),
    )


async def first_task_types(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, AgentType]:
    """Agent type of the first live task of each goal; goals without tasks are left out."""
    rows = await connection.execute(_FIRST_TYPES, {"goal_ids": list(goal_ids)})
    return {row.goal_id: AgentType(row.agent_type) for row in rows}


async def prune(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Delete the compute of goals that were never created and whose tasks are gone; return the number of rows deleted.

    A client that invents a goal id for each run would leave rows for ever, and every checkpoint holds all of them.
    """
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount
