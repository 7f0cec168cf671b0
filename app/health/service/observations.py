"""Observations for alerts and degradation, at a cost that does not grow with the number of tasks."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import config
from app.db import duties
from app.goals.store import goals
from app.health.rules.snapshot import FOR_ALERTS, MINUTE, WATCH, CheckPolicy, Depth, Observations, with_depth
from app.health.rules.utilisation import Measure, UtilisationPolicy, fullest_host_percent
from app.health.service.starvation import count_workers
from app.health.store import observations as store
from app.health.store import pool_counts, refusals, utilisation
from app.kernel.lanes import Priority
from app.llm.store import budgets as llm_budgets
from app.llm.store import usage
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.degradation import Strain
from app.queue.service import degradation, status
from app.workers.service.pool import recovery

# Both duties have a turn every five seconds.
_LATELY = timedelta(seconds=6)
_STRAIN = frozenset({"resources", "capacity_lost", "oldest_wait_seconds"})


async def observe(
    connection: AsyncConnection, capacity: CapacityPolicy, policy: CheckPolicy, depths: Sequence[Depth] = ()
) -> Observations:
    """Read all that alerts watch; `depths` are those of earlier observations."""
    queue = await status.read_snapshot(connection)
    version = await config.last(connection)
    at_least = policy.goal_budget.degraded
    workers = await store.read_workers(connection, policy.overdue_grace_seconds)
    owners = await llm_budgets.shares(connection, at_least=at_least)
    return Observations(
        queue=queue,
        depths=with_depth(depths, queue.at, sum(queue.depth.values())),
        running=workers.running,
        workers=await count_workers(connection, workers, queue, version.document.worker_pool if version else None),
        # The queue as a whole is a resource of the contract; quotas of priorities are the report's.
        resources={
            "queue": sum(queue.depth.values()) / capacity.max_queue_size,
            **await _used_shares(connection, queue.at),
        },
        models=await store.model_troubles(connection),
        budgets=await goals.budget_shares(connection, at_least=at_least),
        llm_budgets={" ".join(owner): share for owner, share in owners.items()},
        recovery=await recovery(connection),
        database=await store.database_condition(connection),
        step=await degradation.current_step(connection),
        refusals=await refusals.recent(connection),
        duty_turns=await pool_counts.duty_turns(connection),
    )


def strain(observed: Observations) -> Strain:
    """Use of resources, loss of capacity and the longest wait, by which degradation decides."""
    shares = {name: share for name, share in (observed.resources or {}).items() if name != "queue"}
    waits = [
        wait.total_seconds() for priority in Priority if (wait := observed.queue.oldest_wait(priority)) is not None
    ]
    return Strain(
        resources={**shares, "database_connections": observed.database.connections if observed.database else None},
        capacity_lost=observed.recovery.lost_share if observed.recovery else 0.0,
        oldest_wait_seconds=max(waits, default=0.0),
    )


def strain_to_json(current: Strain) -> dict[str, Any]:
    """The strain as the result of a duty keeps it."""
    return {name: getattr(current, name) for name in _STRAIN}


async def latest_strain(connection: AsyncConnection, capacity: CapacityPolicy) -> Strain:
    """The strain as the watch for alerts has just seen it, in place of another look; where it has not, by a look."""
    turn = (await duties.last_turns(connection, [WATCH])).get(WATCH)
    if turn is not None and turn.ago < _LATELY:
        # Another version may know less of it, or more.
        stored = turn.result.get("strain", {})
        if stored.keys() >= _STRAIN:
            return Strain(**{name: stored[name] for name in _STRAIN})
    return strain(await observe(connection, capacity, FOR_ALERTS))


async def _used_shares(connection: AsyncConnection, moment: datetime) -> Mapping[str, float | None]:
    """Shares of 1 that are used up; None where nobody has measured."""
    # Of the last minute alone: the hysteresis of alerts and the ladder of degradation decide what has lasted.
    spans, policy = await utilisation.recent_minutes(connection, MINUTE), UtilisationPolicy()
    percents = {
        measure.value: fullest_host_percent(spans, measure, moment, policy) for measure in (Measure.CPU, Measure.MEMORY)
    }
    shares = {name: None if percent is None else percent / 100 for name, percent in percents.items()}
    calls = await usage.recent(connection, MINUTE)
    return {**shares, "llm_permits": calls.in_use / calls.limit}
