"""Housekeeping: make partitions ahead, drop old ones, and prune the other tables.

Each step works by itself, in transactions that last milliseconds: while one that has written anything is open, nobody
can read the events that follow, and nobody should wait for a row or a table that is only being tidied.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import keys
from app.agents.store import performance, ratings
from app.db import duties, retention
from app.db.database import Database
from app.db.retention import BATCH
from app.goals.store import compute, goals
from app.health.rules.series import SeriesPolicy
from app.health.store import alerts, refusals, series, utilisation, webhooks
from app.kernel.errors import DatabaseUnavailable
from app.llm.store import usage
from app.memory.service.context import KEPT_VERSIONS
from app.memory.store import context
from app.queue.store import attempts, degradation, duplicates, lease_ledger, logs, throughput
from app.workers.store import hosts, pool, workers

DUTY = "housekeeping"
EVERY_SECONDS = 600.0
# Of one table in one round: two million rows. The rest waits for the next round, so that every table gets its turn.
MAX_BATCHES = 1000
# In one round, each with up to a thousand iterations: still thousands a day.
_GOALS = 50
# Between two batches, so that others get at the disk.
_PAUSE_SECONDS = 0.01

log = logging.getLogger(__name__)

DeleteBatch = Callable[[AsyncConnection], Awaitable[int]]
Step = Callable[[Database], Awaitable[object]]


async def run_when_due(database: Database, *, history_days: int, events_days: int) -> dict[str, Any] | None:
    """Run one round unless another process has begun one lately; return its result, or None where it is not due.

    A round in which a step failed counts as none: when that goes on, the health report says that this duty is late.
    """
    # The turn is claimed in a transaction of its own, before the work: the work takes many. Should two rounds meet,
    # because one takes long, neither waits for the other, as each deletion skips locked rows.
    async with database.transaction() as connection:
        await duties.ensure(connection, DUTY)
        turn = await duties.claim(connection, DUTY, 0.85 * EVERY_SECONDS)
        if turn is None:
            return None
        await duties.record(connection, DUTY, {"begun": True}, held_back=False, every_seconds=EVERY_SECONDS)
    result = await run(database, history_days=history_days, events_days=events_days)
    async with database.transaction() as connection:
        await duties.conclude(connection, turn, result, counts=not result["failed"])
    return result


async def run(database: Database, *, history_days: int, events_days: int) -> dict[str, Any]:
    """Run all steps, whether or not others fail; return the result of each, and the names of those that `failed`."""
    results: dict[str, Any] = {}
    failed_steps = []
    for name, step in _steps(history_days, events_days).items():
        try:
            results[name] = await step(database)
        except DatabaseUnavailable as error:
            log.warning("housekeeping: %s did not come about, the next round tries again: %s", name, error)
            failed_steps.append(name)
        except Exception:
            log.exception("housekeeping: %s failed, the next round tries again", name)
            failed_steps.append(name)
    return {**results, "failed": failed_steps}


def _steps(history_days: int, events_days: int) -> Mapping[str, Step]:
    days: Mapping[str, int] = {"task_history": history_days, "events": events_days}
    steps: dict[str, Step] = {}
    for table in retention.PARTITIONED:
        steps[f"{table} made"] = partial(_make, table=table)
        steps[f"{table} dropped"] = partial(_drop, table=table, days=days[table])
        prune_default = partial(retention.prune_default, table=table, keep_days=days[table])
        steps[f"{table} default"] = partial(_delete_all, delete_batch=prune_default)
    return (
        steps
        | {name: partial(_delete_all, delete_batch=prune) for name, prune in _prunes(history_days, events_days).items()}
        | {"context": partial(_prune_context, days=history_days)}
    )


def _prunes(days: int, events_days: int) -> Mapping[str, DeleteBatch]:
    """Return a deletion for each table: of at most BATCH rows; of few goals, because each may have many iterations."""
    series_policy = SeriesPolicy()
    # A day more than whatever names them: tasks, attempts and events show their names.
    worker_days = max(days, events_days) + 1
    return {
        "keys": keys.prune,
        "leases": partial(lease_ledger.prune, days=worker_days),
        "workers": partial(workers.prune, days=worker_days),
        "replacements": partial(pool.prune, days=days),
        "attempts": partial(attempts.prune, days=days),
        "logs": partial(logs.prune, days=days),
        "alerts": partial(alerts.prune, days=days),
        "webhooks": partial(webhooks.prune, days=days),
        "degradation": partial(degradation.prune, days=days),
        "fingerprints": duplicates.prune,
        "minutes": partial(throughput.prune, days=days),
        "performance": partial(performance.prune, days=days),
        "judgements": partial(ratings.prune, days=days),
        "calls": partial(usage.prune, days=days),
        "calls by hour": usage.fold,
        "spending": partial(usage.prune_spending, days=days),
        "utilisation": partial(utilisation.prune, days=days),
        "refusals": partial(refusals.prune, days=days),
        "pushed": partial(series.prune_points, days=series_policy.keep_days),
        "series": partial(series.prune_names, days=series_policy.keep_days),
        "batches": partial(series.prune_batches, days=series_policy.remember_batches_days),
        "hosts": partial(hosts.prune, days=days),
        "duties": partial(duties.prune, days=days),
        "goals": partial(goals.prune, days=days, limit=_GOALS),
        "goal_compute": compute.prune,
    }


async def _delete_all(database: Database, delete_batch: DeleteBatch) -> int:
    total = 0
    for _ in range(MAX_BATCHES):
        async with database.transaction() as connection:
            count = await delete_batch(connection)
        total += count
        # A batch that is not full has met the end, or only rows that others have locked.
        if count < BATCH:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    return total


async def _prune_context(database: Database, days: int) -> int:
    """Walk once along all entries, as no index leads to former versions; the number of those deleted."""
    total, place = 0, context.FIRST
    while True:
        async with database.transaction() as connection:
            count, following = await context.prune(connection, keep=KEPT_VERSIONS, days=days, after=place)
        total += count
        if following is None:
            return total
        place = following
        await asyncio.sleep(_PAUSE_SECONDS)


async def _make(database: Database, table: str) -> list[str]:
    """Make missing partitions; return their days. The first that cannot be made ends this round: others are ahead."""
    async with database.transaction() as connection:
        days = await retention.missing_days(connection, table)
        is_too_large = table in await retention.too_large(connection)
    if days and is_too_large:
        log.warning("%s_default is too large to make a partition beside it: use `convener db partition`", table)
        return []
    new_days = []
    for day in days:
        async with database.transaction() as connection:
            if not await retention.create(connection, table, day):
                log.info("%s is in use, or its default large: that of %s is made in another round", table, day)
                break
        new_days.append(str(day))
    return new_days


async def _drop(database: Database, table: str, days: int) -> list[str]:
    """Drop old partitions; return their names. One that is in use ends this round: each try makes writers wait."""
    async with database.transaction() as connection:
        old_names = await retention.old_partitions(connection, table, days)
    dropped_names = []
    for name in old_names:
        async with database.transaction() as connection:
            if not await retention.drop(connection, name):
                log.info("%s, or its table, is in use: it is dropped in another round", name)
                break
        dropped_names.append(name)
    return dropped_names
