"""Statements on utilisation by the minute; a sample is added to its minute at once."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import pruning
from app.db.turns import turn
from app.health.rules.utilisation import POOL, WORKERS, Measure, Sample, Span, Step, single_sample
from app.queue.store import lease_ledger
from app.workers.store.tables import LIVE

# Two processes of one host both measure it; one sample in so many seconds is enough. The rows come in the order of the
# key, so that two of them never wait for each other in a circle.
_ADD = text("""
INSERT INTO utilisation AS known (minute, subject, measure, samples, total, low, high, last, last_at)
SELECT date_trunc('minute', now()), subject, measure, 1, mean, low, high, mean, now()
FROM unnest(CAST(:subject AS text[]), CAST(:measure AS text[]), CAST(:low AS float8[]), CAST(:mean AS float8[]),
            CAST(:high AS float8[])) AS new (subject, measure, low, mean, high)
ORDER BY subject, measure
ON CONFLICT (minute, subject, measure) DO UPDATE
SET samples = known.samples + 1, total = known.total + excluded.total, low = least(known.low, excluded.low),
    high = greatest(known.high, excluded.high), last = excluded.last, last_at = excluded.last_at
WHERE known.last_at <= now() - make_interval(secs => :apart)
""")

# Last heartbeat of each worker, as a share of what it has; workers that did not report are left out, not counted as 0.
# Figures near 0 are cut off: one absurd quotient would overflow and make the statement fail for all workers.
_WORKERS = text(f"""
SELECT count(cpu) AS cpus, min(cpu) AS cpu_low, avg(cpu) AS cpu_mean, max(cpu) AS cpu_high, sum(cores) AS cores,
       count(memory) AS memories, min(memory) AS memory_low, avg(memory) AS memory_mean, max(memory) AS memory_high,
       sum(gigabytes) AS gigabytes
FROM (
    SELECT percent / cpu_cores AS cpu, percent / 100 AS cores, 100 * mib / 1024 / memory_gb AS memory,
           mib / 1024 AS gigabytes
    FROM (
        SELECT CASE WHEN cpu_percent < 0.001 THEN 0 ELSE cpu_percent END AS percent,
               CASE WHEN memory_mb < 0.001 THEN 0 ELSE memory_mb END AS mib,
               CASE WHEN cpu_cores >= 0.001 THEN cpu_cores END AS cpu_cores,
               CASE WHEN memory_gb >= 0.001 THEN memory_gb END AS memory_gb
        FROM workers WHERE {LIVE} AND last_seen_at > now() - make_interval(secs => :fresh)
    ) reported
) live
""")

# Only ready workers: those that start or drain could not be leased to, however busy the others are.
_BUSY = text(f"""
SELECT count(*) AS workers, count(held.id) AS busy FROM workers w {lease_ledger.last_and_held("w.id")}
WHERE w.state = 'ready'
""")

_COLUMNS = "subject, measure, samples, total, low, high, last, last_at"
# Minutes to come are of before the clock was set back.
_RECENT = text(f"""
SELECT minute AS start, {_COLUMNS} FROM utilisation
WHERE minute >= date_trunc('minute', now() - CAST(:length AS interval)) AND minute <= now()
""")

# The subject stands there only where one is chosen, as an index then leads to it. In order are the steps and not the
# minutes, of which there may be a million: a plan that expects few of them would sort them all.
_STEPS = """
SELECT * FROM (
    SELECT date_bin(CAST(:step AS interval), minute, timestamptz 'epoch') AS start, subject, measure,
           sum(samples)::bigint AS samples, sum(total) AS total, min(low) AS low, max(high) AS high
    FROM utilisation
    WHERE minute >= :since AND minute < :until {chosen}
    GROUP BY 1, 2, 3
) step ORDER BY subject, measure, start LIMIT CAST(:limit AS bigint)
"""
_STEPS_OF_ALL, _STEPS_OF_ONE = text(_STEPS.format(chosen="")), text(_STEPS.format(chosen="AND subject = :subject"))

prune = pruning("utilisation", "minute")
_MADE_AT_ONCE = 1000


async def add_samples(connection: AsyncConnection, samples: Sequence[Sample], *, apart_seconds: float) -> int:
    """Add samples to this minute, except those too soon after the last; return the number added."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in Sample.__dataclass_fields__}
    return (await connection.execute(_ADD, {**columns, "apart": apart_seconds})).rowcount


async def sample_workers(connection: AsyncConnection, *, fresh_seconds: float) -> list[Sample]:
    """Samples over all workers seen lately; no sample of a measure that none of them has reported."""
    row = (await connection.execute(_WORKERS, {"fresh": fresh_seconds})).mappings().one()
    samples = []
    if row["cpus"]:
        samples.append(_spread(row, Measure.CPU))
        samples.append(single_sample(WORKERS, Measure.CORES, row["cores"]))
    if row["memories"]:
        samples.append(_spread(row, Measure.MEMORY))
        samples.append(single_sample(WORKERS, Measure.GIGABYTES, row["gigabytes"]))
    return samples


async def sample_pool(connection: AsyncConnection) -> Sample | None:
    """Percent of the ready workers that hold a task; None without any ready worker."""
    row = (await connection.execute(_BUSY)).mappings().one()
    if not row["workers"]:
        return None
    percent = 100.0 * row["busy"] / row["workers"]
    return single_sample(POOL, Measure.BUSY, percent)


async def recent_minutes(connection: AsyncConnection, length: timedelta) -> list[Span]:
    """The minutes that reach into the last `length` of time."""
    return [_span(row) for row in (await connection.execute(_RECENT, {"length": length})).mappings()]


async def read_steps(
    connection: AsyncConnection,
    *,
    since: datetime,
    until: datetime,
    step: timedelta,
    subject: str | None = None,
    limit: int | None = None,
) -> list[Step]:
    """Minutes from `since` on and before `until`, aggregated by steps that are counted from 1970; `limit` of them."""
    values = {"since": since, "until": until, "step": step, "limit": limit}
    statement = _STEPS_OF_ALL if subject is None else _STEPS_OF_ONE
    values |= {} if subject is None else {"subject": subject}
    steps = []
    for place, row in enumerate((await connection.execute(statement, values)).mappings().all()):
        if place % _MADE_AT_ONCE == _MADE_AT_ONCE - 1:
            await turn(connection)
        steps.append(Step(**{**row, "measure": Measure(row["measure"])}))
    return steps


def _spread(row: Any, measure: Measure) -> Sample:
    low, mean, high = (float(row[f"{measure.value}_{part}"]) for part in ("low", "mean", "high"))
    return Sample(subject=WORKERS, measure=measure, low=low, mean=mean, high=high)


def _span(row: Any) -> Span:
    return Span(**{**row, "measure": Measure(row["measure"])})
