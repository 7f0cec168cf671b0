"""A row that somebody has locked holds up its own call and nobody else's."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from app.db import notify
from app.db.database import Database
from app.kernel.errors import Locked
from app.kernel.lanes import Priority
from app.queue.service import changes, leases
from app.queue.service.changes import TaskChange
from app.queue.service.leases import LeaseService
from app.queue.store import attempts
from app.queue.store.completions import Renewal
from app.workers.service import workers
from app.workers.service.workers import Heartbeats
from tests.support.factories import GENERATION, beat, completion, holding, submitted
from tests.support.sql import value

_COUNT = 8


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "UNLOCKED_PAUSES", (0.01, 0.05))
    monkeypatch.setattr(workers, "UNLOCKED_PAUSES", (0.01, 0.05))


@asynccontextmanager
async def locked(database: Database, table: str, row_id: UUID) -> AsyncIterator[None]:
    """While the block lasts, another connection holds the lock of this row."""
    async with database.transaction() as connection:
        await connection.exec_driver_sql(f"SELECT FROM {table} WHERE id = $1 FOR UPDATE", (row_id,))
        yield


async def _all_at_once(calls: Sequence[Any]) -> list[Any]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_completions_go_on_beside_one_whose_task_is_locked(database: Database, desk: LeaseService) -> None:
    held = [await holding(database) for _ in range(_COUNT)]
    async with locked(database, "tasks", held[0][1].task_id):
        results = await _all_at_once([desk.complete(completion(*one)) for one in held])
        assert [type(result) for result in results] == [Locked] + [type(None)] * (_COUNT - 1)
    await desk.complete(completion(*held[0]))
    assert await value(database, "SELECT count(*) FROM task_history") == _COUNT


async def test_a_completion_waits_for_a_lock_that_ends_soon(database: Database, desk: LeaseService) -> None:
    held = await holding(database)
    async with locked(database, "tasks", held[1].task_id):
        completing = asyncio.create_task(desk.complete(completion(*held)))
        await asyncio.sleep(0.02)
    await completing
    await desk.complete(completion(*held))  # a repetition is accepted as ever


async def test_completions_that_unblock_go_on_beside_one_whose_dependent_is_locked(
    database: Database, desk: LeaseService
) -> None:
    held = [await holding(database) for _ in range(_COUNT)]
    dependents = [(await submitted(database, depends_on=[lease.task_id]))[0] for _, lease in held]
    async with locked(database, "tasks", dependents[0]):
        results = await _all_at_once([desk.complete(completion(*one)) for one in held])
        assert [type(result) for result in results] == [Locked] + [type(None)] * (_COUNT - 1)
    await desk.complete(completion(*held[0]))
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'pending'") == _COUNT


async def test_leases_are_renewed_beside_one_that_is_locked(database: Database, desk: LeaseService) -> None:
    held = [await holding(database) for _ in range(_COUNT)]
    renewals = [Renewal(task_id=lease.task_id, token=lease.token, worker_id=worker_id) for worker_id, lease in held]
    async with locked(database, "tasks", held[0][1].task_id):
        results = await _all_at_once([desk.renew(renewal) for renewal in renewals])
    assert isinstance(results[0], Locked)
    assert not any(isinstance(result, Exception) for result in results[1:])


async def test_heartbeats_go_on_beside_one_whose_worker_is_locked(database: Database, heartbeats: Heartbeats) -> None:
    held = [await holding(database) for _ in range(_COUNT)]
    async with locked(database, "workers", held[0][0]):
        results = await _all_at_once([heartbeats.report(beat(worker_id)) for worker_id, _ in held])
    assert isinstance(results[0], Locked)
    assert not any(isinstance(result, Exception) for result in results[1:])


async def test_a_heartbeat_whose_task_is_locked_does_not_end_the_task(
    database: Database, heartbeats: Heartbeats
) -> None:
    held = [await holding(database) for _ in range(_COUNT)]
    beats = [beat(worker_id, task_id=lease.task_id, token=lease.token) for worker_id, lease in held]
    async with locked(database, "tasks", held[0][1].task_id):
        replies = await _all_at_once([heartbeats.report(one) for one in beats])
    assert {reply.lease_state for reply in replies} == {"executing"}
    assert replies[0].lease_expires_at.timestamp() == held[0][1].expires_at
    assert all(
        reply.lease_expires_at.timestamp() > lease.expires_at
        for reply, (_, lease) in zip(replies[1:], held[1:], strict=True)
    )


async def test_a_result_is_a_repetition_also_of_one_that_is_accepted_while_it_is_looked_for(
    database: Database, desk: LeaseService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker sends its result to two replicas at once."""
    held, look = await holding(database), attempts.task_status
    elsewhere = LeaseService(database, desk.policy, desk._fairness)
    looks = 0

    async def look_and_be_overtaken(*arguments: Any) -> Any:
        nonlocal looks
        status = await look(*arguments)
        looks += 1
        if looks == 1:
            await elsewhere.complete(completion(*held))
        return status

    monkeypatch.setattr(attempts, "task_status", look_and_be_overtaken)
    for tries in (desk._completions, desk._last_tries):
        monkeypatch.setattr(tries, "enqueue_one", lambda _: asyncio.sleep(0))  # the row is locked by the other
    await desk.complete(completion(*held))
    assert looks > 1
    await elsewhere.stop()


async def test_a_change_that_changes_nothing_announces_the_task_that_claims_pass_over_meanwhile(
    database: Database,
) -> None:
    ready, later = await submitted(database, 2)
    tag = await value(database, "UPDATE tasks SET tag = 7 WHERE id = $1 RETURNING tag", ready)
    await value(database, "UPDATE tasks SET run_at = 'infinity' WHERE id = $1", later)
    news: list[notify.News] = []
    database.announcer.subscribe(news.append)
    for task_id in (later, ready):
        async with database.transaction() as connection:
            order = TaskChange(fields={"priority"}, priority=Priority.MEDIUM)
            await changes.change(connection, task_id, order, "once more")
            assert news == []
    database.announcer.unsubscribe(news.append)
    assert news == [{notify.work(GENERATION): tag}]
