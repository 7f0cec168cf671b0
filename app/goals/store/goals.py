"""Research goals: what was asked for and where they stand, and the share that each has of the lanes."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.retention import BATCH
from app.goals.rules.goals import LIVE_STATES, Constraints, GoalState
from app.goals.rules.stopping import StoppingRule, Unit
from app.queue.rules.events import GoalEvent
from app.queue.rules.holds import Hold

DEFAULT_WEIGHT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGoal:
    """A goal as it is created; `weight` None leaves it as it is."""

    id: str
    objective: str
    terms: Constraints
    weight: float | None
    created_by: str
    request_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A goal as it is kept, the last decision on it as JSON, and why its tasks are held back where they are."""

    id: str
    state: GoalState
    objective: str
    terms: Constraints
    weight: float
    created_by: str
    request_hash: bytes
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    iterations: int
    last_decision: dict[str, Any] | None
    hold: Hold | None


_CONSTRAINTS = tuple(Constraints.__dataclass_fields__)
_OWN = ("id", "state", "objective", "weight", "created_by", "request_hash", "started_at", "ended_at", "reason")
_COLUMNS = ", ".join(f"g.{name}" for name in (*_OWN, *_CONSTRAINTS))
_SELECT = f"""
SELECT {_COLUMNS}, coalesce(last.number, 0) AS iterations, last.decision AS last_decision,
       CASE WHEN h.is_closed THEN h.reason END AS hold
FROM goals g
LEFT JOIN LATERAL (
    SELECT number, decision FROM goal_iterations i WHERE i.goal_id = g.id ORDER BY number DESC LIMIT 1
) last ON true
LEFT JOIN holds h ON h.goal_id = g.id
"""

_CREATE = text(f"""
INSERT INTO goals AS known (id, weight, state, objective, created_by, request_hash, started_at, {", ".join(_CONSTRAINTS)})
VALUES (:id, coalesce(CAST(:weight AS float8), 1), 'running', :objective, :created_by, :request_hash, now(),
        {", ".join(f":{name}" for name in _CONSTRAINTS)})
ON CONFLICT (id) DO UPDATE SET
    weight = coalesce(CAST(:weight AS float8), known.weight), state = excluded.state, objective = excluded.objective,
    created_by = excluded.created_by, request_hash = excluded.request_hash, started_at = excluded.started_at,
    {", ".join(f"{name} = excluded.{name}" for name in _CONSTRAINTS)}
WHERE known.state IS NULL
RETURNING id
""")

_READ = text(f"{_SELECT} WHERE g.id = :id AND g.state IS NOT NULL")

_LOCK = text("SELECT id FROM goals WHERE id = :id AND state IS NOT NULL FOR UPDATE")

_PAGE = text(f"""
{_SELECT} WHERE g.state = ANY (CAST(:states AS text[])) AND g.id > :after ORDER BY g.id LIMIT :limit
""")

_SET_STATE = text("""
UPDATE goals SET state = :state, reason = :reason, ended_at = CASE WHEN :state = 'stopped' THEN now() END
WHERE id = :id
""")

_APPEND_EVENT = text("INSERT INTO events (kind, goal_id, detail) VALUES (:kind, :goal_id, CAST(:detail AS jsonb))")

_READ_LIMITED = text(f"""
{_SELECT} WHERE g.state = ANY (CAST(:states AS text[]))
  AND (g.time_limit_seconds IS NOT NULL OR g.compute_budget_seconds IS NOT NULL)
ORDER BY g.id
""")

_SET_WEIGHT = text("""
INSERT INTO goals AS known (id, weight) VALUES (:id, :weight)
ON CONFLICT (id) DO UPDATE SET weight = excluded.weight WHERE known.weight <> excluded.weight
""")

# Each by a look into one index, in its order so that no other comes into question: by the id alone the planner may look
# for the first task of a goal that has none among all others.
_NO_TASK = """NOT EXISTS (
          SELECT FROM (
              SELECT FROM {table} t WHERE t.goal_id >= {goal} AND t.goal_id <= {goal} ORDER BY t.goal_id LIMIT 1
          ) first
      )"""
NO_TASKS = " AND ".join(_NO_TASK.format(table=table, goal="{goal}") for table in ("tasks", "task_history"))

_PRUNE = text(f"""
WITH old AS MATERIALIZED (
    SELECT id FROM goals WHERE state = 'stopped' AND ended_at < now() - make_interval(days => :days)
      AND {NO_TASKS.format(goal="goals.id")}
      AND NOT EXISTS (SELECT FROM holds h WHERE h.goal_id = goals.id)
    ORDER BY id LIMIT :bite FOR UPDATE SKIP LOCKED
), iterations AS (
    DELETE FROM goal_iterations WHERE goal_id IN (SELECT id FROM old)
), computed AS (
    DELETE FROM goal_compute WHERE goal_id IN (SELECT id FROM old)
)
DELETE FROM goals WHERE id IN (SELECT id FROM old)
""")

