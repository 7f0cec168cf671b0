"""Keeps the managed pool of a host at its size: decides in a transaction, starts and ends processes outside of it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.admin.service.access import create_launch_key
from app.db import notify
from app.db.database import Database, now
from app.db.uuids import time_ordered_uuid
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.provisioners.base import Provisioner
from app.workers.provisioners.last_error import last_error
from app.workers.rules.hosts import Host
from app.workers.rules.pool import CrashPolicy, PoolSnapshot, RestingSlot, due_slots, plan, rests
from app.workers.rules.recovery import Recovery, RecoveryPolicy, assess
from app.workers.rules.workers import Directive
from app.workers.service import workers as worker_operations
from app.workers.store import directives, hosts, pool, roster, workers
from app.workers.store.directives import WorkerSelector
from app.workers.store.hosts import Report
from app.workers.store.roster import NewWorker

_CRASHES = CrashPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Numbers of live workers by state, the hosts that start workers, the slots that rest after crashes, recovery."""

    states: Mapping[str, int]
    hosts: Sequence[Host]
    resting: Sequence[RestingSlot]
    recovery: Recovery


async def status(connection: AsyncConnection) -> Status:
    """State of the pool on all hosts."""
    deaths = await pool.young_deaths(connection, _CRASHES)
    return Status(
        states=await workers.workers_by_state(connection),
        hosts=await hosts.live(connection),
        resting=rests(deaths, _CRASHES, await now(connection)),
        recovery=await recovery(connection),
    )


async def tick(connection: AsyncConnection, initial: Mode, report: Report) -> dict[str, Any]:
    """Record the report of this host, and request or drain workers until it has as many as it is to keep.

    That number is up to the scaling loop; here only lost workers are replaced.
    """
    await hosts.lock_pool(connection)
    max_workers = (await config.current(connection, initial)).document.worker_pool.max_workers
    await pool.record_missed_first_leases(connection)
    members = await pool.members(connection, report.provisioner, report.host)
    staying = sum(not member.leaving for member in members)
    snapshot = PoolSnapshot(
        members=members,
        size=await hosts.record_report(connection, report, staying),
        resting_slots=await resting_slots(connection, report.provisioner, report.host),
        vacated_slots=await pool.vacated_slots(connection, report.host),
        # The maximum is that of the whole pool, whichever hosts its workers are on.
        room=max_workers - await roster.count(connection),
    )
    pool_plan = plan(snapshot)
    for slot in pool_plan.start:
        await _request(connection, report, slot)
    if pool_plan.start:
        notify.note(connection, notify.LAUNCHES)
    elif snapshot.vacated_slots and not due_slots(snapshot):
        # The pool was made smaller before a lost worker was replaced.
        await pool.close_unneeded_replacements(connection, report.host, snapshot.vacated_slots)
    if pool_plan.drain:
        await directives.direct(connection, WorkerSelector(ids=pool_plan.drain), Directive.DRAIN, pool_plan.reason)
    return {"members": len(members), "started": len(pool_plan.start), "drained": len(pool_plan.drain)}


async def _request(connection: AsyncConnection, report: Report, slot: int) -> None:
    worker = NewWorker(
        id=time_ordered_uuid(), provisioner=report.provisioner, host=report.host, slot=slot, inherits=True
    )
    # A former worker of the slot that still counts as live is lost now.
    await worker_operations.supersede(connection, [worker.name])
    await roster.request(connection, [worker])
    await pool.fill_replacement(connection, worker.id, slot=slot, name=worker.name)


async def leave(database: Database, provisioner: Provisioner) -> None:
    """Remove this host from the pool: it starts no more workers until it reports again."""
    async with database.transaction() as connection:
        await hosts.remove(connection, provisioner.kind, provisioner.host)


