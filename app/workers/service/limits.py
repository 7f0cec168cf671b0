"""Limits of the pool by its resources: memory and CPU of the hosts, and permits for language models."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import LimitsConfig
from app.llm.store import usage
from app.workers.rules import hosts as rules
from app.workers.rules.assignment import host_policy
from app.workers.rules.hosts import Host, WorkerLimit, permit_limit

# Long compared with a task, so that calls and the tasks that made them mostly fall into the same span.
_SPAN = timedelta(minutes=15)


async def read_limits(
    connection: AsyncConnection, hosts: Sequence[Host], workers_elsewhere: int, limits: LimitsConfig
) -> list[WorkerLimit]:
    """Limits on the size of the pool; a resource that limits nothing is left out.

    Workers that others run elsewhere take no room on our hosts. The `limits` of the configuration say how much memory a
    worker needs.
    """
    by_host = rules.host_limits(hosts, workers_elsewhere, host_policy(limits))
    capacity = await usage.call_capacity(connection, _SPAN)
    permits = None if capacity.held_share is None else permit_limit(capacity.limit, capacity.held_share)
    return [*by_host, permits] if permits is not None else by_host
