"""Research goals: rows with their constraints and state, and the weight of each against other goals."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify, pages
from app.db.namespaces import within
from app.db.pages import Page
from app.db.retention import BATCH
from app.goals.rules.budgets import NOTICE_SHARES
from app.goals.rules.goals import LIVE_STATES, Constraints, GoalState
from app.goals.rules.stopping import StoppingRule, Unit
from app.kernel.events import GoalEvent
from app.queue.rules.holds import Hold

DEFAULT_WEIGHT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalRequest:
    """A goal to create for the key `created_by`; with `weight` None, a weight that was set before stays."""

    id: str
    objective: str
    constraints: Constraints
    weight: float | None
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A stored goal, the last decision on it as JSON, and the reason for which its tasks are held back, if they are."""

    id: str
    state: GoalState
    objective: str
    constraints: Constraints
    weight: float
    created_by: str
    request_hash: bytes
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    iterations: int
    last_decision: dict[str, Any] | None
    hold: Hold | None
    # What its calls of language models have cost; all its money, and the cost of calls, when it last reported.
    calls_usd: float
    calls_tokens: int
    money_base: float
    money_since: float
    is_budget_low: bool


_CONSTRAINTS = tuple(Constraints.__dataclass_fields__)
_FIELDS = ("id", "state", "objective", "weight", "created_by", "request_hash", "started_at", "ended_at", "reason")
_SPENDING = ("money_base", "money_since", "is_budget_low")
_COLUMNS = ", ".join(f"g.{name}" for name in (*_FIELDS, *_CONSTRAINTS, *_SPENDING))
_JOINS = "LEFT JOIN holds h ON h.goal_id = g.id LEFT JOIN llm_spending s ON s.goal_id = g.id"
_READING = f"""
SELECT {_COLUMNS}, {{iterations}} AS iterations, {{last_decision}} AS last_decision,
       CASE WHEN h.is_closed AND NOT h.is_metered THEN h.reason END AS hold, coalesce(s.cost_usd, 0) AS calls_usd,
       coalesce(s.tokens, 0) AS calls_tokens
FROM goals g {_JOINS}
"""
_SELECT = f"""{_READING.format(iterations="coalesce(last.number, 0)", last_decision="last.decision")}
LEFT JOIN LATERAL (
    SELECT number, decision FROM goal_iterations i WHERE i.goal_id = g.id ORDER BY number DESC LIMIT 1
) last ON true
"""

# A row without a state was made by a weight that came first: creating the goal completes that row. With a state the
# goal exists, and the statement changes nothing and returns no row.
_CREATE = text(f"""
INSERT INTO goals AS present (id, weight, state, objective, created_by, request_hash, started_at,
                              {", ".join(_CONSTRAINTS)})
VALUES (:id, coalesce(CAST(:weight AS float8), 1), 'running', :objective, :created_by, :request_hash, now(),
        {", ".join(f":{name}" for name in _CONSTRAINTS)})
ON CONFLICT (id) DO UPDATE SET
    weight = coalesce(CAST(:weight AS float8), present.weight), state = excluded.state, objective = excluded.objective,
    created_by = excluded.created_by, request_hash = excluded.request_hash, started_at = excluded.started_at,
    {", ".join(f"{name} = excluded.{name}" for name in _CONSTRAINTS)}
WHERE present.state IS NULL
RETURNING id
""")

_READ = text(f"{_SELECT} WHERE g.id = :id AND g.state IS NOT NULL")

_LOCK = text("SELECT id FROM goals WHERE id = :id AND state IS NOT NULL FOR UPDATE")

_PAGE = f"""
{_SELECT} WHERE g.state = ANY (CAST(:states AS text[])) AND g.id > :after
  AND {within("g.id")}
ORDER BY g.id
"""

_SET_STATE = text("""
UPDATE goals SET state = :state, reason = :reason, ended_at = CASE WHEN :state = 'stopped' THEN now() END
WHERE id = :id
""")

_APPEND_EVENT = text("INSERT INTO events (kind, goal_id, detail) VALUES (:kind, :goal_id, CAST(:detail AS jsonb))")

_LIMITED = """(g.time_limit_seconds IS NOT NULL OR g.compute_budget_seconds IS NOT NULL
       OR g.money_budget IS NOT NULL OR g.token_budget IS NOT NULL)"""
