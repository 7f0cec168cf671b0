"""Expected length of a goal's attempts before any of its own has ended, so that its first tasks keep its budget too."""

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import IterationConfig
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Usage
from app.goals.rules.goals import EnforcementAction, LeaseCapacity
from app.goals.store import compute
from app.goals.store.goals import Goal
from app.queue.store import meters
from app.scaling.service import state
from app.workers.store import roster

# So many workers may come before the first check of a new goal.
_NEWCOMERS = 16


async def lease_capacity(connection: AsyncConnection) -> LeaseCapacity:
    """Capacity of all workers there are, in whatever state: any of them may lease before the next check."""
    return LeaseCapacity(workers=await roster.count(connection))


async def expected_seconds(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, float]:
    """Expected seconds of an attempt of each of these goals; empty where nothing was ever measured.

    The mean of the agent type of the goal's first task, over all goals; of the slowest type where it has no task.
    """
    last = await state.read(connection) if goal_ids else None
    service_times = last.estimates.service_times if last else {}
    means = {agent: service_time.mean_seconds for agent, service_time in service_times.items()}
    if not means:
        return {}
    types, slowest = await compute.first_task_types(connection, goal_ids), max(means.values())
    return {goal_id: means.get(types[goal_id], slowest) if goal_id in types else slowest for goal_id in goal_ids}


async def meter_new_goal(connection: AsyncConnection, goal: Goal) -> None:
    """Meter a new goal from its first task on where all workers could overrun its budget before the first check.

    Tasks may have named the goal, and have run, before it was created; these count.
    """
    limits = rules.goal_policy(goal.constraints, IterationConfig()).limits
    if limits.compute_seconds is None:
        return
    goal_compute = await compute.read(connection, goal.id)
    total = goal_compute.total
    priors = await expected_seconds(connection, [goal.id])
    usage = Usage(compute=replace(total, prior_seconds=priors.get(goal.id, 0.0)))
    # In the transaction that creates the goal: a moment later its first tasks could be leased without any bound.
    present = await lease_capacity(connection)
    capacity = replace(present, workers=present.workers + _NEWCOMERS)
    due = rules.enforce(usage, limits, capacity, ages=goal_compute.ages)
    if due.action is not EnforcementAction.ALLOW:
        await meters.create(connection, goal.id, total.attempts + total.running)
