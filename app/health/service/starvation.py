"""Tasks that idle workers can run, where they may lack resources that tasks ask for, or time."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import PoolConfig
from app.health.rules.checks import starving_workers
from app.health.rules.snapshot import FOR_ALERTS, WorkerCounts
from app.health.store import observations as store
from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.resources import NOTHING
from app.queue.rules.status import QueueSnapshot
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import resource_classes


async def read_workers(connection: AsyncConnection, queue: QueueSnapshot, pool: PoolConfig | None) -> WorkerCounts:
    """Counts of the workers; tasks are looked at where workers seem to starve and some lack resources or time.

    `pool` is the configured one; None when nobody has configured anything yet.
    """
    workers = await store.worker_counts(connection, pool.min_workers if pool else None)
    if not starving_workers(queue, workers, FOR_ALERTS):
        return workers
    requests = {number: resources.parse(text) for number, text in (await resource_classes.requests(connection)).items()}
    groups = await store.idle_workers(connection)
    if not requests and all(group.seconds == math.inf for group in groups):
        return workers
    # With the longest timeout of a task for which these workers have the time.
    group_lanes = [
        (lane, group, group.seconds / (group.stretch if lane.agent_type is group.assigned_agent else 1))
        for lane in _waiting_lanes(queue, (0, *requests))
        for group in groups
        if lane.agent_type in group.agents and group.offer.covers(requests.get(lane.resource_class, NOTHING))
    ]
    longest: dict[Lane, float] = {}
    for lane, _, seconds in group_lanes:
        longest[lane] = max(seconds, longest.get(lane, seconds))
    usual_seconds = pool.worker_timeout_seconds if pool else LeasePolicy().task_timeout_seconds
    waiting = await resource_classes.count_fitting(connection, longest, usual_seconds)
    able = {id(group): group.workers for lane, group, seconds in group_lanes if waiting[lane].least_seconds <= seconds}
    tasks = sum(count.tasks for count in waiting.values())
    return replace(workers, idle=sum(able.values()), runnable=tasks)


def _waiting_lanes(queue: QueueSnapshot, classes: Iterable[int]) -> Iterator[Lane]:
    paused_agents = {pause.agent_type for pause in queue.pauses}
    for agent in AgentType:
        for priority in Priority:
            if agent not in paused_agents and queue.count(agent=agent, priority=priority, phase="pending"):
                yield from (Lane(agent_type=agent, priority=priority, resource_class=number) for number in classes)
