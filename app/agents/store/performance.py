"""Results of the agents: sums by minute, and the last results of each; folded from events by a duty.

A completion writes its event and nothing else, so agents that finish thousands of tasks a second contend for no row.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules.performance import MAX_RESULTS, RecentResults, Result
from app.db import folds
from app.db.retention import pruning
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.queue.store import event_rows

_NAME = folds.PERFORMANCE
HAS_EVENTS = folds.has_events(_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedResults:
    """Folded results: their number and the last of them for each agent, and whether more events wait."""

    counts: Mapping[AgentType, int]
    last_results: RecentResults
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResults:
    """The last results of each agent, and the number of results and ratings ever."""

    recent: RecentResults
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceSpan:
    """Sums over the results of one agent from `start` on; `quality` is the sum of the qualities told in this time."""

    start: datetime
    agent_type: AgentType
    results: int
    successes: int
    rated_results: int
    quality: float
    seconds: float


# The mark moves also where only ratings wait: their fold stops at this one's mark.
_HAS_WORK = (
    "EXISTS (SELECT FROM ahead) OR EXISTS (SELECT FROM judgements WHERE transaction >= (SELECT since FROM mark))"
)

# These tell of no result, and are most of all events.
_NO_RESULTS = (TaskEvent.SUBMITTED, TaskEvent.ASSIGNED, TaskEvent.EXECUTING)
_MAY_BE_RESULT = event_rows.of_kinds(event.value for event in TaskEvent if event not in _NO_RESULTS)

# Sums for all events of the batch, but only the last results of each agent are returned: older ones are not kept. An
# event other than a completion has a quality, which is 0, only where the agent itself was at fault.
_FOLD = text(f"""
WITH {folds.batch(_NAME)}, taken AS MATERIALIZED (
    SELECT transaction, seq, at, agent_type, task_id, kind = '{TaskEvent.COMPLETED}' AS is_success,
           seconds::float8 AS seconds, quality
    FROM every_event WHERE transaction >= (SELECT since FROM mark) AND transaction < (SELECT until FROM batch)
      AND (kind = '{TaskEvent.COMPLETED}' OR quality IS NOT NULL) AND {_MAY_BE_RESULT}
), folded AS (
    INSERT INTO agent_minutes AS known (minute, agent_type, results, successes, judged, quality, seconds)
    SELECT date_trunc('minute', at), agent_type, count(*), count(*) FILTER (WHERE is_success),
           count(quality) FILTER (WHERE is_success), coalesce(sum(quality) FILTER (WHERE is_success), 0),
           coalesce(sum(seconds), 0)
    FROM taken GROUP BY 1, 2
    ON CONFLICT (minute, agent_type) DO UPDATE
    SET results = known.results + excluded.results, successes = known.successes + excluded.successes,
        judged = known.judged + excluded.judged, quality = known.quality + excluded.quality,
        seconds = known.seconds + excluded.seconds
), {folds.advance_mark(_NAME, _HAS_WORK)}
SELECT batch.more, last.* FROM batch LEFT JOIN (
    SELECT *, count(*) OVER (PARTITION BY agent_type) AS counted,
           row_number() OVER (PARTITION BY agent_type ORDER BY transaction DESC, seq DESC) AS place
    FROM taken
) last ON last.place <= {MAX_RESULTS}
ORDER BY last.transaction, last.seq
""")

_READ_RESULTS = text("SELECT agent_type, counted, recent FROM agent_results")

_WRITE_RESULTS = text("""
INSERT INTO agent_results AS known (agent_type, counted, recent, gain)
VALUES (:agent, :new_count, CAST(:recent AS jsonb), CAST(:gain AS float8))
ON CONFLICT (agent_type) DO UPDATE
SET counted = known.counted + excluded.counted, recent = excluded.recent, gain = excluded.gain
""")

_QUALITY_GAINS = text("SELECT agent_type, gain FROM agent_results WHERE gain IS NOT NULL")

# The command line counts spans from the same origin.
_SPANS = text("""
SELECT date_bin(CAST(:step AS interval), minute, timestamptz '2000-01-01 00:00:00+00') AS start, agent_type,
       sum(results)::bigint AS results, sum(successes)::bigint AS successes, sum(judged)::bigint AS rated_results,
       sum(quality)::float8 AS quality, sum(seconds)::float8 AS seconds
