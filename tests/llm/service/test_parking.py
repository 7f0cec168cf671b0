"""Tasks that wait for a model: set aside unharmed, one tries it, and all are woken when it answers."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.db.database import Database
from app.llm.service import parking
from app.queue.service.leases import Failure, fail, release
from tests.support.factories import fence, holding, leased, ready_worker
from tests.support.permit_callers import list_models
from tests.support.sql import execute, fetch, value

_CALLER = '{"w": {"reported_at": "%s", "open_until": "%s", "condition": "key_expired"}}'


@pytest.fixture
async def parked(database: Database) -> list[UUID]:
    """Three tasks that wait for the model m, which refuses the key, and one that waits for n."""
    await list_models(database, "m", "n")
    ids: list[UUID] = []
    for model in ("m", "m", "m", "n"):
        worker, lease = await holding(database)
        async with database.transaction() as connection:
            await release(connection, fence(worker, lease), "no key", 60.0, waits_for_model=model)
        ids.append(lease.task_id)
    await refuse_key(database, "m", try_in=-1.0)
    await refuse_key(database, "n", try_in=30.0)
    return ids


async def refuse_key(database: Database, model: str, *, try_in: float) -> None:
    now = datetime.now(UTC)
    callers = _CALLER % (now.isoformat(), (now + timedelta(seconds=try_in)).isoformat())
    await execute(database, "UPDATE llm_models SET callers = $2 WHERE model = $1", model, callers)


async def wake(database: Database) -> dict[str, int]:
    async with database.transaction() as connection:
        return await parking.wake_parked(connection)


async def due(database: Database) -> set[UUID]:
    return {row["id"] for row in await fetch(database, "SELECT id FROM tasks WHERE run_at <= now()")}


async def test_one_task_tries_at_a_time_and_none_before_it_may(database: Database, parked: list[UUID]) -> None:
    assert await wake(database) == {"woken": 0, "tried": 1}
    assert await due(database) == {parked[0]}
    assert await wake(database) == {"woken": 0, "tried": 0}
    await execute(database, "UPDATE parked_tasks SET woken_at = woken_at - interval '2 s'")
    assert await wake(database) == {"woken": 0, "tried": 1}
    assert await due(database) == set(parked[:2])


async def test_all_are_woken_when_the_model_answers(database: Database, parked: list[UUID]) -> None:
    await execute(database, "UPDATE llm_models SET callers = '{}' WHERE model = 'm'")
    assert await wake(database) == {"woken": 3, "tried": 0}
    assert await due(database) == set(parked[:3])
    assert await value(database, "SELECT count(*) FROM parked_tasks") == 1
    counts = await fetch(database, "SELECT DISTINCT failures, rescues FROM tasks")
    assert [tuple(row.values()) for row in counts] == [(0, 0)]


async def test_a_task_that_was_parked_twice_or_that_ended_is_woken_once_or_not(
    database: Database, parked: list[UUID]
) -> None:
    await execute(database, "DELETE FROM tasks WHERE id = $1", parked[1])
    await execute(database, "UPDATE tasks SET run_at = 'infinity' WHERE id = $1", parked[2])
    await execute(database, "UPDATE llm_models SET callers = '{}' WHERE model = 'm'")
    # The one whose goal is held stays so, and is due as soon as that ends.
    assert (await wake(database))["woken"] == 2
    assert await due(database) == {parked[0]}
    assert await value(database, "SELECT due_at <= now() FROM tasks WHERE id = $1", parked[2])
    assert await wake(database) == {"woken": 0, "tried": 0}


async def test_a_task_that_somebody_has_locked_is_woken_later(database: Database, parked: list[UUID]) -> None:
    await execute(database, "UPDATE llm_models SET callers = '{}' WHERE model = 'm'")
    async with database.engine.connect() as other:
        await other.exec_driver_sql(f"SELECT FROM tasks WHERE id = '{parked[0]}' FOR UPDATE")
        assert (await wake(database))["woken"] == 2
        await other.rollback()
    assert (await wake(database))["woken"] == 1
    assert await due(database) == set(parked[:3])


async def test_the_wait_for_the_next_attempt_is_not_cut_short(database: Database, parked: list[UUID]) -> None:
    """Of a task that tried the model and failed otherwise, and of one whose delay was over before."""
    assert (await wake(database))["tried"] == 1
    await execute(database, "UPDATE tasks SET run_at = NULL WHERE id = ANY ($1::uuid[])", parked[:2])
    failure = Failure(code="no_data", message="the archive is closed", retryable=True)
    for _ in range(2):
        worker = await ready_worker(database)
        lease = await leased(database, worker)
        assert lease.task_id in parked[:2]
        async with database.transaction() as connection:
            await fail(connection, fence(worker, lease), failure)
        await execute(database, "UPDATE tasks SET run_at = now() + interval '1 hour' WHERE id = $1", lease.task_id)
    await execute(database, "UPDATE parked_tasks SET woken_at = NULL")
    assert (await wake(database))["tried"] == 1
    assert await due(database) == {parked[2]}
    await execute(database, "UPDATE llm_models SET callers = '{}'")
    await wake(database)
    assert await due(database) == {parked[2], parked[3]}
    assert await value(database, "SELECT count(*) FROM parked_tasks") == 0
