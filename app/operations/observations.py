"""One look at everything that alerts and degradation go by, at a cost that does not grow with the number of tasks."""

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.capacity import CapacityPolicy
from app.domain.degradation import Strain
from app.domain.observations import Depth, Observations, with_depth
from app.domain.queues import QueueSnapshot
from app.domain.recovery import Recovery, RecoveryPolicy, assess
from app.domain.symptoms import SymptomPolicy
from app.domain.tasks import Priority
from app.operations import queues
from app.store import config
from app.store import observations as store


async def look(
    connection: AsyncConnection, capacity: CapacityPolicy, policy: SymptomPolicy, depths: Sequence[Depth] = ()
) -> Observations:
    """How everything stands; `depths` are those of the looks before."""
    queue = await queues.look(connection)
    version = await config.last(connection)
    minimum = version.document.worker_pool.min_workers if version else None
    return Observations(
        queue=queue,
        depths=with_depth(depths, queue.at, sum(queue.depth.values())),
        running=await store.running(connection, policy.overdue_grace_seconds),
        pool=await store.pool(connection, minimum),
        resources=_resources(queue, capacity),
        recovery=await recovery(connection),
        database=await store.database(connection),
    )


async def strain(connection: AsyncConnection, capacity: CapacityPolicy) -> Strain:
    """How short resources are, and for how long work has been waiting."""
    queue = await queues.look(connection)
    waits = [wait.total_seconds() for priority in Priority if (wait := queue.waiting(priority)) is not None]
    database = await store.database(connection)
    return Strain(
        resources={**_resources(queue, capacity), "database_connections": database.connections},
        capacity_lost=(await recovery(connection)).lost_share,
        oldest_wait_seconds=max(waits, default=0.0),
    )


async def recovery(connection: AsyncConnection) -> Recovery:
    """Whether lost workers are replaced with success; where not, the pool works at reduced capacity."""
    policy = RecoveryPolicy()
    return assess(await store.recovery(connection, policy), policy)


def _resources(queue: QueueSnapshot, capacity: CapacityPolicy) -> Mapping[str, float | None]:
    """Shares of 1 that are used up."""
    return {"queue": sum(queue.depth.values()) / capacity.max_queue_size}
