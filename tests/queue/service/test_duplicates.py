"""The same work submitted twice within the window is one task; only where the service is told so."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

from app.db.database import Database
from app.kernel.agents import AgentType
from app.queue.service import tasks
from app.queue.service.tasks import Intake, Submitted
from tests.support.factories import submission
from tests.support.sql import execute, value

_WINDOW = Intake(duplicate_window_seconds=60)


async def _submit(database: Database, *bodies: dict[str, Any], intake: Intake = _WINDOW) -> list[Submitted]:
    async with database.transaction() as connection:
        return await tasks.submit(connection, [submission(**body) for body in bodies], intake)


async def _one(database: Database, **body: Any) -> tuple[UUID, bool]:
    (done,) = await _submit(database, body)
    return done.id, done.created


async def test_the_same_payload_for_the_same_agent_is_the_same_task(database: Database) -> None:
    first, created = await _one(database, payload='{"a": 1, "b": 2}')
    assert created
    assert await _one(database, payload='{"b": 2, "a": 1}') == (first, False)
    assert (await _one(database, payload='{"a": 1}'))[1]
    assert (await _one(database, payload='{"a": 1, "b": 2}', agent_type=AgentType.RANKING))[1]


async def test_without_a_window_nothing_is_a_duplicate(database: Database) -> None:
    done = [await _submit(database, {}, intake=Intake()) for _ in range(2)]
    assert all(submitted.created for (submitted,) in done)
    assert await value(database, "SELECT count(*) FROM fingerprints") == 0


async def test_a_key_or_a_chosen_id_says_it_better_than_the_payload(database: Database) -> None:
    await _one(database)
    assert (await _one(database, id=uuid4()))[1]
    assert (await _one(database, idempotency_key="mine"))[1]


async def test_after_the_window_it_is_new_work(database: Database) -> None:
    first, _ = await _one(database)
    await execute(database, "UPDATE fingerprints SET seen_at = now() - interval '61 s'")
    second, created = await _one(database)
    assert created
    assert second != first
    assert await _one(database) == (second, False)


async def test_what_failed_or_was_cancelled_may_be_tried_again(database: Database) -> None:
    first, _ = await _one(database)
    async with database.transaction() as connection:
        await tasks.cancel(connection, first, "a mistake")
    assert (await _one(database))[1]


async def test_a_batch_has_no_duplicates_either_and_answers_in_order(database: Database) -> None:
    same, other = {"payload": '{"n": 1}'}, {"payload": '{"n": 2}'}
    done = await _submit(database, same, other, same)
    assert [submitted.created for submitted in done] == [True, True, False]
    assert done[2].id == done[0].id
    assert await value(database, "SELECT count(*) FROM tasks") == 2


async def test_of_many_at_once_one_is_created(database: Database) -> None:
    done = await asyncio.gather(*(_one(database) for _ in range(8)))
    assert len({task_id for task_id, _ in done}) == 1
    assert sum(created for _, created in done) == 1
