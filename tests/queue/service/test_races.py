"""Two transactions want the same row at once; PostgreSQL's own lock view tells when the second one waits."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.errors import DatabaseUnavailable
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState, WorkerState
from app.queue.errors import LeaseExpired, TaskCancelled, TaskConflict, TaskFinished
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import expiry, tasks
from app.queue.service.leases import Failure, LeaseService, fail
from app.queue.service.tasks import Submitted
from app.queue.store import completions
from app.queue.store import tasks as task_store
from app.workers.service import workers
from app.workers.service.workers import Heartbeats
from app.workers.store import workers as worker_store
from tests.support.factories import (
    beat,
    completion,
    everything,
    fence,
    holding,
    leased,
    ready_worker,
    registration,
    submission,
    turn,
)
from tests.support.sql import execute, until_blocked, value


async def _cancel(database: Database, task_id: UUID) -> None:
    async with database.transaction() as connection:
        await tasks.cancel(connection, task_id, "changed my mind")


async def _lose(database: Database, worker_id: WorkerId) -> None:
    async with database.transaction() as connection:
        await workers.lose(connection, worker_id, WorkerState.LOST, "silent")


async def _submit(database: Database, task_id: UUID, **changes: Any) -> Submitted:
    async with database.transaction() as connection:
        return (await tasks.submit(connection, [submission(id=task_id, **changes)]))[0]


class _Completing:
    """A completion that has done its work and commits when told to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, call: completions.Completion) -> None:
        self._connection = await self._database.connect()
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        assert await completions.complete(self._connection, [call])

    async def end(self, *, commit: bool = True) -> None:
        await (self._transaction.commit() if commit else self._transaction.rollback())
        await self._connection.close()

    async def hold_while(self, other: Callable[[], Coroutine[Any, Any, Any]], *, commit: bool = True) -> Any:
        """Start `other`, end this once that waits for it, and return its outcome."""
        waiting = asyncio.create_task(other())
        await until_blocked(self._database)
        assert not waiting.done()
        await self.end(commit=commit)
        return await waiting


async def _tries(call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """A call on a lease that has met the lock: it waits for nobody, and tries again until the lock is gone."""
    trying = asyncio.create_task(call)
    await asyncio.sleep(0.1)
    assert not trying.done()
    return trying


@pytest.fixture
def completing(database: Database) -> _Completing:
    return _Completing(database)


async def test_a_completion_that_waits_for_a_cancellation_is_refused(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "changed my mind")
        waiting = await _tries(desk.complete(completion(worker, lease)))
    with pytest.raises(TaskCancelled):
        await waiting
    task = await everything(database, lease.task_id)
    assert (task["state"], task["result"]) == ("cancelled", None)


async def test_a_cancellation_that_waits_for_a_completion_is_refused(
    database: Database, completing: _Completing
) -> None:
    worker, lease = await holding(database)
    await completing.begin(completion(worker, lease))
    with pytest.raises(TaskFinished):
        await completing.hold_while(lambda: _cancel(database, lease.task_id))
    assert (await everything(database, lease.task_id))["state"] == "completed"


async def test_a_completion_that_rolls_back_leaves_the_task_to_the_cancellation(
    database: Database, completing: _Completing
) -> None:
    worker, lease = await holding(database)
    await completing.begin(completion(worker, lease))
    await completing.hold_while(lambda: _cancel(database, lease.task_id), commit=False)
    assert (await everything(database, lease.task_id))["state"] == "cancelled"


async def test_of_two_completions_one_is_accepted_and_the_same_again_is_repeated(
    database: Database, desk: LeaseService, completing: _Completing
) -> None:
    worker, lease = await holding(database)
    await completing.begin(completion(worker, lease))
    second = await _tries(desk.complete(completion(worker, lease)))
    await completing.end()
    await second
    assert await value(database, "SELECT count(*) FROM task_history") == 1
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.completed'") == 1


async def test_a_lost_workers_completion_that_came_first_counts(database: Database, completing: _Completing) -> None:
    worker, lease = await holding(database)
    await completing.begin(completion(worker, lease))
    await completing.hold_while(lambda: _lose(database, worker))
    task = await everything(database, lease.task_id)
    assert (task["state"], task["rescues"], task["attempts"]) == ("completed", 0, [])
    assert await value(database, "SELECT state FROM workers WHERE id = $1", worker) == "lost"


async def test_a_lost_workers_completion_that_came_second_is_refused(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await workers.lose(connection, worker, WorkerState.LOST, "silent")
        waiting = await _tries(desk.complete(completion(worker, lease)))
    with pytest.raises(LeaseExpired):
        await waiting
    assert (await everything(database, lease.task_id))["state"] == "pending"


async def test_a_heartbeat_that_waits_for_the_sweep_learns_that_the_lease_is_gone(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker, lease = await holding(database)
    await execute(database, "UPDATE tasks SET lease_expires_at = now()")
    async with database.transaction() as connection:
        assert (await expiry.sweep(connection, LeasePolicy(), turn()))["taken_back"] == 1
        waiting = await _tries(heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token)))
    pulse = await waiting
    assert (pulse.state, pulse.lease_state, pulse.lease_expires_at) == (WorkerState.READY, None, None)


async def test_the_sweep_passes_over_a_lease_that_is_being_completed(
    database: Database, completing: _Completing
) -> None:
    worker, lease = await holding(database)
    await completing.begin(completion(worker, lease))
    late = LeasePolicy(deadline_grace_seconds=-3600)
    async with database.transaction() as connection:
        assert (await expiry.sweep(connection, late, turn()))["taken_back"] == 0
    await completing.end()
    assert (await everything(database, lease.task_id))["state"] == "completed"


async def test_of_two_submits_of_one_id_the_second_waits_and_finds_the_task(database: Database) -> None:
    task_id = uuid4()
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(id=task_id)])
        second = asyncio.create_task(_submit(database, task_id))
        third = asyncio.create_task(_submit(database, task_id, goal_id="another"))
        await until_blocked(database, 2)
    assert await second == Submitted(id=task_id, state=TaskState.PENDING, created=False)
    with pytest.raises(TaskConflict):
        await third
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert await value(database, "SELECT count(*) FROM every_event") == 1


