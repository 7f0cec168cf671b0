"""Keeping the managed pool at its size: decide in a transaction, start and end processes outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.db import notify
from app.db.database import Database, now
from app.db.uuids import time_ordered_uuid
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.provisioners.base import Provisioner
from app.workers.rules.hosts import Host
from app.workers.rules.pool import CrashPolicy, FleetSnapshot, RestingSlot, plan, resting
from app.workers.rules.workers import Directive
from app.workers.service import workers as worker_operations
from app.workers.store import directives, hosts, pool, roster, workers
from app.workers.store.directives import WorkerSelector
from app.workers.store.hosts import Report
from app.workers.store.roster import NewWorker

_CRASHES = CrashPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The live workers by state, the hosts that start some, and the places that rest because workers keep dying."""

    states: Mapping[str, int]
    hosts: Sequence[Host]
    resting: Sequence[RestingSlot]


async def status(connection: AsyncConnection) -> Status:
    """All workers, and the managed pools of all hosts."""
    deaths = await pool.young_deaths(connection, _CRASHES)
    return Status(
        states=await workers.workers_by_state(connection),
        hosts=await hosts.live(connection),
        resting=resting(deaths, _CRASHES, await now(connection)),
    )


async def tick(connection: AsyncConnection, initial: Mode, said: Report) -> dict[str, Any]:
    """Say how this host is, and write down what it takes to have as many workers as it is to keep.

    How many that is, the scaling loop decides; here only what was lost is replaced.
    """
    await hosts.lock_pool(connection)
    most = (await config.current(connection, initial)).document.worker_pool.max_workers
    members = await pool.members(connection, said.provisioner, said.host)
    staying = sum(not member.leaving for member in members)
    snapshot = FleetSnapshot(
        members=members,
        size=await hosts.report(connection, said, staying),
        resting_slots=await resting_slots(connection, said.provisioner, said.host),
        vacated_slots=await pool.vacated_slots(connection, said.host),
        room=most - await roster.count(connection),
    )
    decided = plan(snapshot)
    for slot in decided.start:
        await _request(connection, said, slot)
    if decided.start:
        notify.note(connection, notify.LAUNCHES)
    if decided.drain:
        await directives.direct(connection, WorkerSelector(ids=decided.drain), Directive.DRAIN, decided.reason)
    return {"members": len(members), "started": len(decided.start), "drained": len(decided.drain)}


async def _request(connection: AsyncConnection, said: Report, slot: int) -> None:
    worker = NewWorker(id=time_ordered_uuid(), provisioner=said.provisioner, host=said.host, slot=slot, inherits=True)
    await worker_operations.supersede(connection, worker.name)
    await roster.request(connection, [worker])
    await pool.answer_replacement(connection, worker.id, slot=slot, name=worker.name)


async def leave(database: Database, provisioner: Provisioner) -> None:
    """This host starts no more workers until it says so again."""
    async with database.transaction() as connection:
        await hosts.leave(connection, provisioner.kind, provisioner.host)


async def provision(database: Database, provisioner: Provisioner) -> int:
    """Start what is requested; returns how many. No transaction is open while a process starts.

    A crash after the claim leaves a row whose start deadline ends it; a crash after the start leaves a process that
    carries its token, so that the next start of the control plane finds it.
    """
    async with database.transaction() as connection:
        launches = await pool.claim_launches(connection, provisioner.kind, provisioner.host)
    for launch in launches:
        try:
            handle = await provisioner.start(launch.worker_id, launch.name)
        except OSError as error:
            await report_exit(database, launch.worker_id, f"could not be started: {error}", WorkerState.FAILED)
            continue
        async with database.transaction() as connection:
            await pool.started(connection, launch.worker_id, handle)
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
        managed = await pool.managed(connection, provisioner.kind, provisioner.host)
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


async def _adopt(database: Database, provisioner: Provisioner, worker: pool.Managed, handle: dict[str, Any]) -> int:
    provisioner.adopt(worker.worker_id, handle)
    if worker.handle is not None:
        return 0
    async with database.transaction() as connection:
        await pool.started(connection, worker.worker_id, handle)
    return 1


async def resting_slots(connection: AsyncConnection, provisioner: str, host: str) -> frozenset[int]:
    """The slots of a host that must not start a worker yet, since their workers died young."""
    deaths = await pool.young_deaths(connection, _CRASHES, provisioner=provisioner, host=host)
    return frozenset(slot.slot for slot in resting(deaths, _CRASHES, await now(connection)))
