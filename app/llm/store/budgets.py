"""Budgets of agent types and API keys for calls of language models, and what is left of them."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.llm.rules.spending import Amount, Budget, BudgetOwner, BudgetPeriod, BudgetScope


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimits:
    """Limits of a budget in US dollars and tokens (None: none), for a period."""

    money_budget: float | None = None
    token_budget: int | None = None
    period: BudgetPeriod = BudgetPeriod.TOTAL


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBudget:
    """A budget with its limits, and what its calls have cost and reserve."""

    owner: BudgetOwner
    limits: BudgetLimits
    budget: Budget


def period_end(period: str, at: str) -> str:
    """Return SQL of the end of the period around a moment, by UTC; null for a total."""
    start = f"date_trunc({period}, {at} AT TIME ZONE 'UTC')"
    return f"""CASE WHEN {period} <> '{BudgetPeriod.TOTAL}'
        THEN ({start} + ('1 ' || {period})::interval) AT TIME ZONE 'UTC' END"""


def is_past(at: str) -> str:
    """Return SQL of whether the amounts of the budget `b` are of another period than that around a moment.

    Of one far ahead, where the clock was set back since: a budget that was used up would be so until that came.
    """
    # Not of the next one: a call may be charged late, by a moment from before the period that has just begun.
    end_of_next = period_end("b.period", period_end("b.period", at))
    return f"coalesce(b.ends_at <= {at} OR b.ends_at > {end_of_next}, false)"


_AT = "clock_timestamp()"
# A budget as it is now, whose period may have ended since the last call. The columns of goals, in the same order.
NOW = f"""
b.scope, b.name, b.money_budget, b.token_budget,
CASE WHEN {is_past(_AT)} THEN {period_end("b.period", _AT)} ELSE b.ends_at END AS ends_at,
CASE WHEN {is_past(_AT)} THEN 0 ELSE b.cost_usd END AS cost_usd,
CASE WHEN {is_past(_AT)} THEN 0 ELSE b.tokens END AS tokens,
CASE WHEN {is_past(_AT)} THEN 0 ELSE b.max_cost_usd END AS max_cost_usd,
CASE WHEN {is_past(_AT)} THEN 0 ELSE b.max_tokens END AS max_tokens,
CASE WHEN {is_past(_AT)} THEN 0 ELSE b.calls END AS ended_calls,
b.cost_usd / nullif(b.calls, 0) AS mean_cost_usd, b.tokens::float8 / nullif(b.calls, 0) AS mean_tokens
"""
# Live permits, one row for each of the owners whose budgets a call uses; a worker's calls are for the key by which it
# registered.
_LIVE = """
FROM llm_permits p CROSS JOIN LATERAL (VALUES ('goal', p.goal_id), ('agent', p.agent_type),
    ('key', CASE WHEN p.worker_id IS NULL THEN p.key_id ELSE p.principal END)) owner (scope, name)
WHERE p.ended_at IS NULL
"""
_RESERVED = "sum(reserved_usd) AS reserved_usd, sum(reserved_tokens) AS reserved_tokens"
_LIMITS_AND_COSTS = (
    "money_budget",
    "token_budget",
    "ends_at",
    "cost_usd",
    "tokens",
    "max_cost_usd",
    "max_tokens",
    "ended_calls",
    "mean_cost_usd",
    "mean_tokens",
)


def with_live_calls(ended: str) -> str:
    """Return SQL of the rows of `budget` with their calls under way, but for permits whose ids `ended` selects.

    Both are grouped together, not joined: no planner knows how many there are of either.
    """
    columns = ", ".join(_LIMITS_AND_COSTS)
    return f"""
    SELECT scope, name, {", ".join(f"max({column}) AS {column}" for column in _LIMITS_AND_COSTS)},
           sum(calls)::bigint AS calls, {_RESERVED}
    FROM (
        SELECT scope, name, {columns}, 0 AS calls, NULL::float8 AS reserved_usd, NULL::bigint AS reserved_tokens,
               true AS is_budget
        FROM budget
        UNION ALL
        SELECT owner.scope, owner.name, {", ".join("NULL" for _ in _LIMITS_AND_COSTS)}, 1, p.reserved_usd,
               p.reserved_tokens, false
        {_LIVE} AND p.id NOT IN ({ended}) AND EXISTS (SELECT FROM budget)
    ) part GROUP BY scope, name HAVING bool_or(is_budget)
    """


_SHARE = f"""
CASE WHEN {is_past("now()")} THEN 0 ELSE
    greatest(b.cost_usd / nullif(b.money_budget, 0), b.tokens::float8 / nullif(b.token_budget, 0)) END