async def test_a_submit_that_waited_for_one_that_failed_creates_the_task(database: Database) -> None:
    task_id = uuid4()
    async with database.engine.connect() as connection:
        await tasks.submit(connection, [submission(id=task_id)])
        second = asyncio.create_task(_submit(database, task_id, goal_id="another"))
        await until_blocked(database)
        await connection.rollback()
    assert (await second).created
    assert (await everything(database, task_id))["goal_id"] == "another"


async def test_a_submit_that_waits_for_the_completion_of_its_id_finds_the_finished_task(
    database: Database, completing: _Completing
) -> None:
    task_id = (await _submit(database, uuid4())).id
    worker = await ready_worker(database)
    await completing.begin(completion(worker, await leased(database, worker)))
    found = await completing.hold_while(lambda: _submit(database, task_id))
    assert found == Submitted(id=task_id, state=TaskState.COMPLETED, created=False)
    assert await value(database, "SELECT count(*) FROM tasks") == 0
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.submitted'") == 1


async def test_a_submit_that_waits_for_the_completion_of_its_id_notices_another_body(
    database: Database, completing: _Completing
) -> None:
    task_id = (await _submit(database, uuid4())).id
    worker = await ready_worker(database)
    await completing.begin(completion(worker, await leased(database, worker)))
    with pytest.raises(TaskConflict):
        await completing.hold_while(lambda: _submit(database, task_id, goal_id="another"))
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_a_submit_that_waits_for_a_completion_that_fails_finds_the_running_task(
    database: Database, completing: _Completing
) -> None:
    task_id = (await _submit(database, uuid4())).id
    worker = await ready_worker(database)
    await completing.begin(completion(worker, await leased(database, worker)))
    found = await completing.hold_while(lambda: _submit(database, task_id), commit=False)
    assert found == Submitted(id=task_id, state=TaskState.EXECUTING, created=False)


async def test_of_batches_with_the_same_ids_in_another_order_one_may_have_to_try_again(database: Database) -> None:
    """Each inserts a row that the other waits for, so that PostgreSQL has to end one of them."""
    ids = [uuid4() for _ in range(500)]

    async def batch(chosen: Sequence[UUID]) -> list[Submitted]:
        async with database.transaction() as connection:
            return await tasks.submit(connection, [submission(id=task_id) for task_id in chosen])

    outcomes = await asyncio.gather(batch(ids), batch(ids[::-1]), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(refused) <= 1
    assert all(isinstance(error, DatabaseUnavailable) for error in refused)
    assert [task.id for task in await batch(ids)] == ids
    assert await value(database, "SELECT count(*) FROM tasks") == len(ids)


async def test_two_workers_that_register_one_name_at_once_become_two_incarnations(database: Database) -> None:
    async def register() -> workers.WorkerIdentity:
        async with database.transaction() as connection:
            return await workers.register(connection, registration("twin"), None)

    async with database.transaction() as connection:
        first = await workers.register(connection, registration("twin"), None)
        second = asyncio.create_task(register())
        await until_blocked(database)
    assert (first.incarnation, (await second).incarnation) == (1, 2)
    assert await value(database, "SELECT state FROM workers WHERE id = $1", first.worker_id) == "lost"


async def test_a_failure_that_waits_for_a_cancellation_changes_nothing(database: Database) -> None:
    worker, lease = await holding(database)

    async def failing() -> None:
        async with database.transaction() as connection:
            await fail(connection, fence(worker, lease), Failure(code="x", message="x", retryable=True))

    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "changed my mind")
        waiting = asyncio.create_task(failing())
        await until_blocked(database)
    with pytest.raises(TaskCancelled):
        await waiting
    assert [a["outcome"] for a in (await everything(database, lease.task_id))["attempts"]] == ["cancelled"]


@pytest.mark.parametrize("turned", [False, True])
async def test_heartbeats_wait_for_no_lock_whatever_their_order(database: Database, turned: bool) -> None:
    """So they deadlock with nothing that locks tasks, and one that is locked holds up no other."""
    held = [await holding(database) for _ in range(8)]
    beats = [beat(worker, task_id=lease.task_id, token=lease.token) for worker, lease in held]
    locked_worker, locked = held[3]
    async with database.transaction() as connection:
        assert await task_store.lock(connection, locked.task_id)
        pool = await database.pool()
        async with pool.acquire() as hot:
            replies = await worker_store.record_heartbeats(hot, beats[::-1] if turned else beats, 15.0)  # type: ignore[arg-type]
    assert [worker for worker, _ in held if replies[worker].lease_state is None] == [locked_worker]
