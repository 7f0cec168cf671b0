"""Keeping the managed pool at its size: decide in a transaction, start and end processes outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.fleet import CrashPolicy, FleetSnapshot, RestingSlot, plan, resting
from app.domain.workers import Directive, WorkerState
from app.operations import workers as worker_operations
from app.operations.identifiers import time_ordered_uuid
from app.provisioners.base import Provisioner
from app.store import announcements, directing, fleet, workers
from app.store.database import Database, now
from app.store.directing import Crew

_CRASHES = CrashPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The live workers by state, and the places that get none for now because their workers keep dying."""

    states: Mapping[str, int]
    resting: Sequence[RestingSlot]


async def status(connection: AsyncConnection) -> Status:
    """All workers, and the managed pools of all hosts."""
    deaths = await fleet.young_deaths(connection, _CRASHES)
    return Status(states=await fleet.states(connection), resting=resting(deaths, _CRASHES, await now(connection)))


async def tick(connection: AsyncConnection, *, provisioner: str, host: str, size: int) -> dict[str, Any]:
    """Compare the pool with its size and write down what is wanted."""
    members = await fleet.members(connection, provisioner, host)
    deaths = await fleet.young_deaths(connection, _CRASHES, provisioner=provisioner, host=host)
    asleep = frozenset(slot.slot for slot in resting(deaths, _CRASHES, await now(connection)))
    decided = plan(FleetSnapshot(members=members, size=size, resting_slots=asleep))
    for slot in decided.start:
        worker_id = time_ordered_uuid()
        name = f"{host}-{slot}"
        await worker_operations.supersede(connection, name)
        await workers.request(connection, worker_id, name=name, slot=slot, provisioner=provisioner, host=host)
        await fleet.answer_replacement(connection, worker_id, slot=slot, name=name)
    if decided.start:
        announcements.note(connection, announcements.LAUNCHES)
    if decided.drain:
        await directing.direct(connection, Crew(ids=decided.drain), Directive.DRAIN, decided.reason)
    return {"members": len(members), "started": len(decided.start), "drained": len(decided.drain)}


async def provision(database: Database, provisioner: Provisioner) -> int:
    """Start what is requested; returns how many. No transaction is open while a process starts.

    A crash after the claim leaves a row whose start deadline ends it; a crash after the start leaves a process that
    carries its token, so that the next start of the control plane finds it.
    """
    async with database.transaction() as connection:
        launches = await fleet.claim_launches(connection, provisioner.kind, provisioner.host)
    for launch in launches:
        try:
            handle = await provisioner.start(launch.worker_id, launch.name)
        except OSError as error:
            await report_exit(database, launch.worker_id, f"could not be started: {error}", WorkerState.FAILED)
            continue
        async with database.transaction() as connection:
            await fleet.started(connection, launch.worker_id, handle)
    return len(launches)


async def report_exit(database: Database, worker_id: UUID, reason: str, state: WorkerState = WorkerState.LOST) -> None:
    """A process of ours has ended. One that said goodbye is over already; any other that was to go on is lost."""
    async with database.transaction() as connection:
        await worker_operations.see_exit(connection, worker_id, state, reason)


async def reconcile(database: Database, provisioner: Provisioner, stop_grace_seconds: float) -> dict[str, int]:
    """Make what runs on this host and what the database says agree; both may be ahead after a crash.

    Living workers of an earlier run are adopted, dead ones reported, and processes that nobody wants any more ended.
    Rows are written before processes start, so looking at the processes first never takes a new one for an orphan.
    """
    running = await provisioner.find()
    async with database.transaction() as connection:
        managed = await fleet.managed(connection, provisioner.kind, provisioner.host)
    counts = {"adopted": 0, "gone": 0, "ended": 0}
    for worker in managed:
        found = running.pop(worker.worker_id, None)
        if worker.handle is not None and not provisioner.is_running(worker.handle):
            counts["gone"] += 1
            await report_exit(database, worker.worker_id, "the process was gone when we looked")
        elif (handle := worker.handle or found) is not None:
            counts["adopted"] += await _adopt(database, provisioner, worker, handle)
            if worker.directive in (Directive.STOP, Directive.RESTART):
                provisioner.stop(worker.worker_id, handle, stop_grace_seconds)
    for worker_id, handle in running.items():
        counts["ended"] += 1
        provisioner.stop(worker_id, handle, grace_seconds=2.0)
    return counts


async def _adopt(database: Database, provisioner: Provisioner, worker: fleet.Managed, handle: dict[str, Any]) -> int:
    provisioner.adopt(worker.worker_id, handle)
    if worker.handle is not None:
        return 0
    async with database.transaction() as connection:
        await fleet.started(connection, worker.worker_id, handle)
    return 1