_READ_WEIGHT = text("SELECT weight FROM goals WHERE id = :id")


async def create(connection: AsyncConnection, new: NewGoal) -> bool:
    """Write down a goal that nobody has created before; False when somebody has. Waits for a rival that is at it."""
    values = {"id": new.id, "weight": new.weight, "objective": new.objective, "created_by": new.created_by}
    values |= {name: getattr(new.terms, name) for name in _CONSTRAINTS} | {"request_hash": new.request_hash}
    return (await connection.execute(_CREATE, values)).first() is not None


async def read(connection: AsyncConnection, goal_id: str) -> Goal | None:
    """A goal that was created; None where there is none."""
    row = (await connection.execute(_READ, {"id": goal_id})).mappings().first()
    return _goal(row) if row else None


async def lock(connection: AsyncConnection, goal_id: str) -> Goal | None:
    """As `read`, and ours until the transaction ends."""
    if (await connection.execute(_LOCK, {"id": goal_id})).first() is None:
        return None
    # A statement of its own: only then does it see what the former holder of the lock has done.
    return await read(connection, goal_id)


async def page(
    connection: AsyncConnection, *, states: Collection[GoalState], after: str, limit: int
) -> tuple[list[Goal], str | None]:
    """Goals by id, from `after` on, and where to go on; None at the end."""
    values = {"states": [state.value for state in states or GoalState], "after": after, "limit": limit + 1}
    rows = (await connection.execute(_PAGE, values)).mappings().all()
    found = [_goal(row) for row in rows[:limit]]
    return found, found[-1].id if len(rows) > limit else None


async def read_limited(connection: AsyncConnection) -> list[Goal]:
    """All goals that go on and have a limit of time or compute."""
    rows = (await connection.execute(_READ_LIMITED, {"states": [state.value for state in LIVE_STATES]})).mappings()
    return [_goal(row) for row in rows]


async def set_state(connection: AsyncConnection, goal_id: str, state: GoalState, reason: str) -> None:
    """Put a goal that we hold the lock of into a state."""
    await connection.execute(_SET_STATE, {"id": goal_id, "state": state.value, "reason": reason})


async def change_limits(connection: AsyncConnection, goal_id: str, terms: Constraints) -> None:
    """Change those terms that are given, of a goal that we hold the lock of."""
    given = {name: value for name in _CONSTRAINTS if (value := getattr(terms, name)) is not None}
    if given:
        statement = text(f"UPDATE goals SET {', '.join(f'{name} = :{name}' for name in given)} WHERE id = :id")
        await connection.execute(statement, {**given, "id": goal_id})


async def append_event(connection: AsyncConnection, kind: GoalEvent, goal_id: str, detail: dict[str, Any]) -> None:
    """Append an event that is about the goal itself."""
    values = {"kind": kind.value, "goal_id": goal_id, "detail": json.dumps(detail)}
    await connection.execute(_APPEND_EVENT, values)
    notify.note(connection, notify.EVENTS)


async def set_weight(connection: AsyncConnection, goal_id: str, weight: float) -> None:
    """Give a goal its weight, for the tasks that it submits from now on."""
    await connection.execute(_SET_WEIGHT, {"id": goal_id, "weight": weight})


async def read_weight(connection: AsyncConnection, goal_id: str) -> float:
    """The weight of a goal; the usual one for a goal that nobody has weighed."""
    found = (await connection.execute(_READ_WEIGHT, {"id": goal_id})).scalar()
    return DEFAULT_WEIGHT if found is None else float(found)


async def prune(connection: AsyncConnection, days: int, bite: int = BATCH) -> int:
    """Forget goals that stopped long ago, with their iterations and what they have cost; returns how many.

    Every checkpoint holds all goals, so they may not grow without end. A goal stays as long as anything is left of its
    tasks, which must not be taken for those of a goal that goes on, and whole: as long as it is there each of its
    decisions can be made again. Who only weighed a goal has made a setting, and that stays.
    """
    return (await connection.execute(_PRUNE, {"days": days, "bite": bite})).rowcount


def _goal(row: Any) -> Goal:
    terms = {name: row[name] for name in _CONSTRAINTS}
    terms["improvement_unit"] = Unit(row["improvement_unit"]) if row["improvement_unit"] else None
    terms["rule"] = StoppingRule(row["rule"]) if row["rule"] else None
    rest = {name: row[name] for name in Goal.__dataclass_fields__ if name not in ("terms", "state", "hold")}
    hold = Hold(row["hold"]) if row["hold"] else None
    return Goal(terms=Constraints(**terms), state=GoalState(row["state"]), hold=hold, **rest)
