"""How many workers each resource suffices for: the one place where the limits of the pool come together."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import hosts as rules
from app.domain.caps import Cap
from app.domain.hosts import Host, HostPolicy

POLICY = HostPolicy()


async def gather(connection: AsyncConnection, hosts: Sequence[Host], workers: int) -> list[Cap]:
    """The caps on the size of the pool, which has so many `workers` now; a resource without a limit has none."""
    elsewhere = workers - sum(host.workers for host in hosts)
    return rules.caps(hosts, elsewhere, POLICY)
