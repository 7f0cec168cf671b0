"""Tasks that idle workers can run, where they may lack resources that tasks ask for, or time."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import PoolConfig
from app.health.rules.checks import starving_workers
from app.health.rules.snapshot import FOR_ALERTS, WorkerCounts
from app.health.store.observations import IdleWorkers, ObservedWorkers
from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.resources import Resources
from app.queue.rules.status import QueueSnapshot
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import resource_classes


async def count_workers(
    connection: AsyncConnection, observed: ObservedWorkers, queue: QueueSnapshot, pool: PoolConfig | None
) -> WorkerCounts:
    """Counts of the workers; tasks are looked at where workers seem to starve and some lack resources or time.

    `pool` is the configured one; None when nobody has configured anything yet.
    """
    workers = replace(observed.counts, minimum=pool.min_workers if pool else None)
    if not starving_workers(queue, workers, FOR_ALERTS):
        return workers
    requests = {number: resources.parse(text) for number, text in (await resource_classes.requests(connection)).items()}
    groups = observed.idle
    if not requests and all(min(group.seconds) == math.inf for group in groups):
        return workers
    group_lanes = list(_group_lanes(queue, groups, requests))
    # With the longest timeout of a task for which these workers have the time.
    longest: dict[Lane, float] = {}
    for lane, group, stretch in group_lanes:
        longest[lane] = max(max(group.seconds) / stretch, longest.get(lane, -math.inf))
    usual_seconds = pool.worker_timeout_seconds if pool else LeasePolicy().task_timeout_seconds
    waiting = await resource_classes.count_fitting(connection, longest, usual_seconds)
    least: dict[int, float] = {}
    for lane, group, stretch in group_lanes:
        least[id(group)] = min(waiting[lane].least_seconds * stretch, least.get(id(group), math.inf))
    idle = sum(_count_able(group, least.get(id(group), math.inf)) for group in groups)
    return replace(workers, idle=idle, runnable=sum(count.tasks for count in waiting.values()))


def _count_able(group: IdleWorkers, least_seconds: float) -> int:
    """The number of these workers that last for the shortest task; none where none waits."""
    return 0 if least_seconds == math.inf else sum(seconds >= least_seconds for seconds in group.seconds)


def _group_lanes(
    queue: QueueSnapshot, groups: Iterable[IdleWorkers], requests: Mapping[int, Resources]
) -> Iterator[tuple[Lane, IdleWorkers, float]]:
    """The lanes from which each group could be served, with how much longer a task of these may take."""
    for group in groups:
        classes = [0, *(number for number, request in requests.items() if group.offer.covers(request))]
        for lane in _waiting_lanes(queue, group.agents, classes):
            yield lane, group, group.stretch if lane.agent_type is group.assigned_agent else 1.0


def _waiting_lanes(queue: QueueSnapshot, agents: Iterable[AgentType], classes: Sequence[int]) -> Iterator[Lane]:
    paused_agents = {pause.agent_type for pause in queue.pauses}
    for agent in agents:
        for priority in Priority:
            if agent not in paused_agents and queue.count(agent=agent, priority=priority, phase="pending"):
                yield from (Lane(agent_type=agent, priority=priority, resource_class=number) for number in classes)
