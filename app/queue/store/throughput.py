"""Throughput: events counted by minute, lane and kind, so that reading it costs nothing per task.

A duty folds the events since its mark into the minutes. The events of an assignment or an end carry the seconds of the
wait or the run, which go into a histogram.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import folds
from app.db.folds import FoldedBatch
from app.db.retention import pruning
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.histograms import BOUNDS, Durations
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import MinuteCount

_NAME = folds.MINUTES
HAS_EVENTS = folds.has_events(_NAME)
_MAX_UNFOLDED = 20_000
_BUCKETS = ", ".join(f"coalesce(sum(n) FILTER (WHERE bucket = {place}), 0)::bigint" for place in range(len(BOUNDS) + 1))

_FOLD = text(f"""
WITH {folds.batch(_NAME)}, event AS MATERIALIZED (
    SELECT date_trunc('minute', at) AS minute, agent_type, priority, kind, seconds::float8 AS seconds,
           width_bucket(seconds::float8, CAST(:bounds AS float8[])) AS bucket
    FROM every_event WHERE transaction >= (SELECT since FROM mark) AND transaction < (SELECT until FROM batch)
), bucketed AS (
    SELECT minute, agent_type, priority, kind, bucket,
           count(*) AS n, coalesce(sum(seconds), 0) AS seconds, coalesce(max(seconds), 0) AS longest
    FROM event WHERE priority IS NOT NULL GROUP BY minute, agent_type, priority, kind, bucket
), folded AS (
    INSERT INTO queue_minutes AS stored (minute, agent_type, priority, kind, tasks, seconds, longest, histogram)
    SELECT minute, agent_type, priority, kind, sum(n), sum(seconds), max(longest),
           CASE WHEN count(bucket) = 0 THEN '{{}}'::bigint[] ELSE ARRAY[{_BUCKETS}] END
    FROM bucketed GROUP BY minute, agent_type, priority, kind
    ON CONFLICT (minute, agent_type, priority, kind) DO UPDATE
    SET tasks = stored.tasks + excluded.tasks, seconds = stored.seconds + excluded.seconds,
        longest = greatest(stored.longest, excluded.longest),
        histogram = ARRAY(
            SELECT coalesce(old_count, 0) + coalesce(new_count, 0)
            FROM unnest(stored.histogram, excluded.histogram) WITH ORDINALITY AS part (old_count, new_count, place)
            ORDER BY place
        )
), summed AS (
    INSERT INTO queue_totals AS stored (agent_type, priority, kind, tasks, seconds)
    SELECT agent_type, priority, kind, sum(n), sum(seconds) FROM bucketed GROUP BY agent_type, priority, kind
    ON CONFLICT (agent_type, priority, kind) DO UPDATE
    SET tasks = stored.tasks + excluded.tasks, seconds = stored.seconds + excluded.seconds
), {folds.advance_mark(_NAME, "EXISTS (SELECT FROM event)")}
SELECT (SELECT count(*) FROM event) AS events, more AS has_more FROM batch
""")

# Minutes to come are of before the clock was set back.
_RECENT = text("""
SELECT minute AS start, agent_type, priority, kind, tasks, seconds, longest, histogram FROM queue_minutes
WHERE minute >= date_trunc('minute', now() - CAST(:length AS interval)) AND minute <= now()
""")

_TOTAL = text("""
SELECT coalesce(sum(tasks), 0)::bigint FROM queue_minutes
WHERE minute > now() - CAST(:length AS interval) AND kind = ANY (CAST(:kinds AS text[]))
""")

# What enters the queue and what leaves it; of a cancelled task nobody knows any more whether it ran, and most wait.
_ENTERING = (TaskEvent.SUBMITTED, TaskEvent.RETRYING, TaskEvent.RELEASED, TaskEvent.EXPIRED, TaskEvent.REQUEUED)
_LEAVING = (TaskEvent.ASSIGNED, TaskEvent.DISPLACED, TaskEvent.CANCELLED)
_GROWTH = text("""
SELECT minute, agent_type,
       sum(CASE WHEN kind = ANY (CAST(:entering AS text[])) THEN tasks ELSE -tasks END)::bigint AS growth
