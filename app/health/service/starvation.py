"""Tasks that idle workers can run, where some of those that wait ask for resources which they may lack."""

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import PoolConfig
from app.health.rules.checks import starving_workers
from app.health.rules.snapshot import FOR_ALERTS, WorkerCounts
from app.health.store import observations as store
from app.kernel import resources
from app.kernel.lanes import Lane, Priority
from app.kernel.resources import NOTHING
from app.queue.rules.status import QueueSnapshot
from app.queue.store import resource_classes

# Of each lane, as none of them makes a difference beyond the first.
_MOST_COUNTED = 250


async def read_workers(connection: AsyncConnection, queue: QueueSnapshot, pool: PoolConfig | None) -> WorkerCounts:
    """Counts of the workers; tasks are looked at where workers seem to starve and some tasks ask for resources.

    `pool` is the configured one; None when nobody has configured anything yet.
    """
    needed_seconds = pool.worker_timeout_seconds if pool else 0.0
    workers = await store.worker_counts(connection, pool.min_workers if pool else None, needed_seconds)
    if not starving_workers(queue, workers, FOR_ALERTS):
        return workers
    requests = {number: resources.parse(text) for number, text in (await resource_classes.requests(connection)).items()}
    if not requests:
        return workers
    paused_agents = {pause.agent_type for pause in queue.pauses}
    lanes = {
        Lane(agent_type=agent, priority=priority, resource_class=number)
        for agents, offer in await store.idle_offers(connection, needed_seconds)
        for agent in agents - paused_agents
        for priority in Priority
        if queue.count(agent=agent, priority=priority, phase="pending")
        for number, request in {0: NOTHING, **requests}.items()
        if offer.covers(request)
    }
    counts = await resource_classes.count_waiting(connection, sorted(lanes), _MOST_COUNTED)
    return replace(workers, runnable=sum(counts.values()))
