"""What is expected of a goal before any of its attempts has ended, so that its first tasks keep to its budget too."""

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Iterations
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Usage
from app.goals.rules.goals import EnforcementAction, LeaseCapacity
from app.goals.store import compute
from app.goals.store.goals import Goal
from app.queue.store import holds
from app.scaling.service import state
from app.workers.store import workers


async def lease_capacity(connection: AsyncConnection) -> LeaseCapacity:
    """All workers that there are."""
    return LeaseCapacity(workers=sum((await workers.workers_by_state(connection)).values()))


async def expected_seconds(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, float]:
    """Seconds that an attempt of each of these goals is expected to take; none where nothing was ever measured.

    As long as tasks of the type that is first in line take, whatever goal they are of; as those of the slowest type
    where that is not known.
    """
    memory = await state.recall(connection) if goal_ids else None
    known = {agent: one.mean_seconds for agent, one in memory.experience.service.items()} if memory else {}
    if not known:
        return {}
    types, slowest = await compute.first_task_types(connection, goal_ids), max(known.values())
    return {goal_id: known.get(types[goal_id], slowest) if goal_id in types else slowest for goal_id in goal_ids}


async def meter_new_goal(connection: AsyncConnection, goal: Goal) -> None:
    """A new goal whose budget all workers could overrun before anybody looks is metered from its first task on.

    Tasks may have named it, and have run, before it was created; these count.
    """
    limits = rules.goal_policy(goal.terms, Iterations()).limits
    if limits.compute_seconds is None:
        return
    spent, known = (await compute.read(connection, goal.id)).total, await expected_seconds(connection, [goal.id])
    used = Usage(compute=replace(spent, prior_seconds=known.get(goal.id, 0.0)))
    due = rules.enforce(used, limits, await lease_capacity(connection))
    if due.measure is not EnforcementAction.LEAVE:
        await holds.meter(connection, goal.id, spent.attempts + spent.running)