"""

# The live permits are looked at once, however many budgets are read.
_STORED = f"""
WITH budget AS MATERIALIZED (
    SELECT {NOW} FROM llm_budgets b WHERE {{chosen}}
)
SELECT stored.*, b.period FROM ({with_live_calls("SELECT NULL::uuid WHERE false")}) stored
JOIN llm_budgets b USING (scope, name) ORDER BY scope, name
"""
_PAGE = _STORED.format(
    chosen="(b.scope, b.name) > (:after_scope, :after_name) ORDER BY b.scope, b.name LIMIT :page_limit"
)

_READ = text(_STORED.format(chosen="b.scope = :scope AND b.name = :name"))

# A budget that is not there yet has no row to lock.
_LOCK_OWNER = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, hashtext(:scope)))")

_LOCK = text("""
SELECT money_budget, token_budget, period FROM llm_budgets WHERE scope = :scope AND name = :name FOR UPDATE
""")

# What was spent counts on, unless it was of a period of another length. What calls cost is learned anew, so that an
# operator can end the effect of a report that was wrong.
_SET = text(f"""
INSERT INTO llm_budgets AS b (scope, name, money_budget, token_budget, period, ends_at)
VALUES (:scope, :name, :money_budget, :token_budget, :period, {period_end("CAST(:period AS text)", _AT)})
ON CONFLICT (scope, name) DO UPDATE SET
    money_budget = excluded.money_budget, token_budget = excluded.token_budget, period = excluded.period,
    cost_usd = CASE WHEN b.period = excluded.period THEN b.cost_usd ELSE 0 END,
    tokens = CASE WHEN b.period = excluded.period THEN b.tokens ELSE 0 END,
    ends_at = CASE WHEN b.period = excluded.period THEN b.ends_at ELSE excluded.ends_at END, is_low = false,
    max_cost_usd = 0, max_tokens = 0, calls = 0
