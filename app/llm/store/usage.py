"""Finished calls of language models, summed by minute and later by hour, and the capacity for calls."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import TypeAliasType

from app.db.namespaces import WITHIN
from app.db.retention import BATCH, deletion, pruning
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.histograms import BOUNDS, Durations
from app.llm.rules.outcomes import Outcome
from app.llm.store import budgets
from app.llm.store.gate import DEFAULT_LIMIT, TOTAL_LIMIT

Grouping = TypeAliasType("Grouping", Literal["model", "agent", "goal", "key"])


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCall:
    """A finished call; its permit was held for `held_seconds`. Without a key it is one of a worker, for a task.

    `paying_key` is the key whose budget it uses.
    """

    model: str
    agent_type: AgentType
    goal_id: str | None
    key_id: str | None
    paying_key: str
    outcome: Outcome
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    held_seconds: float
    latency_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """Sums over the calls of one model, agent type, goal or key; name None: calls of no goal, or of workers."""

    name: str | None
    outcomes: dict[Outcome, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    held_seconds: float
    latency: Durations


class RecentUsage(NamedTuple):
    """Mean latency in milliseconds (None: no call was timed); permits in use and allowed."""

    mean_latency_ms: float | None
    in_use: int
    limit: int


class CallCapacity(NamedTuple):
    """Calls at once that the models bear, and the share of its time that a task holds a permit (None: too few)."""

    limit: int
    held_share: float | None


# Hours are kept by the minute until so many later ones are over.
WHOLE_HOURS_AFTER = 2
# With fewer, one long task would decide.
_MIN_TASKS = 10
_COLUMNS = {"model": "model", "agent": "agent_type", "goal": "goal_id", "key": "key_id"}
_BUCKETS = ", ".join(
    f"coalesce(sum(timed) FILTER (WHERE bucket = {number}), 0)::bigint" for number in range(len(BOUNDS) + 1)
)

# What a row counts already is kept.
_MERGE = """
ON CONFLICT (minute, model, agent_type, goal_id, key_id, outcome) DO UPDATE SET
    calls = known.calls + excluded.calls,
    prompt_tokens = known.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = known.completion_tokens + excluded.completion_tokens,
    cost_usd = known.cost_usd + excluded.cost_usd,
    held_seconds = known.held_seconds + excluded.held_seconds,
    task_seconds = known.task_seconds + excluded.task_seconds,
    timed = known.timed + excluded.timed,
    seconds = known.seconds + excluded.seconds,
    longest = greatest(known.longest, excluded.longest),
    histogram = ARRAY(
        SELECT ours + theirs
        FROM unnest(known.histogram, excluded.histogram) WITH ORDINALITY AS part (ours, theirs, place) ORDER BY place
    )
