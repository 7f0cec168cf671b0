"""Starting workers because a person wants them: within every limit of the pool, recorded, and safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Document
from app.admin.service import audit, config
from app.db import notify
from app.kernel.modes import Mode
from app.workers.errors import StartRefused
from app.workers.rules.hosts import room_for, spread
from app.workers.service import limits, requests, roster
from app.workers.service.requests import Owed
from app.workers.service.roster import Pool
from app.workers.store import hosts, workers
from app.workers.store.roster import NewWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """So many workers more. The ids of the workers come from `request_id`: the same order again starts nobody else."""

    request_id: UUID
    count: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    """A worker that is asked for; a provisioner starts it within moments."""

    worker_id: UUID
    name: str


async def start(connection: AsyncConnection, initial: Mode, order: StartOrder) -> list[Starting]:
    """Ask the hosts for more workers, the next where most room is left. Raises StartRefused.

    They stay until the scaling loop finds that they idle, or where the size of the pool is fixed until their host
    leaves; whoever is lost is replaced.
    """
    ids = [uuid5(order.request_id, str(place)) for place in range(order.count)]
    # First the pool: the same order may be on its way a second time at this very moment.
    await hosts.lock_pool(connection)
    if former := await workers.names(connection, ids):
        return [Starting(worker_id=worker_id, name=name) for worker_id, name in former.items()]
    document = (await config.current(connection, initial)).document
    most = document.worker_pool.max_workers
    pool = await roster.pool(connection)
    owed = requests.owed(pool, most)
    await _check(connection, pool, owed, document, order.count)
    new = await _new_workers(connection, pool, owed, ids)
    await requests.request(connection, new)
    notify.note(connection, notify.FLEET, notify.LAUNCHES)
    started = [Starting(worker_id=worker.id, name=worker.name) for worker in new]
    await _note(connection, order, len(pool.staying), started)
    return started


async def _check(connection: AsyncConnection, pool: Pool, owed: Owed, document: Document, count: int) -> None:
    if not pool.hosts:
        raise StartRefused(
            "no host starts workers: run `convener up`, or `convener loops` with CONVENER_POOL_SIZE above 0",
            reason="no_host",
        )
    there, most = len(pool.workers) + sum(owed.values()), document.worker_pool.max_workers
    if there + count > most:
        raise StartRefused(
            f"the configuration allows {most:,} workers (worker_pool.max_workers), and {there:,} are there or on "
            f"their way: start at most {max(0, most - there):,}, or raise the maximum",
            reason="max_workers",
        )
    for cap in await limits.gather(connection, pool.hosts, len(pool.workers), document.resource_limits):
        if there + count > cap.workers:
            raise StartRefused(
                f"{cap.resource} suffice for {cap.workers:,} workers, and {there:,} are there or on their way",
                reason="resources",
            )
    if count > room_for(pool.hosts, limits.promising(document.resource_limits)):
        raise StartRefused("the hosts have no room for so many workers more", reason="resources")


async def _new_workers(connection: AsyncConnection, pool: Pool, owed: Owed, ids: Sequence[UUID]) -> list[NewWorker]:
    remaining = iter(ids)
    new = []
    for host, count in spread(pool.hosts, len(ids), limits.POLICY).items():
        slots = await requests.new_slots(connection, pool, host, owed[host], count) if count else []
        new += [
            NewWorker(id=next(remaining), provisioner=host.provisioner, host=host.host, slot=slot) for slot in slots
        ]
        await hosts.enlarge(connection, host, count)
    return new


async def _note(connection: AsyncConnection, order: StartOrder, before: int, started: Sequence[Starting]) -> None:
    await audit.record(
        connection,
        "workers.start",
        by=order.by,
        before={"workers": before},
        after={"workers": before + len(started), "started": [worker.name for worker in started]},
        reason=order.reason,
    )