FROM agent_minutes WHERE minute > now() - CAST(:length AS interval) AND agent_type = ANY (:agents)
GROUP BY 1, 2 ORDER BY 1
""")

prune = pruning("agent_minutes", "minute")


async def fold(connection: AsyncConnection, limit: int = 20_000) -> FoldedResults:
    """Fold about `limit` of the oldest new events into minutes. One at a time: the caller holds a duty's turn."""
    horizon = await folds.horizon(connection, "events", "judgements")
    rows = (await connection.execute(_FOLD, {"until": horizon.until, "limit": limit})).mappings().all()
    # An outer join: without events there is one row, which tells of the batch alone.
    result_rows = [row for row in rows if row["agent_type"] is not None]
    last_results: dict[AgentType, list[Result]] = {}
    for row in result_rows:
        last_results.setdefault(AgentType(row["agent_type"]), []).append(_result_of_event(row))
    counts = {AgentType(row["agent_type"]): row["counted"] for row in result_rows}
    return FoldedResults(counts=counts, last_results=last_results, has_more=rows[0]["more"])


async def read_results(connection: AsyncConnection) -> StoredResults:
    """The last results of all agents that have any."""
    rows = (await connection.execute(_READ_RESULTS)).mappings().all()
    recent = {AgentType(row["agent_type"]): [_result(values) for values in row["recent"]] for row in rows}
    return StoredResults(recent=recent, total=sum(row["counted"] for row in rows))


async def write_results(
    connection: AsyncConnection, agent: AgentType, recent: Sequence[Result], new_count: int, gain: float | None
) -> None:
    """Store the last results of an agent, after `new_count` new ones. One at a time, as `fold`."""
    content = json.dumps([_values(result) for result in recent])
    await connection.execute(
        _WRITE_RESULTS, {"agent": agent.value, "new_count": new_count, "recent": content, "gain": gain}
    )


async def quality_gains(connection: AsyncConnection) -> dict[AgentType, float]:
    """Quality gained by each doubling of a task's time, for the agents where it is known."""
    rows = (await connection.execute(_QUALITY_GAINS)).mappings()
    return {AgentType(row["agent_type"]): row["gain"] for row in rows}


async def spans(
    connection: AsyncConnection, length: timedelta, step: timedelta, agents: Iterable[AgentType] = AgentType
) -> list[PerformanceSpan]:
    """Sums over spans of `step` within `length` until now, oldest first; spans without a result are left out."""
    values = {"length": length, "step": step, "agents": [agent.value for agent in agents]}
    rows = (await connection.execute(_SPANS, values)).mappings()
    return [PerformanceSpan(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]


def _result_of_event(row: Any) -> Result:
    columns = {name: row[name] for name in ("at", "task_id", "seconds", "is_success")}
    return Result(**columns, quality=row["quality"] if row["is_success"] else None)


def _values(result: Result) -> list[Any]:
    task = str(result.task_id) if result.task_id else None
    # A list, not an object: hundreds of results are rewritten every few seconds.
    return [task, result.at.timestamp(), result.seconds, result.is_success, result.quality, result.is_judged]


def _result(values: Sequence[Any]) -> Result:
    # Earlier versions did not say whose word a quality is.
    task, at, seconds, is_success, quality, *judged = values
    return Result(
        at=datetime.fromtimestamp(at, UTC),
        task_id=UUID(task) if task else None,
        seconds=seconds,
        is_success=is_success,
        quality=quality,
        is_judged=any(judged),
    )
