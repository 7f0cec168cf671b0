"""Reads every live worker and every host that starts workers."""

from collections import defaultdict
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.workers.rules.hosts import Host
from app.workers.store import hosts, roster
from app.workers.store.roster import Worker

DRAINING = WorkerState.DRAINING.value


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Everybody who is alive, and the hosts that start workers."""

    workers: Sequence[Worker]
    hosts: Sequence[Host]
    by_host: Mapping[tuple[str | None, str | None], Sequence[Worker]]

    @cached_property
    def staying(self) -> Sequence[Worker]:
        """Those that are not on their way out."""
        return [worker for worker in self.workers if worker.state != DRAINING]

    def of(self, host: Host) -> Sequence[Worker]:
        """Those that a host keeps running."""
        return self.by_host.get((host.provisioner, host.host), ())


async def pool(
    connection: AsyncConnection, since: datetime | None = None, busy: Awaitable[Collection[WorkerId]] | None = None
) -> Pool:
    """Look at every live worker and every host; see `members.read`."""
    live = await hosts.live(connection)
    workers = await roster.read(connection, since, busy)
    by_host: dict[tuple[str | None, str | None], list[Worker]] = defaultdict(list)
    for worker in workers:
        by_host[worker.provisioner, worker.host].append(worker)
    known = [_with_workers(host, by_host.get((host.provisioner, host.host), ())) for host in live]
    return Pool(workers=workers, hosts=known, by_host=by_host)


def owed(host: Host, workers: Sequence[Worker]) -> int:
    """How many workers a host has still to start to be as many as it is to keep."""
    return max(0, host.size - sum(w.state != DRAINING for w in workers))


def _with_workers(host: Host, workers: Sequence[Worker]) -> Host:
    return replace(host, workers=len(workers), workers_gb=sum(w.memory_mb or 0.0 for w in workers) / 1024)