"""
_SUMMED = """minute, model, agent_type, goal_id, key_id, outcome, calls, prompt_tokens, completion_tokens, cost_usd,
    held_seconds, task_seconds, timed, seconds, longest, histogram"""
# Calls that failed at once say nothing of what calls cost.
_COSTLY = "count(*) FILTER (WHERE cost_usd > 0 OR prompt_tokens + completion_tokens > 0)"
_AT = "CAST(:at AS timestamptz)"
# Calls of a batch that belong to the same row are summed first: ON CONFLICT DO UPDATE may touch a row only once.
_ADD = text(f"""
WITH called AS MATERIALIZED (
    SELECT *, CASE WHEN latency_seconds IS NULL THEN 0 ELSE 1 END AS timed,
           width_bucket(latency_seconds, CAST(:bounds AS float8[])) AS bucket
    FROM jsonb_to_recordset(CAST(:calls AS jsonb)) AS c (
        model text, agent_type text, goal_id text, key_id text, paying_key text, outcome text, prompt_tokens bigint,
        completion_tokens bigint, cost_usd float8, held_seconds float8, task_seconds float8, latency_seconds float8)
), spent AS (
    INSERT INTO llm_spending AS old (goal_id, cost_usd, tokens, max_cost_usd, max_tokens, calls)
    SELECT goal_id, sum(cost_usd), sum(prompt_tokens + completion_tokens), max(cost_usd),
           max(prompt_tokens + completion_tokens), {_COSTLY}
    FROM called WHERE goal_id <> '' GROUP BY goal_id ORDER BY goal_id
    ON CONFLICT (goal_id) DO UPDATE SET cost_usd = old.cost_usd + excluded.cost_usd,
        tokens = old.tokens + excluded.tokens, max_cost_usd = greatest(old.max_cost_usd, excluded.max_cost_usd),
        max_tokens = greatest(old.max_tokens, excluded.max_tokens), calls = old.calls + excluded.calls,
        updated_at = now()
), owed AS MATERIALIZED (
    SELECT owner.scope, owner.name, sum(cost_usd) AS cost_usd, sum(prompt_tokens + completion_tokens) AS tokens,
           max(cost_usd) AS max_cost_usd, max(prompt_tokens + completion_tokens) AS max_tokens, {_COSTLY} AS calls
    FROM called CROSS JOIN LATERAL (VALUES ('agent', agent_type), ('key', paying_key)) owner (scope, name)
    GROUP BY owner.scope, owner.name
), budgeted AS MATERIALIZED (
    SELECT owed.* FROM owed JOIN llm_budgets b ON b.scope = owed.scope AND b.name = owed.name
    ORDER BY owed.scope, owed.name FOR UPDATE OF b
), charged AS (
    UPDATE llm_budgets b SET
        cost_usd = c.cost_usd + CASE WHEN {budgets.is_past(_AT)} THEN 0 ELSE b.cost_usd END,
        tokens = c.tokens + CASE WHEN {budgets.is_past(_AT)} THEN 0 ELSE b.tokens END,
        is_low = b.is_low AND NOT {budgets.is_past(_AT)},
        ends_at = CASE WHEN {budgets.is_past(_AT)} THEN {budgets.period_end("b.period", _AT)} ELSE b.ends_at END,
        max_cost_usd = greatest(CASE WHEN {budgets.is_past(_AT)} THEN 0 ELSE b.max_cost_usd END, c.max_cost_usd),
        max_tokens = greatest(CASE WHEN {budgets.is_past(_AT)} THEN 0 ELSE b.max_tokens END, c.max_tokens),
        calls = c.calls + CASE WHEN {budgets.is_past(_AT)} THEN 0 ELSE b.calls END
    FROM budgeted c WHERE b.scope = c.scope AND b.name = c.name
)
INSERT INTO llm_minutes AS known ({_SUMMED})
SELECT date_trunc('minute', CAST(:at AS timestamptz)), model, agent_type, goal_id, key_id, outcome, count(*),
       sum(prompt_tokens), sum(completion_tokens), sum(cost_usd), sum(held_seconds), sum(task_seconds),
       sum(timed), coalesce(sum(latency_seconds), 0), coalesce(max(latency_seconds), 0), ARRAY[{_BUCKETS}]
FROM called GROUP BY model, agent_type, goal_id, key_id, outcome ORDER BY model, agent_type, goal_id, key_id, outcome
{_MERGE}""")

_PLACES = range(1, len(BOUNDS) + 2)
_FIGURES = """sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
       sum(cost_usd) AS cost_usd, sum(held_seconds) AS held_seconds, sum(timed)::bigint AS timed,
       sum(seconds) AS seconds, max(longest) AS longest"""

# Percentiles of parts cannot be combined, so histograms are added bucket by bucket: in one walk over the rows.
_SUMS = f"""
WITH part AS MATERIALIZED (
    SELECT {{key}} AS name, outcome, sum(calls)::bigint AS calls, {_FIGURES},
           {", ".join(f"coalesce(sum(histogram[{place}]), 0)::bigint AS bucket_{place}" for place in _PLACES)}
    FROM llm_minutes WHERE minute > CAST(:since AS timestamptz) - interval '1 minute' AND {{within}}
    GROUP BY name, outcome
)
SELECT name, jsonb_object_agg(outcome, calls) AS outcomes, {_FIGURES},
       ARRAY[{", ".join(f"sum(bucket_{place})::bigint" for place in _PLACES)}] AS buckets
FROM part GROUP BY name ORDER BY sum(calls) DESC, name LIMIT :limit
"""

_SUMS_BY = {grouping: text(_SUMS.format(key=column, within=WITHIN)) for grouping, column in _COLUMNS.items()}

_RECENT = text(f"""
SELECT sum(seconds) / nullif(sum(timed), 0) * 1000 AS mean_latency_ms,
       (SELECT count(*) FROM llm_permits WHERE ended_at IS NULL AND expires_at > now()) AS in_use,
       {TOTAL_LIMIT} AS "limit"
FROM llm_minutes WHERE minute > now() - CAST(:window AS interval)
""")

# The limit of each model that was called is its adaptive one, within what people allow; that of all together is in the
# configuration. Permits held outside of tasks are left out: workers are to be sized by what tasks hold.
_CALL_CAPACITY = text(f"""
WITH total AS MATERIALIZED (
    SELECT {TOTAL_LIMIT} AS calls
), held AS MATERIALIZED (
    SELECT model, sum(task_seconds) AS seconds FROM llm_minutes
    WHERE minute > now() - CAST(:window AS interval) GROUP BY model
), ran AS MATERIALIZED (
    SELECT sum(tasks) AS tasks, sum(seconds) AS seconds FROM queue_minutes
    WHERE minute > now() - CAST(:window AS interval)
      AND kind IN ('{TaskEvent.COMPLETED.value}', '{TaskEvent.FAILED.value}')
), borne AS MATERIALIZED (
    SELECT sum(greatest(1, least(calls, coalesce(max_concurrency, calls), floor(concurrency)))) AS calls
    FROM held JOIN llm_models USING (model) CROSS JOIN total WHERE held.seconds > 0
)
SELECT least(total.calls, coalesce(borne.calls, total.calls))::int AS "limit",
       CASE WHEN ran.tasks >= :min_tasks AND ran.seconds > 0
            THEN (SELECT sum(seconds) FROM held) / ran.seconds END AS held_share