""")

_REMOVE = text("DELETE FROM llm_budgets WHERE scope = :scope AND name = :name")

_HAS_KEY = text("SELECT EXISTS (SELECT FROM keys WHERE id = :name AND worker_id IS NULL)")

_USED_UP = text(f"""
SELECT {NOW}, 0 AS calls, 0 AS reserved_usd, 0 AS reserved_tokens
FROM unnest(CAST(:scopes AS text[]), CAST(:names AS text[])) owner (scope, name)
JOIN llm_budgets b ON b.scope = owner.scope AND b.name = owner.name
""")

_SHARES = text(f"""
SELECT scope, name, {_SHARE} AS share FROM llm_budgets b WHERE {_SHARE} >= :at_least
ORDER BY share DESC, scope, name LIMIT 1000
""")

# Never waits, and keeps nobody waiting in a circle: a budget that is being charged is told of in the next turn.
HAS_BUDGETS = "EXISTS (SELECT FROM llm_budgets)"
_NOTE_LOW = text(f"""
WITH low AS MATERIALIZED (
    SELECT scope, name FROM llm_budgets b WHERE NOT is_low AND {_SHARE} >= :share FOR UPDATE SKIP LOCKED
)
UPDATE llm_budgets b SET is_low = true FROM low WHERE b.scope = low.scope AND b.name = low.name
RETURNING b.scope, b.name, {_SHARE} AS share, b.ends_at
""")


async def page(connection: AsyncConnection, *, after: str, limit: int) -> Page[StoredBudget]:
    """Budgets in the order of scopes and names, beyond `after`, which is the two with a colon between."""
    scope, _, name = after.partition(":")
    return await pages.read(connection, _PAGE, {"after_scope": scope, "after_name": name}, limit, _stored)


async def read(connection: AsyncConnection, owner: BudgetOwner) -> StoredBudget | None:
    """A budget; None where there is none."""
    row = (await connection.execute(_READ, owner._asdict())).mappings().first()
    return None if row is None else _stored(row)


async def lock(connection: AsyncConnection, owner: BudgetOwner) -> BudgetLimits | None:
    """The limits of a budget, locked; None where there is none, which stays so until this transaction ends."""
    await connection.execute(_LOCK_OWNER, owner._asdict())
    row = (await connection.execute(_LOCK, owner._asdict())).mappings().first()
    return None if row is None else BudgetLimits(**{**row, "period": BudgetPeriod(row["period"])})


async def write(connection: AsyncConnection, owner: BudgetOwner, limits: BudgetLimits) -> None:
    """Set the limits of a budget, which counts from now on if it is new."""
    values = {name: getattr(limits, name) for name in BudgetLimits.__dataclass_fields__}
    await connection.execute(_SET, {**owner._asdict(), **values})


async def remove(connection: AsyncConnection, owner: BudgetOwner) -> None:
    """Delete a budget with what was counted for it."""
    await connection.execute(_REMOVE, owner._asdict())


async def has_key(connection: AsyncConnection, key_id: str) -> bool:
    """Whether there is a key with this id that is no worker's own, as a worker's calls are not for its own key."""
    return bool((await connection.execute(_HAS_KEY, {"name": key_id})).scalar())


async def used_up(connection: AsyncConnection, owners: Collection[BudgetOwner]) -> set[BudgetOwner]:
    """Those of these owners of whose budgets nothing is left now."""
    values = {"scopes": [owner.scope for owner in owners], "names": [owner.name for owner in owners]}
    rows = map(read_budget, (await connection.execute(_USED_UP, values)).mappings())
    return {owner for owner, budget in rows if budget.is_used_up}


async def shares(connection: AsyncConnection, *, at_least: float) -> dict[BudgetOwner, float]:
    """Used shares of budgets in their periods of which `at_least` so much is used, the largest first."""
    rows = await connection.execute(_SHARES, {"at_least": at_least})
    return {BudgetOwner(BudgetScope(row.scope), row.name): row.share for row in rows}


async def note_low(connection: AsyncConnection, share: float) -> list[Any]:
    """Note that an event tells of budgets of which such a share is used, once in a period; return those."""
    return list((await connection.execute(_NOTE_LOW, {"share": share})).mappings())


def read_budget(row: Any) -> tuple[BudgetOwner, Budget]:
    """The owner and the budget of a row, in which moments may be text."""
    ends_at, mean_tokens = row["ends_at"], row["mean_tokens"]
    mean = None if mean_tokens is None else Amount(usd=row["mean_cost_usd"], tokens=ceil(mean_tokens))
    budget = Budget(
        usd=row["money_budget"],
        tokens=row["token_budget"],
        spent=Amount(usd=row["cost_usd"] or 0.0, tokens=row["tokens"] or 0),
        reserved=Amount(usd=row["reserved_usd"] or 0.0, tokens=int(row["reserved_tokens"] or 0)),
        dearest=Amount(usd=row["max_cost_usd"] or 0.0, tokens=row["max_tokens"] or 0),
        mean=mean,
        calls=row["calls"],
        ended_calls=row["ended_calls"] or 0,
        ends_at=datetime.fromisoformat(ends_at) if isinstance(ends_at, str) else ends_at,
    )
    return BudgetOwner(BudgetScope(row["scope"]), row["name"]), budget


def _stored(row: Any) -> StoredBudget:
    owner, budget = read_budget(row)
    limits = BudgetLimits(money_budget=budget.usd, token_budget=budget.tokens, period=BudgetPeriod(row["period"]))
    return StoredBudget(owner=owner, limits=limits, budget=budget)
