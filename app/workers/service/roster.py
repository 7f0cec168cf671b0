"""The pool as a whole: every live worker, and every host that starts workers."""

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
    """The live workers, and the hosts that start workers."""

    workers: Sequence[Worker]
    hosts: Sequence[Host]
    by_host: Mapping[tuple[str | None, str | None], Sequence[Worker]]

    @cached_property
    def staying(self) -> Sequence[Worker]:
        """The workers that are not draining."""
        return [worker for worker in self.workers if worker.state != DRAINING]

    def of(self, host: Host) -> Sequence[Worker]:
        """The workers that a host keeps running."""
        return self.by_host.get((host.provisioner, host.host), ())


async def pool(
    connection: AsyncConnection, since: datetime | None = None, busy: Awaitable[Collection[WorkerId]] | None = None
) -> Pool:
    """Read every live worker and every host; for `since` and `busy` see `roster.read` of the store."""
    live = await hosts.live(connection)
    workers = await roster.read(connection, since, busy)
    # Grouped once, as the workers of every host are looked up several times in a decision.
    by_host: dict[tuple[str | None, str | None], list[Worker]] = defaultdict(list)
    for worker in workers:
        by_host[worker.provisioner, worker.host].append(worker)
    reported_hosts = [_with_workers(host, by_host.get((host.provisioner, host.host), ())) for host in live]
    return Pool(workers=workers, hosts=reported_hosts, by_host=by_host)


def vacancies(host: Host, workers: Sequence[Worker]) -> int:
    """Number of workers that a host has still to start to reach its size."""
    return max(0, host.size - sum(w.state != DRAINING for w in workers))


def _with_workers(host: Host, workers: Sequence[Worker]) -> Host:
    return replace(host, workers=len(workers), workers_gb=sum(w.memory_mb or 0.0 for w in workers) / 1024)
