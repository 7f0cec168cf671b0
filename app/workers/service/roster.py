"""The pool as a whole: its live workers and hosts, the starts that hosts owe, and requests for new workers."""

from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.workers.rules.assignment import Assignment
from app.workers.rules.hosts import Host
from app.workers.rules.pool import free_slots
from app.workers.service import pool as pool_operations
from app.workers.service import workers as worker_operations
from app.workers.store import hosts, roster
from app.workers.store import pool as pool_store
from app.workers.store.roster import NewWorker, Worker

DRAINING = WorkerState.DRAINING.value
# Workers that each host is due to start for lost ones.
DueStarts = Mapping[Host, int]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The live workers, and the hosts that start workers."""

    workers: Sequence[Worker]
    hosts: Sequence[Host]
    by_host: Mapping[tuple[str | None, str | None], Sequence[Worker]]
    # What the last worker of a host could run, of hosts that have none now which has registered.
    former: Mapping[tuple[str | None, str | None], str] = field(default_factory=dict)

    @cached_property
    def staying(self) -> Sequence[Worker]:
        """The workers that are not draining."""
        return [worker for worker in self.workers if worker.state != DRAINING]

    @cached_property
    def elsewhere(self) -> int:
        """Number of live workers that no host of ours runs."""
        return len(self.workers) - sum(host.workers for host in self.hosts)

    @cached_property
    def usual(self) -> "Pool":
        """The pool without the classes of workers, which are sized apart."""
        classes = {(host.provisioner, host.host) for host in self.classes}
        if not classes:
            return self
        return Pool(
            workers=[worker for worker in self.workers if (worker.provisioner, worker.host) not in classes],
            hosts=[host for host in self.hosts if host.serves is None],
            by_host=self.by_host,
            former=self.former,
        )

    @cached_property
    def classes(self) -> Sequence[Host]:
        """The hosts that are classes of workers."""
        return [host for host in self.hosts if host.serves is not None]

    @cached_property
    def has_blocks(self) -> bool:
        """Whether there are workers that can only be removed together."""
        return any(worker.block is not None for worker in self.staying)

    @cached_property
    def groups(self) -> Sequence[Sequence[Worker]]:
        """The staying workers by what is removed together: those of a block, or one alone.

        In the order in which they leave: those that nobody of ours has started last, the least work first, and the
        highest slots, so that those in use stay dense.
        """
        groups: dict[object, list[Worker]] = defaultdict(list)
        for worker in self.staying:
            groups[(worker.provisioner, worker.host, worker.block) if worker.block else worker.id].append(worker)
        return sorted(
            groups.values(),
            key=lambda group: (group[0].provisioner is None, sum(w.busy for w in group), -(group[0].slot or 0)),
        )

    @cached_property
    def removable_groups(self) -> Sequence[Sequence[Worker]]:
        """The groups of ours that may leave where so many are idle: no busy worker alone, as there each can go alone.

        In a block there would always be one at work, and so no block would ever leave.
        """
        return [
            group
            for group in self.groups
            if group[0].provisioner is not None
            and any(worker.state == WorkerState.READY for worker in group)
            and (group[0].block is not None or not group[0].busy)
        ]

    def part(self, host: Host) -> "Pool":
        """One of the hosts with its workers alone."""
        return Pool(workers=self.of(host), hosts=[host], by_host=self.by_host, former=self.former)

    def of(self, host: Host) -> Sequence[Worker]:
        """The workers that a host keeps running."""
        return self.by_host.get((host.provisioner, host.host), ())

    def next_capabilities(self, host: Host) -> str | None:
        """Return what one more worker of a host can run, by its last one; None while nobody knows."""
        former = self.former.get((host.provisioner, host.host))
        return next((w.capabilities for w in reversed(self.of(host)) if w.capabilities is not None), former)


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
    present = Pool(workers=workers, hosts=reported_hosts, by_host=by_host)
    if all(present.next_capabilities(host) is not None for host in reported_hosts):
        return present
    return replace(present, former=await roster.former_capabilities(connection))


def due_starts(pool: Pool, max_workers: int) -> dict[Host, int]:
    """Number of workers that each host is due to start for lost ones, within the maximum of the pool.

    A worker that restarts keeps its place for its successor, also where there is no room for any other.
    """
    room, due = max(0, max_workers - len(pool.workers)), {}
    for host in pool.hosts:
        workers = pool.of(host)
        restarts = sum(worker.restarting for worker in workers)
        vacancies = max(0, host.size - sum(worker.state != DRAINING for worker in workers))
        # Successors of restarting workers need no room of their own.
        due[host] = min(room + restarts, vacancies)
        room -= max(0, due[host] - restarts)
    return due


def without_surplus(due: DueStarts, pool: Pool, least: int) -> dict[Host, int]:
    """The due starts without those of engines that are not needed for a pool of at least so many workers."""
    rest = least - len(pool.staying) - sum(count for host, count in due.items() if not host.is_scaled)
    kept = {}
    for host, count in due.items():
        kept[host] = min(count, max(0, rest)) if host.is_scaled else count
        rest -= kept[host] if host.is_scaled else 0
    return kept


async def request(
    connection: AsyncConnection,
    pool: Pool,
    counts: Mapping[Host, int],
    due: DueStarts,
    assignments: Iterable[tuple[UUID, Assignment]],
) -> list[NewWorker]:
    """Record that these workers, by id and assignment, are to be started, `counts` of them on each host.

    Live workers of the same names are superseded. The members of an engine register by themselves: its size suffices.
    """
    # Any id on any host: new workers differ only in their assignment.
    remaining = iter(assignments)
    new_workers = []
    for host, count in counts.items():
        for slot in await _new_slots(connection, pool, host, due[host], count) if count and not host.is_scaled else ():
            worker_id, assignment = next(remaining)
            new_workers.append(
                NewWorker(id=worker_id, provisioner=host.provisioner, host=host.host, slot=slot, assignment=assignment)
            )
    await worker_operations.supersede(connection, [worker.name for worker in new_workers])
    await roster.request(connection, new_workers)
    return new_workers


async def _new_slots(connection: AsyncConnection, pool: Pool, host: Host, due: int, count: int) -> list[int]:
    """Slots for `count` new workers: not the ones kept for `due` starts, and none that rests after crashes."""
    resting = await pool_operations.resting_slots(connection, host.provisioner, host.host)
    vacated_slots = await pool_store.vacated_slots(connection, host.host)
    occupied_slots = {worker.slot for worker in pool.of(host)}
    # Enough to choose from when the due and the resting slots are left out.
    free = free_slots(occupied_slots, vacated_slots, due + count + len(resting))
    return [slot for slot in free[due:] if slot not in resting][:count]


def _with_workers(host: Host, workers: Sequence[Worker]) -> Host:
    # Rounded, as decisions keep them: what is left out decides nothing.
    workers_gb = round(sum(w.memory_mb or 0.0 for w in workers) / 1024, 2)
    return replace(host, workers=len(workers), workers_gb=workers_gb, memory_used_gb=round(host.memory_used_gb, 2))
