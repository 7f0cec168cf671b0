"""Starts workers at an operator's request: within every limit of the pool, recorded, and safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Conduct, Document, conduct, largest_step
from app.admin.service import audit, config
from app.db import notify
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.errors import StartRefused
from app.workers.rules.assignment import UNDECIDED, host_policy
from app.workers.rules.hosts import room, spread
from app.workers.service import limits, roster
from app.workers.service.roster import DueStarts, Pool
from app.workers.store import hosts, workers


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """Request for `count` more workers, whose ids derive from `request_id`, so that it is safe to repeat."""

    request_id: UUID
    count: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """A requested worker, which a provisioner starts within moments."""

    worker_id: UUID
    name: str


async def start(connection: AsyncConnection, initial: Mode, order: StartOrder) -> list[Starting]:
    """Request more workers, each on the host with the most room left. Raises StartRefused.

    They stay until the scaling loop finds that they idle, or, where the size of the pool is fixed, until their host
    leaves; lost ones are replaced.
    """
    # The ids derive from the request, so that its repetition finds the workers of the first by id.
    ids = [uuid5(order.request_id, str(place)) for place in range(order.count)]
    # The lock first: the same order may be on its way a second time at this very moment.
    await hosts.lock_pool(connection)
    if former := await workers.names(connection, ids):
        return [Starting(worker_id=worker_id, name=name) for worker_id, name in former.items()]
    version = await config.current(connection, initial)
    document = version.document
    max_workers = document.worker_pool.max_workers
    pool = await roster.pool(connection)
    due = roster.due_starts(pool, max_workers)
    await _check(connection, pool, due, document, order.count)
    _check_step(pool, due, document, conduct(version.mode), order.count)
    machines = [host for host in pool.hosts if not host.is_scaled]
    counts = spread(machines, order.count, host_policy(document.resource_limits))
    for host, count in counts.items():
        # Beyond the size of the host, or its own loop would drain them as surplus.
        await hosts.enlarge(connection, host, count)
    new_workers = await roster.request(connection, pool, counts, due, [(worker_id, UNDECIDED) for worker_id in ids])
    notify.note(connection, notify.FLEET, notify.LAUNCHES)
    starting = [Starting(worker_id=worker.id, name=worker.name) for worker in new_workers]
    _note(connection, order, len(pool.staying), starting)
    return starting


async def _check(connection: AsyncConnection, pool: Pool, due: DueStarts, document: Document, count: int) -> None:
    if not pool.hosts:
        raise StartRefused(
            "no host starts workers: run `convener up`, or `convener loops` with CONVENER_POOL_SIZE above 0",
            reason="no_host",
        )
    present, max_workers = len(pool.workers) + sum(due.values()), document.worker_pool.max_workers
    if present + count > max_workers:
        raise StartRefused(
            f"the configuration allows {max_workers:,} workers (worker_pool.max_workers), and {present:,} are there or "
            f"on their way: start at most {max(0, max_workers - present):,}, or raise the maximum",
            reason="max_workers",
        )
    if all(host.is_scaled for host in pool.hosts):
        raise StartRefused(
            f"{pool.hosts[0].host} starts its workers by itself, as many as the scaling loop decides: raise the "
            "minimum (`convener config set worker_pool.min_workers=...`)",
            reason="engine",
        )
    for limit in await limits.read_limits(connection, pool.hosts, pool.elsewhere, document.resource_limits):
        if present + count > limit.workers:
            raise StartRefused(
                f"{limit.resource} suffice for {limit.workers:,} workers, and {present:,} are there or on their way",
                reason="resources",
            )
    if count > room([host for host in pool.hosts if not host.is_scaled], host_policy(document.resource_limits)):
        raise StartRefused("the hosts have no room for so many workers more", reason="resources")


def _check_step(pool: Pool, due: DueStarts, document: Document, conduct: Conduct, count: int) -> None:
    """Workers that are still starting are no base for the next step. Raises StartRefused."""
    ready = sum(worker.state == WorkerState.READY for worker in pool.workers)
    present, largest = len(pool.workers) + sum(due.values()), largest_step(conduct, ready)
    if conduct.slows_people and present + count > max(largest, document.worker_pool.min_workers):
        raise StartRefused(
            f"the mode allows {conduct.growth - 1:.0%} more workers in a step: {largest} with the {ready} that are "
            f"ready, and {present} are there or on their way",
            reason="growth",
        )


def _note(connection: AsyncConnection, order: StartOrder, workers: int, starting: Sequence[Starting]) -> None:
    audit.record(
        connection,
        "workers.start",
        by=order.by,
        old_state={"workers": workers},
        new_state={"workers": workers + len(starting), "started": [worker.name for worker in starting]},
        reason=order.reason,
    )
