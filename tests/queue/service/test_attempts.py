"""How an attempt ends: completed once, failed and tried again, given up, or released unharmed."""

import asyncio
from dataclasses import replace

import pytest

from app.db.database import Database
from app.kernel.errors import ConvenerError
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState
from app.queue.errors import LeaseEnded, LeaseNotFound
from app.queue.rules.tasks import RetryPolicy
from app.queue.service import leases as service
from app.queue.service.leases import EndedLease, LeaseService
from app.queue.store.claims import Lease
from tests.support.factories import (
    FAILURE,
    completion,
    everything,
    failed,
    fence,
    holding,
    leased,
    ready_worker,
    renewal,
    submitted,
)
from tests.support.sql import fetch, value


async def _release(database: Database, worker: WorkerId, lease: Lease, delay_seconds: float = 0.0) -> EndedLease:
    async with database.transaction() as connection:
        return await service.release(connection, fence(worker, lease), "not now", delay_seconds)


async def test_a_result_is_accepted_and_kept(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease, '{"best":1}')._replace(usage='{"cpu_seconds":2.5}'))
    task = await everything(database, lease.task_id)
    assert (task["state"], task["result"], task["usage"]) == ("completed", {"best": 1}, {"cpu_seconds": 2.5})
    assert (task["worker_id"], task["token"], task["payload"]) == (worker, 1, {"n": 1})
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_the_same_result_again_is_accepted_again(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    kept = "SELECT id, result, finished_at FROM task_history"
    before = await fetch(database, kept)
    await desk.complete(completion(worker, lease))
    assert await fetch(database, kept) == before


async def test_another_result_for_the_same_lease_is_refused(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    with pytest.raises(LeaseEnded, match="the task is completed"):
        await desk.complete(completion(worker, lease, '{"ok":false}'))
    assert (await everything(database, lease.task_id))["result"] == {"ok": True}


async def test_the_same_result_from_another_worker_is_refused(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    with pytest.raises(LeaseNotFound):
        await desk.complete(completion(await ready_worker(database), lease))


async def test_different_results_for_one_lease_at_once_are_accepted_once(
    database: Database, desk: LeaseService
) -> None:
    """They arrive together, so without care one statement would see the task twice."""
    worker, lease = await holding(database)
    results = [completion(worker, lease, f'{{"n":{n}}}') for n in range(8)]
    outcomes = await asyncio.gather(*(desk.complete(result) for result in results), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(LeaseEnded) == 7
    assert outcomes.count(None) == 1
    assert await value(database, "SELECT count(*) FROM task_history") == 1
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.completed'") == 1


async def test_a_result_is_accepted_from_a_lease_that_was_never_acknowledged(
    database: Database, desk: LeaseService
) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker, acknowledge=False)
    await desk.complete(completion(worker, lease))
    assert (await everything(database, lease.task_id))["state"] == "completed"


async def test_a_bad_result_in_a_batch_keeps_no_other_from_being_accepted(
    database: Database, desk: LeaseService
) -> None:
    """PostgreSQL refuses the whole statement for one value that it cannot hold."""
    held = [await holding(database) for _ in range(5)]
    calls = [completion(worker, lease) for worker, lease in held]
    calls[3] = completion(*held[3], '{"text":"\\u0000"}')
    outcomes = await asyncio.gather(*(desk.complete(call) for call in calls), return_exceptions=True)
    assert [outcome is None for outcome in outcomes] == [True, True, True, False, True]
    assert isinstance(outcomes[3], ConvenerError)
    assert (await everything(database, held[3][1].task_id))["state"] == "executing"


async def test_a_start_acknowledges_and_renews(database: Database, desk: LeaseService) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker, acknowledge=False)
    expires_at = await desk.renew(renewal(worker, lease))
    assert expires_at.timestamp() > lease.expires_at
    assert (await everything(database, lease.task_id))["state"] == "executing"
    assert await desk.renew(renewal(worker, lease)) >= expires_at
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.executing'") == 1


async def test_progress_and_checkpoint_survive_a_failure(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.renew(renewal(worker, lease, progress='{"percent":40,"message":null}', checkpoint='{"step":4}'))
    await desk.renew(renewal(worker, lease, progress='{"percent":50,"message":null}'))
    await failed(database, worker, lease)
    again = await leased(database, await ready_worker(database))
    assert (again.attempt, again.checkpoint) == (2, '{"step": 4}')
    assert (await everything(database, lease.task_id))["progress"] == {"percent": 50, "message": None}


async def test_a_failure_is_tried_again_after_a_delay(database: Database) -> None:
    worker, lease = await holding(database, retry=RetryPolicy(delays_seconds=(3600.0,)))
    standing = await failed(database, worker, lease)
    assert standing.state is TaskState.PENDING
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"], task["run_at"]) == ("pending", 1, 0, standing.run_at)
    assert task["error"] == {"code": "boom", "message": "it went wrong", "retryable": True, "detail": {"line": 7}}
    attempt = task["attempts"][0]
    assert (attempt["attempt"], attempt["token"], attempt["outcome"]) == (1, 1, "failed")
    assert (attempt["worker_id"], attempt["usage"]) == (worker, {"cpu_seconds": 1})


async def test_a_failure_reported_twice_counts_once(database: Database) -> None:
    worker, lease = await holding(database, retry=RetryPolicy(delays_seconds=(3600.0,)))
    assert await failed(database, worker, lease) == await failed(database, worker, lease)
    assert (await everything(database, lease.task_id))["failures"] == 1


async def test_the_last_attempt_that_fails_ends_the_task(database: Database) -> None:
    await submitted(database, retry=RetryPolicy(max_attempts=3, delays_seconds=()))
    for number in (1, 2, 3):
        worker = await ready_worker(database)
        lease = await leased(database, worker)
        assert lease.attempt == number
        standing = await failed(database, worker, lease)
    assert standing == EndedLease(state=TaskState.FAILED)
    assert await failed(database, worker, lease) == standing
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["error"]["code"]) == ("failed", 3, "boom")
    assert [attempt["attempt"] for attempt in task["attempts"]] == [1, 2, 3]


async def test_what_cannot_be_retried_ends_the_task_at_once(database: Database) -> None:
    worker, lease = await holding(database)
    standing = await failed(database, worker, lease, replace(FAILURE, retryable=False))
    assert standing == EndedLease(state=TaskState.FAILED)
    assert (await everything(database, lease.task_id))["failures"] == 1


async def test_a_release_burns_nothing(database: Database) -> None:
    worker, lease = await holding(database)
    assert await _release(database, worker, lease) == EndedLease(state=TaskState.PENDING)
    assert await _release(database, worker, lease) == EndedLease(state=TaskState.PENDING)
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"], task["error"]) == ("pending", 0, 0, None)
    again = await leased(database, worker)
    assert (again.attempt, again.token) == (1, 2)


async def test_a_task_that_is_always_handed_back_waits_longer_each_time_and_says_why(database: Database) -> None:
    worker, lease = await holding(database)
    for _ in range(10):
        assert (await _release(database, worker, lease)).run_at is None
        lease = await leased(database, worker)
    standing = await _release(database, worker, lease)
    assert standing.run_at is not None
    assert (await _release(database, worker, lease)).run_at == standing.run_at
    reason = await value(
        database, "SELECT detail->>'reason' FROM every_event WHERE kind = 'task.released' ORDER BY seq DESC"
    )
    assert reason == "not now; handed back 11 times, so it waits 1.1 s"
    assert (await everything(database, lease.task_id))["failures"] == 0


async def test_a_failure_reported_again_after_another_lease_is_answered_as_before(
    database: Database, desk: LeaseService
) -> None:
    worker, lease = await holding(database)
    told = await failed(database, worker, lease)
    successor = await ready_worker(database)
    again = await leased(database, successor)
    assert await failed(database, worker, lease) == told == EndedLease(state=TaskState.PENDING)
    await desk.complete(completion(successor, again))
    assert await failed(database, worker, lease) == told
    assert (await everything(database, lease.task_id))["failures"] == 1


async def test_a_task_that_was_handed_back_for_later_waits_and_burns_no_attempt(
    database: Database, desk: LeaseService
) -> None:
    worker, lease = await holding(database)
    standing = await _release(database, worker, lease, delay_seconds=600)
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["run_at"]) == ("pending", 0, standing.run_at)
    assert await value(database, "SELECT run_at > now() + interval '9 minutes' FROM tasks")
    with pytest.raises(AssertionError):
        await leased(database, await ready_worker(database))
    assert (await _release(database, worker, lease, delay_seconds=600)).run_at == standing.run_at
