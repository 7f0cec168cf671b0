"""Every call on a lease is a compare-and-set on task, token and worker; whoever comes too late changes nothing."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.errors import ConvenerError
from app.kernel.ids import TaskId, WorkerId
from app.kernel.states import WorkerState
from app.queue.errors import LeaseEnded, LeaseExpired, LeaseNotFound, TaskCancelled
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import expiry, tasks
from app.queue.service import leases as service
from app.queue.service.leases import EndedLease, LeaseService
from app.queue.store.claims import Lease
from app.workers.service import workers
from tests.support.factories import completion, failed, fence, holding, leased, ready_worker, renewal, turn
from tests.support.sql import execute, fetch


async def _release(database: Database, worker: WorkerId, lease: Lease) -> EndedLease:
    async with database.transaction() as connection:
        return await service.release(connection, fence(worker, lease), "not now")


async def _expire(database: Database) -> None:
    await execute(database, "UPDATE tasks SET lease_expires_at = now() WHERE worker_id IS NOT NULL")


async def _sweep(database: Database) -> None:
    async with database.transaction() as connection:
        await expiry.sweep(connection, LeasePolicy(), turn())


async def _cancel(database: Database, lease: Lease) -> None:
    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "changed my mind")


Call = Callable[[Database, LeaseService, WorkerId, Lease], Awaitable[object]]
_CALLS: dict[str, Call] = {
    "start": lambda database, desk, worker, lease: desk.renew(renewal(worker, lease)),
    "complete": lambda database, desk, worker, lease: desk.complete(completion(worker, lease)),
    "fail": lambda database, desk, worker, lease: failed(database, worker, lease),
    "release": lambda database, desk, worker, lease: _release(database, worker, lease),
}
every_call = pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS)


async def _refused(
    call: Call, database: Database, desk: LeaseService, worker: WorkerId, lease: Lease
) -> type[ConvenerError]:
    """The error that the call ends in, having changed nothing."""
    before = await _all(database)
    with pytest.raises(ConvenerError) as refusal:
        await call(database, desk, worker, lease)
    assert await _all(database) == before
    return refusal.type


async def _all(database: Database) -> list[Any]:
    return [await fetch(database, f"SELECT * FROM {name}") for name in ("tasks", "task_history", "events")]


@every_call
async def test_a_lease_that_never_was(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    unknown = lease._replace(task_id=TaskId(uuid4()))
    assert await _refused(call, database, desk, worker, unknown) is LeaseNotFound


@every_call
async def test_another_workers_lease_looks_like_none(database: Database, desk: LeaseService, call: Call) -> None:
    _, lease = await holding(database)
    stranger = await ready_worker(database)
    assert await _refused(call, database, desk, stranger, lease) is LeaseNotFound


@every_call
async def test_a_token_that_is_yet_to_come(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    assert await _refused(call, database, desk, worker, lease._replace(token=lease.token + 1)) is LeaseNotFound


@every_call
async def test_an_expired_lease_before_the_next_sweep(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await _expire(database)
    assert await _refused(call, database, desk, worker, lease) is LeaseExpired


@every_call
async def test_an_expired_lease_that_went_back_to_the_queue(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await _expire(database)
    await _sweep(database)
    assert await _refused(call, database, desk, worker, lease) is LeaseExpired


@every_call
async def test_an_expired_lease_whose_task_is_with_another_worker(
    database: Database, desk: LeaseService, call: Call
) -> None:
    worker, lease = await holding(database)
    await _expire(database)
    await _sweep(database)
    await leased(database, await ready_worker(database))
    assert await _refused(call, database, desk, worker, lease) is LeaseExpired


@every_call
async def test_an_older_lease_of_the_worker_that_has_the_task_again(
    database: Database, desk: LeaseService, call: Call
) -> None:
    """The attempt is the same, the worker is the same; only the token tells the two leases apart."""
    worker, lease = await holding(database)
    await _expire(database)
    await _sweep(database)
    again = await leased(database, worker)
    assert (again.task_id, again.attempt, again.token) == (lease.task_id, lease.attempt, lease.token + 1)
    assert await _refused(call, database, desk, worker, lease) is LeaseExpired


@every_call
async def test_a_cancelled_task(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await _cancel(database, lease)
    assert await _refused(call, database, desk, worker, lease) is TaskCancelled


@every_call
async def test_a_lost_workers_lease(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await workers.lose(connection, worker, WorkerState.LOST, "silent")
    assert await _refused(call, database, desk, worker, lease) is LeaseExpired


@pytest.mark.parametrize("call", [_CALLS[name] for name in ("start", "fail", "release")])
async def test_a_completed_task(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    assert await _refused(call, database, desk, worker, lease) is LeaseEnded


@pytest.mark.parametrize("call", [_CALLS[name] for name in ("start", "complete", "release")])
async def test_a_lease_that_ended_in_failure(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await failed(database, worker, lease)
    assert await _refused(call, database, desk, worker, lease) is LeaseEnded


@pytest.mark.parametrize("call", [_CALLS[name] for name in ("start", "complete", "fail")])
async def test_a_lease_that_was_released(database: Database, desk: LeaseService, call: Call) -> None:
    worker, lease = await holding(database)
    await _release(database, worker, lease)
    assert await _refused(call, database, desk, worker, lease) is LeaseEnded
