"""Letting a decision happen: workers assigned, asked for, and told to go; and the size that each host keeps.

Whoever counts the pool and adds to it holds its lock: two could fill the same room otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.decisions import Decision, Place
from app.domain.fleet import PoolMember, free_slots
from app.domain.hosts import Host, spread
from app.domain.workers import Directive, WorkerState
from app.operations import caps
from app.operations import fleet as fleet_operations
from app.operations import workers as worker_operations
from app.operations.observing import Pool
from app.operations.observing import owed as owed_by
from app.store import announcements, directing, fleet, hosts, members
from app.store.directing import Crew
from app.store.members import Given, Requested, Worker

Owed = Mapping[Host, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was written down: workers asked for, told to go, and given another agent or other limits; hosts resized."""

    started: int = 0
    drained: int = 0
    assigned: int = 0
    resized: int = 0

    def told(self) -> dict[str, Any]:
        """What did not stay 0."""
        return {name: count for name, count in asdict(self).items() if count}


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


async def notes(connection: AsyncConnection, owed: Owed) -> list[str]:
    """What the reasons of a decision should tell of workers that are missing."""
    told = []
    for host, missing in owed.items():
        if missing and (resting := await fleet_operations.asleep(connection, host.provisioner, host.host)):
            workers, slots = _count(missing, "worker"), _count(len(resting), "slot")
            told.append(f"{host.host} owes {workers}; {slots} there rest, as their workers died young")
    return told


async def carry_out(connection: AsyncConnection, decision: Decision, pool: Pool, owed: Owed) -> Done:
    """Write down what the decision wants of hosts and workers; the caller holds the pool."""
    changed, leaving = list(_changed(decision, pool.staying)), _leavers(decision, pool)
    # Those that change and those that leave together, or a batch of heartbeats could wait for us while we wait for it.
    await members.lock(connection, {*leaving, *(given.id for given in changed)})
    await members.assign(connection, changed)
    started = spread(pool.hosts, len(decision.new), caps.POLICY)
    await _request(connection, decision, pool, started, owed)
    drained = await _drain(connection, leaving, decision.reasons[0])
    resized = await _resize(connection, pool, owed, started, drained)
    if decision.new or drained:
        announcements.note(connection, announcements.FLEET, announcements.LAUNCHES)
    return Done(started=len(decision.new), drained=len(drained), assigned=len(changed), resized=resized)


async def _drain(connection: AsyncConnection, leaving: Sequence[UUID], reason: str) -> set[UUID]:
    if not leaving:
        return set()
    return {told.worker_id for told in await directing.direct(connection, Crew(ids=leaving), Directive.DRAIN, reason)}


def _changed(decision: Decision, workers: Sequence[Worker]) -> Iterator[Given]:
    """Nearly all have what they are to get, so nothing is made, nor called, to find that out."""
    for worker in workers:
        place = decision.places.get(worker.id)
        if place is not None and (
            worker.assigned_agent != place.agent
            or worker.assigned_memory_gb != place.memory_gb
            or worker.assigned_cpu_cores != place.cpu_cores
            or worker.assigned_compute_seconds != place.compute_seconds
        ):
            yield Given(worker.id, place.agent.value, place.memory_gb, place.cpu_cores, place.compute_seconds)


async def _request(
    connection: AsyncConnection, decision: Decision, pool: Pool, started: Mapping[Host, int], owed: Owed
) -> None:
    if not decision.new:
        return
    ids = iter(decision.new)
    requested = []
    for host, count in started.items():
        for slot in await new_slots(connection, pool, host, owed[host], count) if count else ():
            worker_id = next(ids)
            requested.append(requested_on(worker_id, host, slot, decision.places[worker_id]))
    await request(connection, requested)


async def request(connection: AsyncConnection, requested: Sequence[Requested]) -> None:
    """Write down that these workers are wanted; whoever bears one of their names is over."""
    for name in await members.named(connection, [one.name for one in requested]):
        await worker_operations.supersede(connection, name)
    await members.request(connection, requested)


def requested_on(worker_id: UUID, host: Host, slot: int, place: Place | None = None) -> Requested:
    """A worker for this slot of a host; without a place the next decision gives it one."""
    return Requested(
        id=worker_id,
        name=f"{host.host}-{slot}",
        provisioner=host.provisioner,
        slot=slot,
        host=host.host,
        agent=place.agent.value if place else None,
        memory_gb=place.memory_gb if place else None,
        cpu_cores=place.cpu_cores if place else None,
        compute_seconds=place.compute_seconds if place else None,
    )


async def new_slots(connection: AsyncConnection, pool: Pool, host: Host, owed: int, count: int) -> list[int]:
    """Slots for new workers, beyond those that the host owes a worker, and none that rests."""
    resting = await fleet_operations.asleep(connection, host.provisioner, host.host)
    bereaved = await fleet.bereaved(connection, host.host)
    there = [
        PoolMember(worker_id=w.id, slot=w.slot, leaving=False, busy=w.busy) for w in pool.of(host) if w.slot is not None
    ]
    free = free_slots(there, bereaved, owed + count + len(resting))
    return [slot for slot in free[owed:] if slot not in resting][:count]


def _leavers(decision: Decision, pool: Pool) -> list[UUID]:
    """Who goes: the idle, then the busy where the pool is too large; nobody that somebody else has started."""
    if not decision.plan.remove_idle and not decision.plan.drain_busy:
        return []
    ready = [w for w in pool.workers if w.state == WorkerState.READY and w.provisioner is not None]
    ready.sort(key=lambda worker: -(worker.slot or 0))
    idle = [worker.id for worker in ready if not worker.busy]
    busy = [worker.id for worker in ready if worker.busy]
    return [*idle[: decision.plan.remove_idle], *busy[: decision.plan.drain_busy]]


async def _resize(
    connection: AsyncConnection, pool: Pool, owed: Owed, started: Mapping[Host, int], drained: set[UUID]
) -> int:
    resized = 0
    for host in pool.hosts:
        staying = sum(w.state != WorkerState.DRAINING and w.id not in drained for w in pool.of(host))
        size = staying + owed[host] + started.get(host, 0)
        if size != host.size:
            await hosts.resize(connection, host, size)
            resized += 1
    return resized


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