async def provision(database: Database, provisioner: Provisioner) -> int:
    """Start the requested workers; return their number. No transaction is open while a process starts.

    A crash after the claim leaves a row whose start deadline ends it; a crash after the start leaves a process that
    carries our mark, so that the next start of the control plane finds it.
    """
    async with database.transaction() as connection:
        launches = await pool.claim_launches(connection, provisioner.kind, provisioner.host)
        # Each process gets a key that registers this worker and no other, once, so that none needs the pool's.
        keys = [await create_launch_key(connection, launch.worker_id) for launch in launches]
    for launch, key in zip(launches, keys, strict=True):
        try:
            handle = await provisioner.start(launch.worker_id, launch.name, key)
        except (OSError, psutil.Error) as error:
            # At once, so that the slot gets another without waiting for the start deadline.
            await report_exit(database, launch.worker_id, f"could not be started: {error}", WorkerState.FAILED)
            continue
        async with database.transaction() as connection:
            await pool.record_start(connection, launch.worker_id, handle)
    return len(launches)


async def report_exit(
    database: Database,
    worker_id: UUID,
    reason: str,
    state: WorkerState = WorkerState.LOST,
    *,
    error: str | None = None,
) -> None:
    """Record the exit of a process of ours, and the last error in its log; unless it has ended in order, it is lost."""
    async with database.transaction() as connection:
        await worker_operations.record_exit(connection, worker_id, state, reason)
        if error is not None:
            await workers.add_error(connection, worker_id, error)


async def reconcile(database: Database, provisioner: Provisioner, stop_grace_seconds: float) -> dict[str, int]:
    """Make the processes on this host and the rows in the database agree; either may be ahead after a crash.

    Running workers of an earlier run are adopted, dead ones reported, and processes without a live row ended. Those of
    another machine that keeps the pool of the same name are left to it, and to their heartbeats.
    """
    # Rows are written before processes start, so reading the processes first never takes a new one for an orphan.
    running = await provisioner.find()
    async with database.transaction() as connection:
        managed_workers = await pool.managed_workers(connection, provisioner.kind, provisioner.host)
    counts = {"adopted": 0, "gone": 0, "ended": 0, "foreign": 0}
    for worker in managed_workers:
        process = running.pop(worker.worker_id, None)
        if worker.handle is not None and provisioner.is_foreign(worker.handle, worker.silent_seconds):
            counts["foreign"] += 1
            provisioner.tell_of_twin(worker.handle, worker.heard_seconds_ago)
        elif worker.handle is not None and not provisioner.is_running(worker.handle):
            counts["gone"] += 1
            log_file = worker.handle.get("log")
            error = await asyncio.to_thread(last_error, Path(log_file)) if log_file else None
            await report_exit(database, worker.worker_id, "the process was gone when we looked", error=error)
        elif (handle := worker.handle or process) is not None:
            counts["adopted"] += await _adopt(database, provisioner, worker, handle)
            # It was to stop before we crashed, and the grace that would have ended it was lost with us.
            if worker.directive in (Directive.STOP, Directive.RESTART):
                provisioner.stop(worker.worker_id, handle, stop_grace_seconds)
    for worker_id, handle in running.items():
        counts["ended"] += 1
        provisioner.stop(worker_id, handle, grace_seconds=2.0)
    return counts


async def _adopt(
    database: Database, provisioner: Provisioner, worker: pool.ManagedWorker, handle: dict[str, Any]
) -> int:
    provisioner.adopt(worker.worker_id, handle)
    # Without a handle the process had started when we crashed, but its row did not say so yet.
    if worker.handle is not None:
        return 0
    async with database.transaction() as connection:
        await pool.record_start(connection, worker.worker_id, handle)
    return 1


async def resting_slots(connection: AsyncConnection, provisioner: str, host: str) -> frozenset[int]:
    """The slots of a host that must not start a worker yet, since their workers died young."""
    deaths = await pool.young_deaths(connection, _CRASHES, provisioner=provisioner, host=host)
    return frozenset(slot.slot for slot in rests(deaths, _CRASHES, await now(connection)))


async def recovery(connection: AsyncConnection) -> Recovery:
    """Assess whether lost workers are replaced, or the pool works at reduced capacity."""
    policy = RecoveryPolicy()
    return assess(await pool.recovery_snapshot(connection, policy), policy)
