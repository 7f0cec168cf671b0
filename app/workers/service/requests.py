"""Requests new workers from hosts, in slots that are free and not resting after crash loops."""

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from app.workers.rules.hosts import Host
from app.workers.rules.pool import PoolMember, free_slots
from app.workers.service import pool as pool_operations
from app.workers.service import workers as worker_operations
from app.workers.service.roster import Pool, vacancies
from app.workers.store import pool as pool_store
from app.workers.store import roster
from app.workers.store.roster import NewWorker

# Workers that each host is due to start for lost ones.
DueStarts = Mapping[Host, int]


def due_starts(pool: Pool, max_workers: int) -> dict[Host, int]:
    """Number of workers that each host is due to start for lost ones, within the maximum of the pool.

    A worker that restarts keeps its place for its successor, also where there is no room for any other.
    """
    room, due = max(0, max_workers - len(pool.workers)), {}
    for host in pool.hosts:
        workers = pool.of(host)
        restarts = sum(worker.restarting for worker in workers)
        # Successors of restarting workers need no room of their own.
        due[host] = min(room + restarts, vacancies(host, workers))
        room -= max(0, due[host] - restarts)
    return due


async def request(connection: AsyncConnection, new_workers: Sequence[NewWorker]) -> None:
    """Record that these workers are to be started; live workers of the same names are superseded."""
    for name in await roster.live_names(connection, [worker.name for worker in new_workers]):
        await worker_operations.supersede(connection, name)
    await roster.request(connection, new_workers)


async def new_slots(connection: AsyncConnection, pool: Pool, host: Host, due: int, count: int) -> list[int]:
    """Slots for `count` new workers: not the ones kept for `due` starts, and none that rests after crashes."""
    resting = await pool_operations.resting_slots(connection, host.provisioner, host.host)
    vacated_slots = await pool_store.vacated_slots(connection, host.host)
    members = [
        PoolMember(worker_id=w.id, slot=w.slot, leaving=False, busy=w.busy) for w in pool.of(host) if w.slot is not None
    ]
    # Enough to choose from when the due and the resting slots are left out.
    free = free_slots(members, vacated_slots, due + count + len(resting))
    return [slot for slot in free[due:] if slot not in resting][:count]