FROM total CROSS JOIN borne CROSS JOIN ran
""")

# The minutes of an hour that is over for long become the row of its first one. Of two days only, as it looks at all of
# their rows; what is left, after days without loops, is read as it is.
_FOLD = text(f"""
WITH gone AS (
    DELETE FROM llm_minutes WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM llm_minutes
        WHERE minute > now() - interval '2 days'
          AND minute < date_trunc('hour', now(), 'UTC') - make_interval(hours => {WHOLE_HOURS_AFTER})
          AND minute > date_trunc('hour', minute, 'UTC')
        ORDER BY minute LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING *, date_trunc('hour', minute, 'UTC') AS hour
), folded AS (
    INSERT INTO llm_minutes AS known ({_SUMMED})
    SELECT hour, model, agent_type, goal_id, key_id, outcome, sum(calls), sum(prompt_tokens), sum(completion_tokens),
           sum(cost_usd), sum(held_seconds), sum(task_seconds), sum(timed), sum(seconds), max(longest),
           ARRAY[{", ".join(f"coalesce(sum(histogram[{place}]), 0)::bigint" for place in _PLACES)}]
    FROM gone GROUP BY hour, model, agent_type, goal_id, key_id, outcome
    ORDER BY hour, model, agent_type, goal_id, key_id, outcome
    {_MERGE}
)
SELECT count(*) FROM gone
""")

prune = pruning("llm_minutes", "minute")
# A client that invents a goal for each run would leave rows for ever.
_PRUNE_SPENDING = deletion(
    "llm_spending",
    "updated_at < now() - make_interval(days => :days)"
    " AND NOT EXISTS (SELECT FROM goals g WHERE g.id = llm_spending.goal_id AND g.state IS NOT NULL)",
    "goal_id",
)


async def add(connection: AsyncConnection, calls: Collection[FinishedCall], at: datetime) -> None:
    """Add calls that ended at this moment, with their models locked."""
    rows = [
        {
            **asdict(call),
            "goal_id": call.goal_id or "",
            "key_id": call.key_id or "",
            "task_seconds": call.held_seconds if call.key_id is None else 0.0,
        }
        for call in calls
    ]
    await connection.execute(_ADD, {"calls": json.dumps(rows), "at": at, "bounds": list(BOUNDS)})


async def fold(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Fold minutes of hours that are over for long into one row each, at most `limit`; return the number folded."""
    return int((await connection.execute(_FOLD, {"limit": limit})).scalar_one())


async def prune_spending(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete what was spent long ago for goals that were never created, at most `limit`; return the number deleted."""
    return (await connection.execute(_PRUNE_SPENDING, {"days": days, "limit": limit})).rowcount


async def sums(
    connection: AsyncConnection, grouping: Grouping, since: datetime, limit: int, namespace: str | None = None
) -> list[UsageSum]:
    """Sums over the minutes that end after `since`, by model, agent type, goal or key, most calls first.

    Only of one namespace if one is given.
    """
    values = {"since": since, "limit": limit, "namespace": namespace}
    rows = (await connection.execute(_SUMS_BY[grouping], values)).mappings()
    return [_sum(row) for row in rows]


async def recent(connection: AsyncConnection, window: timedelta) -> RecentUsage:
    """Calls in the minutes that began within the window, and permits in use now."""
    values = {"window": window, **DEFAULT_LIMIT}
    return RecentUsage(**(await connection.execute(_RECENT, values)).mappings().one())


async def call_capacity(connection: AsyncConnection, window: timedelta) -> CallCapacity:
    """Capacity for calls, measured over the minutes that began within the window."""
    values = {"window": window, **DEFAULT_LIMIT, "min_tasks": _MIN_TASKS}
    return CallCapacity(**(await connection.execute(_CALL_CAPACITY, values)).mappings().one())


def _sum(row: Any) -> UsageSum:
    return UsageSum(
        name=row["name"] or None,
        outcomes={Outcome(name): count for name, count in row["outcomes"].items()},
        latency=Durations(count=row["timed"], seconds=row["seconds"], longest=row["longest"], histogram=row["buckets"]),
        **{name: row[name] for name in ("prompt_tokens", "completion_tokens", "cost_usd", "held_seconds")},
    )
