"""What research goals have cost on workers: seconds of attempts that ended, folded from their events, and of those
that run, looked up in the ledger of leases. Nobody's word is needed for either, and neither grows with history.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.db.retention import BATCH, deletion
from app.goals.rules.budgets import Compute
from app.goals.store import goals
from app.kernel.agents import AgentType
from app.queue.rules.events import TaskEvent
from app.queue.store import lease_ledger
from app.workers.store.tables import LIVE

_NAME = "goals"
# The events that tell how long an attempt has run. A cancelled task that did not run has none.
_END_EVENTS = (TaskEvent.COMPLETED, TaskEvent.RETRYING, TaskEvent.FAILED, TaskEvent.RELEASED, TaskEvent.EXPIRED, TaskEvent.CANCELLED)
_ENDED = (
    f"kind IN ({', '.join(repr(move.value) for move in _END_EVENTS)}) AND seconds IS NOT NULL AND goal_id IS NOT NULL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """How many events were looked at, and whether there are more already."""

    events: int
    more: bool


_FOLD = text(f"""
WITH {folds.bite(_NAME)}, folded AS (
    INSERT INTO goal_compute AS known (goal_id, agent_type, attempts, seconds)
    SELECT goal_id, agent_type, count(*), sum(seconds::float8) FROM events
    WHERE transaction >= (SELECT since FROM mark) AND transaction < (SELECT until FROM bite) AND {_ENDED}
    GROUP BY goal_id, agent_type
    ON CONFLICT (goal_id, agent_type) DO UPDATE
    SET attempts = known.attempts + excluded.attempts, seconds = known.seconds + excluded.seconds
), {folds.marked(_NAME, "EXISTS (SELECT FROM ahead)")}
SELECT (SELECT count(*) FROM ahead) AS events, (SELECT count(*) FROM ahead) > :bite AS more
""")

# One statement has one snapshot, so what is being folded meanwhile is counted once.
_SPENT = text(f"""
SELECT goal_id, agent_type, sum(attempts)::bigint AS attempts, sum(seconds)::float8 AS seconds FROM (
    SELECT goal_id, agent_type, attempts, seconds FROM goal_compute WHERE goal_id = ANY (CAST(:goal_ids AS text[]))
    UNION ALL
    SELECT goal_id, agent_type, 1, seconds FROM events
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
      AND goal_id = ANY (CAST(:goal_ids AS text[])) AND {_ENDED}
) known GROUP BY goal_id, agent_type
""")

# All goals, for whoever takes them elsewhere.
ALL_SPENT = f"""
SELECT goal_id, agent_type, sum(attempts)::bigint AS attempts, sum(seconds)::float8 AS seconds FROM (
    SELECT goal_id, agent_type, attempts, seconds FROM goal_compute
    UNION ALL
    SELECT goal_id, agent_type, 1, seconds FROM events
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0) AND {_ENDED}
) known GROUP BY goal_id, agent_type ORDER BY goal_id, agent_type
"""

_RUNNING = text(f"""
SELECT t.goal_id, count(*) AS running, sum(extract(epoch FROM now() - t.leased_at))::float8 AS seconds
FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
CROSS JOIN LATERAL {lease_ledger.held("w.id")} t
WHERE w.{LIVE} AND t.goal_id = ANY (CAST(:goal_ids AS text[]))
GROUP BY t.goal_id
""")

# The first task from the goal on in the order of one index, so that no other comes into question: by `seq` alone the
# planner may look for the first task of a goal that has none among all others.
_FIRST_TYPES = text("""
SELECT first.goal_id, first.agent_type FROM unnest(CAST(:goal_ids AS text[])) AS asked (id)
CROSS JOIN LATERAL (
    SELECT goal_id, agent_type FROM tasks t WHERE t.goal_id >= asked.id ORDER BY t.goal_id, t.seq LIMIT 1
) first
WHERE first.goal_id = asked.id
""")


# Looks at some goals at a time, whichever they are, so that this costs no more however many have tasks.
_PRUNE = deletion(
    "goal_compute",
    f"""goal_id = ANY (ARRAY(
        SELECT named.id FROM (
            SELECT id FROM (SELECT DISTINCT goal_id AS id FROM goal_compute) every ORDER BY random() LIMIT 2000
        ) named
        WHERE NOT EXISTS (SELECT FROM goals g WHERE g.id = named.id)
          AND {goals.NO_TASKS.format(goal="named.id")}
        LIMIT :bite
    ))""",
    "goal_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalCompute:
    """All of a goal, and what each agent type has spent of it, in seconds."""

    total: Compute
    by_agent: dict[AgentType, float]


async def fold(connection: AsyncConnection, bite: int = 20_000) -> FoldResult:
    """Fold about so many of the oldest new events. One at a time: the caller holds a duty's turn."""
    row = (await connection.execute(_FOLD, {"bite": bite})).mappings().one()
    return FoldResult(events=row["events"], more=row["more"])


async def read_many(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, GoalCompute]:
    """What each of these goals has cost until now, exactly: also what has just ended, and what runs."""
    values = {"goal_ids": list(goal_ids)}
    spent = (await connection.execute(_SPENT, values)).mappings().all()
    running = {row["goal_id"]: row for row in (await connection.execute(_RUNNING, values)).mappings()}
    found = {}
    for goal_id in goal_ids:
        ours = [row for row in spent if row["goal_id"] == goal_id]
        runs = running.get(goal_id)
        total = Compute(
            spent_seconds=sum(row["seconds"] for row in ours),
            attempts=sum(row["attempts"] for row in ours),
            running=runs["running"] if runs else 0,
            running_seconds=runs["seconds"] if runs else 0.0,
        )
        by_agent = {AgentType(row["agent_type"]): row["seconds"] for row in ours}
        found[goal_id] = GoalCompute(total=total, by_agent=by_agent)
    return found


async def first_task_types(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, AgentType]:
    """Of which type the first live task of each goal is; goals without tasks are left out."""
    rows = await connection.execute(_FIRST_TYPES, {"goal_ids": list(goal_ids)})
    return {row.goal_id: AgentType(row.agent_type) for row in rows}


async def read(connection: AsyncConnection, goal_id: str) -> GoalCompute:
    """What a goal has cost until now."""
    return (await read_many(connection, [goal_id]))[goal_id]


async def prune(connection: AsyncConnection, bite: int = BATCH) -> int:
    """Forget what goals have cost that are merely named by tasks, once nothing is left of these; returns how many rows.

    Whoever makes up an id for each run leaves rows for ever otherwise, and every checkpoint holds all of them.
    """
    return (await connection.execute(_PRUNE, {"bite": bite})).rowcount
