"""Limits of the pool by its resources: memory and CPU of the hosts, and permits for language models."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import LimitsConfig
from app.llm.store import usage
from app.workers.rules import hosts as rules
from app.workers.rules.assignment import usual_limits
from app.workers.rules.hosts import Host, HostPolicy, WorkerLimit, permit_limit

POLICY = HostPolicy()
# Long compared with a task, so that calls and the tasks that made them mostly fall into the same span.
_SPAN = timedelta(minutes=15)


def policy_for(limits: LimitsConfig) -> HostPolicy:
    """The host policy with the memory that every worker gets by the configuration."""
    return replace(POLICY, worker_gb=usual_limits(limits).memory_gb)


async def read_limits(
    connection: AsyncConnection, hosts: Sequence[Host], workers: int, limits: LimitsConfig | None = None
) -> list[WorkerLimit]:
    """Limits on the size of the pool, which has `workers` now; a resource that limits nothing is left out.

    The `limits` of the configuration say how much memory a worker needs.
    """
    # Workers that others run elsewhere take no room on our hosts.
    elsewhere = workers - sum(host.workers for host in hosts)
    by_host = rules.host_limits(hosts, elsewhere, policy_for(limits or LimitsConfig()))
    capacity = await usage.call_capacity(connection, _SPAN)
    permits = None if capacity.held_share is None else permit_limit(capacity.limit, capacity.held_share)
    return [*by_host, permits] if permits is not None else by_host
