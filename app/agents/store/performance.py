"""What agents have achieved: minute by minute, and their last results; folded from events by a duty.

A completion writes its event and nothing else, so agents that finish thousands of tasks a second share no row.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.rules.performance import REMEMBERED, Recent, Result
from app.db import folds
from app.db.retention import BATCH, deletion
from app.kernel.agents import AgentType

_NAME = "performance"

# Judgements wait for the mark as well.
_HAS_NEWS = (
    "EXISTS (SELECT FROM ahead) OR EXISTS (SELECT FROM judgements WHERE transaction >= (SELECT since FROM mark))"
)

# Only the last results of each agent are handed out; the rest is in the sums.
_FOLD = text(f"""
WITH {folds.batch(_NAME)}, taken AS MATERIALIZED (
    SELECT transaction, seq, at, agent_type, task_id, kind = 'task.completed' AS succeeded,
           seconds::float8 AS seconds, quality
    FROM events WHERE transaction >= (SELECT since FROM mark) AND transaction < (SELECT until FROM batch)
      AND (kind = 'task.completed' OR quality IS NOT NULL)
), folded AS (
    INSERT INTO agent_minutes AS known (minute, agent_type, results, successes, judged, quality, seconds)
    SELECT date_trunc('minute', at), agent_type, count(*), count(*) FILTER (WHERE succeeded),
           count(quality) FILTER (WHERE succeeded), coalesce(sum(quality) FILTER (WHERE succeeded), 0),
           coalesce(sum(seconds), 0)
    FROM taken GROUP BY 1, 2
    ON CONFLICT (minute, agent_type) DO UPDATE
    SET results = known.results + excluded.results, successes = known.successes + excluded.successes,
        judged = known.judged + excluded.judged, quality = known.quality + excluded.quality,
        seconds = known.seconds + excluded.seconds
), {folds.marked(_NAME, _HAS_NEWS)}
SELECT batch.more, last.* FROM batch LEFT JOIN (
    SELECT *, count(*) OVER (PARTITION BY agent_type) AS counted,
           row_number() OVER (PARTITION BY agent_type ORDER BY transaction DESC, seq DESC) AS place
    FROM taken
) last ON last.place <= {REMEMBERED}
ORDER BY last.transaction, last.seq
""")

_RECENT = text("SELECT agent_type, counted, recent FROM agent_results")

_KEEP = text("""
INSERT INTO agent_results AS known (agent_type, counted, recent, gain)
VALUES (:agent, :news, CAST(:recent AS jsonb), CAST(:gain AS float8))
ON CONFLICT (agent_type) DO UPDATE
SET counted = known.counted + excluded.counted, recent = excluded.recent, gain = excluded.gain
""")

_GAINS = text("SELECT agent_type, gain FROM agent_results WHERE gain IS NOT NULL")

_BY_LENGTH = text("""
SELECT date_bin(CAST(:step AS interval), minute, timestamptz '2000-01-01 00:00:00+00') AS start, agent_type,
       sum(results)::bigint AS results, sum(successes)::bigint AS successes, sum(judged)::bigint AS judged,
       sum(quality)::float8 AS quality, sum(seconds)::float8 AS seconds
FROM agent_minutes WHERE minute > now() - CAST(:length AS interval) AND agent_type = ANY (:agents)
GROUP BY 1, 2 ORDER BY 1
""")

_PRUNE = deletion("agent_minutes", "minute < now() - make_interval(days => :days)", "minute")


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a fold has found: how many results of each agent, the last of them, and whether there are more to fold."""

    counted: Mapping[AgentType, int]
    last: Recent
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The last results of each agent, and how many results and judgements there were ever."""

    recent: Recent
    counted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Sums over the results of one agent from `start` on; the quality is the sum of those that were judged."""

    start: datetime
    agent_type: AgentType
    results: int
    successes: int
    judged: int
    quality: float
    seconds: float


async def fold(connection: AsyncConnection, limit: int = 20_000) -> News:
    """Fold about so many of the oldest new events into minutes. One at a time: the caller holds a duty's turn."""
    rows = (await connection.execute(_FOLD, {"limit": limit})).mappings().all()
    found = [row for row in rows if row["agent_type"] is not None]
    last: dict[AgentType, list[Result]] = {}
    for row in found:
        last.setdefault(AgentType(row["agent_type"]), []).append(_told(row))
    counted = {AgentType(row["agent_type"]): row["counted"] for row in found}
    return News(counted=counted, last=last, more=rows[0]["more"])


async def memory(connection: AsyncConnection) -> Memory:
    """All that is remembered; of agents that have done nothing, nothing."""
    rows = (await connection.execute(_RECENT)).mappings().all()
    recent = {AgentType(row["agent_type"]): [_read(part) for part in row["recent"]] for row in rows}
    return Memory(recent=recent, counted=sum(row["counted"] for row in rows))


async def keep(
    connection: AsyncConnection, agent: AgentType, recent: Sequence[Result], news: int, gain: float | None
) -> None:
    """Remember these as the last results of an agent, after so many new ones. One at a time, as `fold`."""
    content = json.dumps([_written(result) for result in recent])
    await connection.execute(_KEEP, {"agent": agent.value, "news": news, "recent": content, "gain": gain})


async def gains(connection: AsyncConnection) -> dict[AgentType, float]:
    """How much quality each doubling of a task's time brings, for the agents of which that is known."""
    rows = (await connection.execute(_GAINS)).mappings()
    return {AgentType(row["agent_type"]): row["gain"] for row in rows}


async def spans(
    connection: AsyncConnection, length: timedelta, step: timedelta, agents: Iterable[AgentType] = AgentType
) -> list[Span]:
    """Sums over spans of `step` within `length` before now, oldest first; spans without a result are left out."""
    values = {"length": length, "step": step, "agents": [agent.value for agent in agents]}
    rows = (await connection.execute(_BY_LENGTH, values)).mappings()
    return [Span(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget what was long ago; returns how many rows."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _told(row: Any) -> Result:
    known = {name: row[name] for name in ("at", "task_id", "seconds", "succeeded")}
    return Result(**known, quality=row["quality"] if row["succeeded"] else None)


def _written(result: Result) -> list[Any]:
    task = str(result.task_id) if result.task_id else None
    return [task, result.at.timestamp(), result.seconds, result.succeeded, result.quality]


def _read(part: Sequence[Any]) -> Result:
    task, at, seconds, succeeded, quality = part
    return Result(
        at=datetime.fromtimestamp(at, UTC),
        task_id=UUID(task) if task else None,
        seconds=seconds,
        succeeded=succeeded,
        quality=quality,
    )