# Those that a check may change or tell of: compute is used up while nobody reports any, what else is far from its limit
# stays so until the next check. By a little less than the rules take, which decide.
_MAY_BE_DUE = f"""(g.compute_budget_seconds IS NOT NULL OR h.reason = '{Hold.BUDGET}'
       OR extract(epoch FROM now() - g.started_at) > g.time_limit_seconds - 1
       OR g.money_base + coalesce(s.cost_usd, 0) - g.money_since > {{share}} * g.money_budget - 1e-9
       OR coalesce(s.tokens, 0) > {{share}} * g.token_budget - 1e-9)"""
_READ_LIMITED = text(f"""
{_READING.format(iterations=0, last_decision="NULL")}
WHERE g.state = ANY (CAST(:states AS text[])) AND {_LIMITED}
  AND {_MAY_BE_DUE.format(share=0.99 * min(NOTICE_SHARES))} ORDER BY g.id
""")
HAS_LIMITED = f"EXISTS (SELECT FROM goals g WHERE g.state <> '{GoalState.STOPPED}' AND {_LIMITED})"

_BUDGET_SHARES = text("""
SELECT id, share FROM (
    SELECT g.id, greatest((g.money_base + coalesce(s.cost_usd, 0) - g.money_since) / g.money_budget,
                          coalesce(s.tokens, 0)::float8 / g.token_budget) AS share
    FROM goals g LEFT JOIN llm_spending s ON s.goal_id = g.id
    WHERE g.state = ANY (CAST(:states AS text[])) AND (g.money_budget IS NOT NULL OR g.token_budget IS NOT NULL)
) used WHERE share >= :at_least ORDER BY share DESC, id LIMIT 1000
""")

_NOTE_MONEY = text("UPDATE goals SET money_base = :money, money_since = :calls_usd WHERE id = :id")
_NOTE_LOW_BUDGET = text("UPDATE goals SET is_budget_low = true WHERE id = :id AND NOT is_budget_low")

# Locks the row, which is new where there was none: of two rivals the second reads what the first has set.
_LOCK_WEIGHT = text("""
INSERT INTO goals AS present (id, weight) VALUES (:id, :weight)
ON CONFLICT (id) DO UPDATE SET weight = present.weight RETURNING weight
""")

_SET_WEIGHT = text("UPDATE goals SET weight = :weight WHERE id = :id")

_READ_WEIGHT = text("SELECT weight FROM goals WHERE id = :id")

# One probe each, in the order of the index: with the id alone the planner might scan all tasks for the first one of a
# goal that has none.
_NO_TASK = """NOT EXISTS (
          SELECT FROM (
              SELECT FROM {table} t WHERE t.goal_id >= {goal} AND t.goal_id <= {goal} ORDER BY t.goal_id LIMIT 1
          ) first
      )"""
NO_TASKS = " AND ".join(_NO_TASK.format(table=table, goal="{goal}") for table in ("tasks", "task_history"))

# Locked goals are skipped, so that this waits for no one; the next run finds them again.
_PRUNE = text(f"""
WITH old AS MATERIALIZED (
    SELECT id FROM goals WHERE state = 'stopped' AND ended_at < now() - make_interval(days => :days)
      AND {NO_TASKS.format(goal="goals.id")}
      AND NOT EXISTS (SELECT FROM holds h WHERE h.goal_id = goals.id)
    ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
), iterations AS (
    DELETE FROM goal_iterations WHERE goal_id IN (SELECT id FROM old)
), computed AS (
    DELETE FROM goal_compute WHERE goal_id IN (SELECT id FROM old)
), spent AS (
    DELETE FROM llm_spending WHERE goal_id IN (SELECT id FROM old)
)
DELETE FROM goals WHERE id IN (SELECT id FROM old)
""")


async def create(connection: AsyncConnection, request: GoalRequest, request_hash: bytes) -> bool:
    """Insert a goal; False when it was created before. Waits for a concurrent transaction that creates it."""
    values = asdict(request)
    constraints = values.pop("constraints")
    result = await connection.execute(_CREATE, {**values, **constraints, "request_hash": request_hash})
    return result.first() is not None


async def read(connection: AsyncConnection, goal_id: str) -> Goal | None:
    """A goal that was created; None where there is none."""
    row = (await connection.execute(_READ, {"id": goal_id})).mappings().first()
    return _goal(row) if row else None


async def lock(connection: AsyncConnection, goal_id: str) -> Goal | None:
    """Read a goal and lock it until the transaction ends; None where there is none."""
    if (await connection.execute(_LOCK, {"id": goal_id})).first() is None:
        return None
    # A second statement, whose newer snapshot sees what the former holder of the lock has committed.
    return await read(connection, goal_id)


