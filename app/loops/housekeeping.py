"""Making room: partitions ahead, old history dropped, and small tables pruned.

Each step is for itself, in transactions that are over in milliseconds: as long as one that has written anything is
open, nobody can read the events that follow, and nobody should wait for a row or a table that is only being tidied.
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
from app.health.store import alerts, series, utilisation, webhooks
from app.kernel.errors import DatabaseUnavailable
from app.llm.store import usage
from app.memory.service.context import KEEP
from app.memory.store import context
from app.queue.store import attempts, degradation, duplicates, lease_ledger, throughput
from app.workers.store import hosts, pool, workers

DUTY = "housekeeping"
EVERY_SECONDS = 600.0
# Of one table in one round: two million rows, and what is left has to wait, so that every table gets its turn.
MOST_BITES = 1000
# In one round, each with up to a thousand iterations: still thousands a day.
_GOALS = 50
# Between two bites, so that others get at the disk.
_BREATH_SECONDS = 0.01

log = logging.getLogger(__name__)

Bite = Callable[[AsyncConnection], Awaitable[int]]
Step = Callable[[Database], Awaitable[object]]


async def run_when_due(database: Database, *, history_days: int, events_days: int) -> dict[str, Any] | None:
    """One round, unless somebody has begun one lately; what came of it. The turn is claimed before the work.

    A round in which a step failed counts as none: when that goes on, the health report tells that this duty is late.
    Should two rounds meet, because one takes long, neither waits for the other.
    """
    async with database.transaction() as connection:
        await duties.ensure(connection, DUTY)
        turn = await duties.claim(connection, DUTY, 0.85 * EVERY_SECONDS)
        if turn is None:
            return None
        await duties.done(connection, DUTY, {"begun": True}, held_back=False, every_seconds=EVERY_SECONDS)
    result = await run(database, history_days=history_days, events_days=events_days)
    async with database.transaction() as connection:
        await duties.conclude(connection, turn, result, counts=not result["failed"])
    return result


async def run(database: Database, *, history_days: int, events_days: int) -> dict[str, Any]:
    """All steps, whatever becomes of the others; what each has come to, and the names of those that failed."""
    done: dict[str, Any] = {}
    failed = []
    for name, step in _steps(history_days, events_days).items():
        try:
            done[name] = await step(database)
        except DatabaseUnavailable as error:
            log.warning("housekeeping: %s did not come about, the next round tries again: %s", name, error)
            failed.append(name)
        except Exception:
            log.exception("housekeeping: %s failed, the next round tries again", name)
            failed.append(name)
    return {**done, "failed": failed}


def _steps(history_days: int, events_days: int) -> Mapping[str, Step]:
    days: Mapping[str, int] = {"task_history": history_days, "events": events_days}
    steps: dict[str, Step] = {}
    for table in retention.PARTITIONED:
        steps[f"{table} made"] = partial(_make, table=table)
        steps[f"{table} dropped"] = partial(_drop, table=table, days=days[table])
        rest = partial(retention.prune_default, table=table, keep_days=days[table])
        steps[f"{table} default"] = partial(_in_bites, bite=rest)
    return steps | {name: partial(_in_bites, bite=bite) for name, bite in _bites(history_days).items()}


def _bites(days: int) -> Mapping[str, Bite]:
    """Each deletes at most BITE rows, and fewer when there are no more; of goals a few, whose iterations are many."""
    pushed = SeriesPolicy()
    return {
        "keys": keys.prune,
        "workers": partial(workers.prune, days=days),
        "replacements": partial(pool.prune, days=days),
        "attempts": partial(attempts.prune, days=days),
        "alerts": partial(alerts.prune, days=days),
        "webhooks": partial(webhooks.prune, days=days),
        "degradation": partial(degradation.prune, days=days),
        "leases": lease_ledger.forget,
        "fingerprints": duplicates.prune,
        "minutes": partial(throughput.prune, days=days),
        "performance": partial(performance.prune, days=days),
        "judgements": partial(ratings.prune, days=days),
        "calls": partial(usage.prune, days=days),
        "utilisation": partial(utilisation.prune, days=days),
        "pushed": partial(series.prune_points, days=pushed.keep_days),
        "series": partial(series.prune_names, days=pushed.keep_days),
        "batches": partial(series.prune_batches, days=pushed.remember_batches_days),
        "hosts": partial(hosts.prune, days=days),
        "duties": partial(duties.prune, days=days),
        "goals": partial(goals.prune, days=days, bite=_GOALS),
        "goal_compute": compute.prune,
        "context": partial(context.prune, keep=KEEP, days=days),
    }


async def _in_bites(database: Database, bite: Bite) -> int:
    gone = 0
    for _ in range(MOST_BITES):
        async with database.transaction() as connection:
            last = await bite(connection)
        gone += last
        if last < BATCH:
            break
        await asyncio.sleep(_BREATH_SECONDS)
    return gone


async def _make(database: Database, table: str) -> list[str]:
    """The days for which a partition was made; the first that cannot be made ends this round, as some are ahead."""
    async with database.transaction() as connection:
        days = await retention.missing(connection, table)
    made = []
    for day in days:
        async with database.transaction() as connection:
            if not await retention.make(connection, table, day):
                log.info("%s is in use: its partition of %s is made in another round", table, day)
                break
        made.append(str(day))
    return made


async def _drop(database: Database, table: str, days: int) -> list[str]:
    """The partitions that were dropped. One that is in use ends this round: each try keeps writers waiting a little."""
    async with database.transaction() as connection:
        old = await retention.older(connection, table, days)
    dropped = []
    for name in old:
        async with database.transaction() as connection:
            if not await retention.drop(connection, name):
                log.info("%s, or its table, is in use: it is dropped in another round", name)
                break
        dropped.append(name)
    return dropped