FROM queue_minutes
WHERE minute >= :since AND kind = ANY (CAST(:entering AS text[]) || CAST(:leaving AS text[]))
GROUP BY minute, agent_type
""")

_FINISHED_PER_SECOND = text(f"""
WITH span AS MATERIALIZED (SELECT date_trunc('minute', now()) - interval '1 minute' AS opens)
SELECT coalesce(sum(tasks) / extract(epoch FROM now() - (SELECT opens FROM span)), 0)::float8 FROM queue_minutes
WHERE minute >= (SELECT opens FROM span) AND minute <= now()
  AND kind IN ('{TaskEvent.COMPLETED.value}', '{TaskEvent.FAILED.value}')
""")

# Those beyond the mark are counted one by one, but no more of them than a fold takes: they are few while the loops run.
_ALL_TOTALS = text(f"""
SELECT kind, sum(tasks)::bigint AS tasks FROM (
    SELECT kind, tasks FROM queue_totals
    UNION ALL
    SELECT kind, 1 FROM (
        SELECT kind, priority FROM every_event
        WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
        ORDER BY transaction, row_seq LIMIT {_MAX_UNFOLDED}
    ) recent WHERE priority IS NOT NULL
) counted GROUP BY kind
""")

prune = pruning("queue_minutes", "minute")


async def fold(connection: AsyncConnection, limit: int = 20_000) -> FoldedBatch:
    """Fold about `limit` of the oldest new events. The caller holds a duty's turn: two at once would count twice."""
    horizon = await folds.horizon(connection, "events")
    values = {"until": horizon.until, "limit": limit, "bounds": list(BOUNDS)}
    row = (await connection.execute(_FOLD, values)).mappings().one()
    return FoldedBatch(events=row["events"], has_more=row["has_more"])


async def recent_minutes(connection: AsyncConnection, length: timedelta) -> list[MinuteCount]:
    """Return the minutes that reach into the last `length`."""
    rows = (await connection.execute(_RECENT, {"length": length})).mappings()
    return [
        MinuteCount(
            start=row["start"],
            lane=Lane(agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"])),
            kind=row["kind"],
            durations=Durations(
                count=row["tasks"],
                seconds=row["seconds"],
                longest=row["longest"],
                histogram=row["histogram"],
            ),
        )
        for row in rows
    ]


async def totals(connection: AsyncConnection) -> dict[str, int]:
    """Number of events of each kind about tasks since ever, also of those that are not folded yet."""
    return {row.kind: row.tasks for row in (await connection.execute(_ALL_TOTALS)).all()}


async def count_events(connection: AsyncConnection, kinds: Collection[str], length: timedelta) -> int:
    """Number of events of these kinds in the minutes that began within the last `length`."""
    return int((await connection.execute(_TOTAL, {"kinds": list(kinds), "length": length})).scalar_one())


async def finished_per_second(connection: AsyncConnection) -> float:
    """Tasks per second that completed or failed, since the beginning of the last whole minute."""
    return float((await connection.execute(_FINISHED_PER_SECOND)).scalar_one())


async def growth(connection: AsyncConnection, since: datetime) -> dict[AgentType, dict[datetime, int]]:
    """By how many tasks the queue of each agent type has grown in each minute from `since` on, by their events."""
    values = {"entering": [kind.value for kind in _ENTERING], "leaving": [kind.value for kind in _LEAVING]}
    by_agent: dict[AgentType, dict[datetime, int]] = {}
    for row in (await connection.execute(_GROWTH, {**values, "since": since})).mappings():
        by_agent.setdefault(AgentType(row["agent_type"]), {})[row["minute"]] = row["growth"]
    return by_agent
