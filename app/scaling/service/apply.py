"""Letting a decision happen: workers assigned, asked for, and told to go; and the size that each host keeps.

Whoever counts the pool and adds to it holds its lock: two could fill the same room otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.states import WorkerState
from app.kernel.text import plural
from app.scaling.rules.decision import Decision
from app.workers.rules.assignment import Assignment
from app.workers.rules.hosts import Host, spread
from app.workers.rules.workers import Directive
from app.workers.service import limits
from app.workers.service import pool as fleet_operations
from app.workers.service.requests import Owed, new_slots, request
from app.workers.service.roster import Pool
from app.workers.store import directives, hosts, roster
from app.workers.store.directives import WorkerSelector
from app.workers.store.roster import ASSIGNED_FIELDS, NewWorker, Worker


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


async def notes(connection: AsyncConnection, owed: Owed) -> list[str]:
    """What the reasons of a decision should tell of workers that are missing."""
    told = []
    for host, missing in owed.items():
        if missing and (resting := await fleet_operations.asleep(connection, host.provisioner, host.host)):
            workers, slots = plural(missing, "worker"), plural(len(resting), "slot")
            told.append(f"{host.host} owes {workers}; {slots} there rest, as their workers died young")
    return told


async def carry_out(connection: AsyncConnection, decision: Decision, pool: Pool, owed: Owed) -> Done:
    """Write down what the decision wants of hosts and workers; the caller holds the pool."""
    changed, leaving = _changed(decision, pool.staying), _leavers(decision, pool)
    # Those that change and those that leave together, or a batch of heartbeats could wait for us while we wait for it.
    await roster.lock(connection, {*leaving, *changed})
    await roster.assign(connection, changed)
    started = spread(pool.hosts, len(decision.new), limits.POLICY)
    await _request(connection, decision, pool, started, owed)
    drained = await _drain(connection, leaving, decision.reasons[0])
    resized = await _resize(connection, pool, owed, started, drained)
    if decision.new or drained:
        notify.note(connection, notify.FLEET, notify.LAUNCHES)
    return Done(started=len(decision.new), drained=len(drained), assigned=len(changed), resized=resized)


async def _drain(connection: AsyncConnection, leaving: Sequence[UUID], reason: str) -> set[UUID]:
    if not leaving:
        return set()
    return {
        told.worker_id
        for told in await directives.direct(connection, WorkerSelector(ids=leaving), Directive.DRAIN, reason)
    }


def _changed(decision: Decision, workers: Sequence[Worker]) -> dict[UUID, Assignment]:
    """Assignments of the workers whose own is another; compared as tuples, since nearly all have theirs already."""
    return {
        worker.id: assignment
        for worker in workers
        if (assignment := decision.assignments.get(worker.id)) is not None and worker[ASSIGNED_FIELDS] != assignment
    }


async def _request(
    connection: AsyncConnection, decision: Decision, pool: Pool, started: Mapping[Host, int], owed: Owed
) -> None:
    if not decision.new:
        return
    ids = iter(decision.new)
    new = []
    for host, count in started.items():
        for slot in await new_slots(connection, pool, host, owed[host], count) if count else ():
            worker_id = next(ids)
            assignment = decision.assignments[worker_id]
            new.append(
                NewWorker(id=worker_id, provisioner=host.provisioner, host=host.host, slot=slot, assignment=assignment)
            )
    await request(connection, new)


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
