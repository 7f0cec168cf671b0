"""Requests new workers from hosts, in slots that are free and not resting after crash loops."""

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from app.workers.rules.hosts import Host
from app.workers.rules.pool import PoolMember, free_slots
from app.workers.service import pool as fleet_operations
from app.workers.service import workers as worker_operations
from app.workers.service.roster import Pool
from app.workers.service.roster import owed as owed_by
from app.workers.store import pool as pool_store
from app.workers.store import roster
from app.workers.store.roster import NewWorker

Owed = Mapping[Host, int]


def owed(pool: Pool, most: int) -> dict[Host, int]:
    """The workers that hosts are about to start anyway, for those that were lost; within what there may be at all.

    Whoever restarts keeps its place for the next, also where there is no room for anybody else.
    """
    room, found = max(0, most - len(pool.workers)), {}
    for host in pool.hosts:
        ours = pool.of(host)
        returning = sum(worker.restarting for worker in ours)
        found[host] = min(room + returning, owed_by(host, ours))
        room -= max(0, found[host] - returning)
    return found


async def request(connection: AsyncConnection, new: Sequence[NewWorker]) -> None:
    """Write down that these workers are to be started; whoever bears one of their names is over."""
    for name in await roster.named(connection, [worker.name for worker in new]):
        await worker_operations.supersede(connection, name)
    await roster.request(connection, new)


async def new_slots(connection: AsyncConnection, pool: Pool, host: Host, owed: int, count: int) -> list[int]:
    """Slots for new workers, beyond those that the host owes a worker, and none that rests."""
    resting = await fleet_operations.asleep(connection, host.provisioner, host.host)
    bereaved = await pool_store.bereaved(connection, host.host)
    there = [
        PoolMember(worker_id=w.id, slot=w.slot, leaving=False, busy=w.busy) for w in pool.of(host) if w.slot is not None
    ]
    free = free_slots(there, bereaved, owed + count + len(resting))
    return [slot for slot in free[owed:] if slot not in resting][:count]
