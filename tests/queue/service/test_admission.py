"""How the queue refuses work when it is full: exactly, with reasons, and never what was accepted before."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from app.db.database import Database, now
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.errors import QueueFull
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.aging import AgingPolicy
from app.queue.service import aging, status, tasks
from app.queue.service.admission import Admission
from app.queue.service.tasks import Intake, Submitted
from app.queue.store import counters
from tests.support.factories import leased, ready_worker, submission, submitted
from tests.support.sql import execute, fetch, until_blocked, value

_ALL = dict.fromkeys(Priority, 1.0)


def _intake(most: int, **policy: Any) -> Intake:
    return Intake(admission=Admission(CapacityPolicy(max_queue_size=most, **({"quotas": _ALL} | policy))))


async def _submit(database: Database, intake: Intake, count: int = 1, **changes: Any) -> list[Submitted]:
    async with database.transaction() as connection:
        return await tasks.submit(connection, [submission(**changes) for _ in range(count)], intake)


async def _waiting(database: Database) -> int:
    return int(await value(database, "SELECT count(*) FROM tasks"))


async def test_one_task_too_many_is_refused_with_depth_and_time(database: Database) -> None:
    intake = _intake(10)
    await _submit(database, intake, 9)
    with pytest.raises(QueueFull) as refused:
        await _submit(database, intake, 2)
    assert refused.value.facts == {"depth": 9, "limit": 10}
    assert refused.value.retry_after_seconds == 5
    assert await _waiting(database) == 9
    await _submit(database, intake)
    with pytest.raises(QueueFull):
        await _submit(database, intake)


async def test_what_is_with_a_worker_no_longer_waits(database: Database) -> None:
    intake = _intake(2)
    await _submit(database, intake, 2)
    await _lease_all(database)
    await _submit(database, intake, 2)
    assert await _waiting(database) == 4


async def test_the_same_submit_again_is_answered_although_the_queue_is_full(database: Database) -> None:
    """Its answer may have been lost; the task was accepted."""
    intake = _intake(2)
    chosen = uuid4()
    await _submit(database, intake, id=chosen)
    await _submit(database, intake)
    assert (await _submit(database, intake, id=chosen))[0].created is False
    with pytest.raises(QueueFull):
        await _submit(database, intake, id=uuid4())
    with pytest.raises(QueueFull):
        await _submit(database, intake, idempotency_key="new")


async def test_many_at_once_fill_the_queue_to_the_brim_and_not_beyond(database: Database, replica: Database) -> None:
    """Two processes, 60 submits, as many at once as there are connections, room for 25."""
    intakes = {database: _intake(25), replica: _intake(25)}
    turns = {database: asyncio.Semaphore(10), replica: asyncio.Semaphore(10)}

    async def one(number: int) -> bool:
        source = (database, replica)[number % 2]
        async with turns[source]:
            try:
                await _submit(source, intakes[source], 1, id=uuid4() if number % 3 else None)
            except QueueFull:
                return False
            return True

    accepted = await asyncio.gather(*map(one, range(60)))
    assert sum(accepted) == await _waiting(database) == 25


async def test_a_priority_is_held_to_its_quota(database: Database) -> None:
    intake = _intake(10, quotas={**_ALL, Priority.LOW: 0.3})
    with pytest.raises(QueueFull, match="priority low"):
        await _submit(database, intake, 4, priority=Priority.LOW)
    await _submit(database, intake, 3, priority=Priority.LOW)
    await _submit(database, intake, 7, priority=Priority.HIGH)


async def test_what_has_risen_counts_by_the_priority_at_its_submit(database: Database) -> None:
    """A flood of low work must not lock out what is more urgent once it has aged."""
    intake = _intake(10, quotas={Priority.LOW: 0.5, Priority.MEDIUM: 0.8})
    await _submit(database, intake, 5, priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '3 h'")
    for _ in range(3):
        async with database.transaction() as connection:
            await aging.age_tasks(connection, AgingPolicy())
    with pytest.raises(QueueFull, match="5 tasks of priority low wait already and 5 may"):
        await _submit(database, intake, priority=Priority.LOW)
    await _submit(database, intake, 3, priority=Priority.MEDIUM)
    await _submit(database, intake, 2, priority=Priority.CRITICAL)
    async with database.transaction() as connection:
        assert dict((await status.read_snapshot(connection)).depth) == {
            Priority.LOW: 5,
            Priority.MEDIUM: 3,
            Priority.HIGH: 0,
            Priority.CRITICAL: 2,
        }


async def test_a_near_deadline_is_no_way_around_a_quota(database: Database) -> None:
    intake = _intake(10, quotas={Priority.LOW: 0.3})
    async with database.transaction() as connection:
        deadline = await now(connection)
    with pytest.raises(QueueFull, match="priority low"):
        await _submit(database, intake, 4, priority=Priority.LOW, deadline=deadline)
    (task,) = await _submit(database, intake, priority=Priority.LOW, deadline=deadline)
    row = (await fetch(database, "SELECT priority, submitted_priority FROM tasks WHERE id = $1", task.id))[0]
    assert tuple(row) == (Priority.CRITICAL, Priority.LOW)


async def test_the_oldest_of_the_least_urgent_makes_room_also_at_a_quota(database: Database) -> None:
    intake = _intake(10, quotas={Priority.MEDIUM: 0.4}, displaces=True)
    old, new = [task.id for _ in range(2) for task in await _submit(database, intake, priority=Priority.LOW)]
    await _submit(database, intake, 2, priority=Priority.MEDIUM)
    await _submit(database, intake, priority=Priority.MEDIUM)
    assert await value(database, "SELECT array_agg(id) FROM task_history") == [old]
    with pytest.raises(QueueFull, match="medium and below"):
        await _submit(database, intake, 2, priority=Priority.MEDIUM)
    assert await value(database, "SELECT count(*) FROM tasks WHERE id = $1", new) == 1


async def test_displaced_work_is_found_among_the_dead_letters(database: Database) -> None:
    intake = _intake(4, displaces=True)
    # One by one: which of a batch is the oldest is not said.
    low = [task for _ in range(3) for task in await _submit(database, intake, priority=Priority.LOW)]
    (dependent,) = await submitted(database, depends_on=(low[0].id,), priority=Priority.LOW)
    await _submit(database, intake, 2, priority=Priority.HIGH)
    rows = await fetch(database, "SELECT id, state, error->>'code' AS code FROM task_history ORDER BY finished_at, seq")
    assert (low[0].id, "failed", "displaced") in [(row["id"], row["state"], row["code"]) for row in rows]
    assert {row["id"] for row in rows if row["state"] == "cancelled"} <= {dependent}
    told = await fetch(database, "SELECT kind FROM every_event WHERE task_id = $1 ORDER BY seq", low[0].id)
    kinds = [row["kind"] for row in told]
    assert kinds == ["task.submitted", "task.displaced"]
    with pytest.raises(QueueFull):
        await _submit(database, intake, 20, priority=Priority.HIGH)


async def test_nothing_waits_for_what_had_to_make_room_for_it(database: Database) -> None:
    intake = _intake(3, displaces=True)
    (low,) = await _submit(database, intake, priority=Priority.LOW)
    (between,) = await submitted(database, depends_on=(low.id,), priority=Priority.LOW)
    await _submit(database, intake, priority=Priority.HIGH)
    (late,) = await _submit(database, intake, priority=Priority.HIGH, depends_on=(between,))
    rows = await fetch(database, "SELECT id, state FROM task_history")
    assert {row["id"]: row["state"] for row in rows} == {
        low.id: "failed",
        between: "cancelled",
        late.id: late.state,
    }
    assert late.state is TaskState.CANCELLED
    assert await value(database, "SELECT count(*) FROM task_dependencies") == 0


async def test_who_waits_at_the_gate_has_locked_no_task(database: Database) -> None:
    """Who has it alone may displace what others depend on, and so wait for it: the two would deadlock."""
    (first,) = await submitted(database)
    async with database.transaction() as alone:
        await counters.enter_alone(alone)
        submitting = asyncio.create_task(_submit(database, _intake(10), depends_on=(first,)))
        await until_blocked(database)
        await alone.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE NOWAIT"), {"id": first})
    assert (await submitting)[0].state is TaskState.BLOCKED


async def test_work_of_the_same_priority_is_not_displaced(database: Database) -> None:
    intake = _intake(3, displaces=True)
    await _submit(database, intake, 3)
    with pytest.raises(QueueFull):
        await _submit(database, intake)


async def _lease_all(database: Database) -> None:
    for _ in range(await _waiting(database)):
        await leased(database, await ready_worker(database))


async def test_the_first_that_ever_passes_the_gate_alone_is_noticed(own_database: Database) -> None:
    """A sequence shows the same last value before its first step and after it."""
    async with own_database.transaction() as connection:
        epochs = [await counters.enter_shared(connection)]
    for _ in range(2):
        async with own_database.transaction() as connection:
            await counters.enter_alone(connection)
        async with own_database.transaction() as connection:
            epochs.append(await counters.enter_shared(connection))
    assert len(set(epochs)) == 3