async def page(
    connection: AsyncConnection,
    *,
    states: Collection[GoalState],
    namespace: str | None = None,
    after_id: str,
    limit: int,
) -> Page[Goal]:
    """Goals, of one namespace if one is given, in the order of their stored names, beyond `after_id`."""
    values = {
        "namespace": namespace,
        "states": [state.value for state in states or GoalState],
        "after": after_id,
    }
    return await pages.read(connection, _PAGE, values, limit, _goal)


async def read_limited(connection: AsyncConnection) -> list[Goal]:
    """Live goals with a limit of compute, and those that have nearly reached another; without their iterations."""
    rows = (await connection.execute(_READ_LIMITED, {"states": [state.value for state in LIVE_STATES]})).mappings()
    return [_goal(row) for row in rows]


async def set_state(connection: AsyncConnection, goal_id: str, state: GoalState, reason: str) -> None:
    """Set the state of a goal; the caller holds its lock."""
    await connection.execute(_SET_STATE, {"id": goal_id, "state": state.value, "reason": reason})


async def change_limits(connection: AsyncConnection, goal_id: str, constraints: Constraints) -> None:
    """Set those constraints that are not None; the caller holds the lock of the goal."""
    changes = {name: value for name in _CONSTRAINTS if (value := getattr(constraints, name)) is not None}
    if changes:
        columns = ", ".join(f"{name} = :{name}" for name in changes)
        statement = text(f"UPDATE goals SET {columns}, is_budget_low = false WHERE id = :id")
        await connection.execute(statement, {**changes, "id": goal_id})


async def budget_shares(connection: AsyncConnection, *, at_least: float) -> dict[str, float]:
    """Used shares of the money or tokens of live goals of which `at_least` so much is used, the largest first."""
    values = {"states": [state.value for state in LIVE_STATES], "at_least": at_least}
    return {row.id: row.share for row in await connection.execute(_BUDGET_SHARES, values)}


async def note_money(connection: AsyncConnection, goal_id: str, money: float, calls_usd: float) -> None:
    """Note what a goal has spent when an iteration is reported, and what its calls had cost; its lock is held."""
    await connection.execute(_NOTE_MONEY, {"id": goal_id, "money": money, "calls_usd": calls_usd})


async def note_low_budget(connection: AsyncConnection, goal_id: str) -> bool:
    """Note that an event tells of a budget that is nearly used up; False when one has."""
    return (await connection.execute(_NOTE_LOW_BUDGET, {"id": goal_id})).rowcount > 0


async def append_event(connection: AsyncConnection, kind: GoalEvent, goal_id: str, detail: dict[str, Any]) -> None:
    """Append an event about the goal itself."""
    values = {"kind": kind.value, "goal_id": goal_id, "detail": json.dumps(detail)}
    await connection.execute(_APPEND_EVENT, values)
    notify.note(connection, notify.EVENTS)


async def set_weight(connection: AsyncConnection, goal_id: str, weight: float) -> float:
    """Set the weight of a goal for tasks submitted from now on; the goal need not exist yet. Return the former one."""
    values = {"id": goal_id, "weight": DEFAULT_WEIGHT}
    former_weight = float((await connection.execute(_LOCK_WEIGHT, values)).scalar_one())
    if weight != former_weight:
        await connection.execute(_SET_WEIGHT, {"id": goal_id, "weight": weight})
    return former_weight


async def read_weight(connection: AsyncConnection, goal_id: str) -> float:
    """The weight of a goal; DEFAULT_WEIGHT where none was set."""
    weight = (await connection.execute(_READ_WEIGHT, {"id": goal_id})).scalar()
    return DEFAULT_WEIGHT if weight is None else float(weight)


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete goals that stopped more than `days` ago, with their iterations and compute; return the number of goals.

    Every checkpoint holds all goals, so they may not grow without end. A goal stays while any of its tasks is left,
    which would otherwise look like tasks of a live goal; and it goes as a whole, so that every decision can be replayed
    as long as the goal is there. A goal that was only given a weight is a setting, and stays.
    """
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _goal(row: Any) -> Goal:
    values = {name: row[name] for name in _CONSTRAINTS}
    values["improvement_unit"] = Unit(row["improvement_unit"]) if row["improvement_unit"] else None
    values["rule"] = StoppingRule(row["rule"]) if row["rule"] else None
    rest = {name: row[name] for name in Goal.__dataclass_fields__ if name not in ("constraints", "state", "hold")}
    hold = Hold(row["hold"]) if row["hold"] else None
    return Goal(constraints=Constraints(**values), state=GoalState(row["state"]), hold=hold, **rest)
