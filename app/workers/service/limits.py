"""How many workers each resource suffices for: the one place where the limits of the pool come together."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import LimitsConfig
from app.llm.store import usage
from app.workers.rules import hosts as rules
from app.workers.rules.assignment import usual_limits
from app.workers.rules.hosts import Cap, Host, HostPolicy, permit_cap

POLICY = HostPolicy()
# Long against a task, so that calls and the tasks that made them mostly fall into the same span.
_SPAN = timedelta(minutes=15)


def promising(limits: LimitsConfig) -> HostPolicy:
    """The policy for workers that get what the configuration lets everybody have."""
    return replace(POLICY, worker_gb=usual_limits(limits).memory_gb)


async def gather(
    connection: AsyncConnection, hosts: Sequence[Host], workers: int, limits: LimitsConfig | None = None
) -> list[Cap]:
    """The caps on the size of the pool, which has so many `workers` now; a resource without a limit has none.

    By the `limits` of the configuration goes how much memory a worker is promised.
    """
    elsewhere = workers - sum(host.workers for host in hosts)
    found = rules.caps(hosts, elsewhere, promising(limits or LimitsConfig()))
    burden = await usage.call_capacity(connection, _SPAN)
    permits = None if burden.held_share is None else permit_cap(burden.limit, burden.held_share)
    return [*found, permits] if permits is not None else found
