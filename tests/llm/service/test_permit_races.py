"""Two connections at once: confirmations, resets and cached answers; PostgreSQL's own lock view tells who waits."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.llm.rules.outcomes import Outcome
from app.llm.service import models as model_service
from app.llm.service import permits
from app.llm.service.permits import PermitService
from app.llm.store import cache, models
from app.llm.store.cache import NewAnswer
from app.llm.store.permits import Permit
from tests.support.factories import holding
from tests.support.permit_callers import allow_calls, opened, request, settlement
from tests.support.sql import execute, until_blocked, value


@pytest.fixture
async def services(database: Database, replica: Database) -> AsyncIterator[list[PermitService]]:
    """Two processes of the service."""
    await allow_calls(database, 20)
    async with opened(database) as one, opened(replica) as other:
        yield [one, other]


async def permit_of(service: PermitService, worker_id: WorkerId) -> Permit:
    return (await service.acquire(request(worker_id=worker_id))).permit


async def workers_of_two_keys(database: Database) -> list[WorkerId]:
    """Two workers at work that confirm each other, as each has registered by a key of its own."""
    workers = [(await holding(database))[0] for _ in range(2)]
    await execute(database, "UPDATE workers SET registered_by = id::text")
    return workers


async def cooldown(database: Database) -> float:
    statement = (
        "SELECT coalesce(extract(epoch FROM cooldown_until - now()), 0)::float8 FROM llm_models WHERE model = 'm'"
    )
    return float(await value(database, statement))


async def test_two_workers_that_report_at_once_confirm_each_other(
    database: Database, services: list[PermitService]
) -> None:
    workers = await workers_of_two_keys(database)
    permits = [await permit_of(services[0], worker_id) for worker_id in workers]
    async with database.transaction() as connection:
        await models.lock(connection, ["m"])
        settling = [
            asyncio.create_task(service.settle(settlement(permit, Outcome.RATE_LIMITED, retry_after_seconds=100.0)))
            for service, permit in zip(services, permits, strict=True)
        ]
        await until_blocked(database, 2)
    results = await asyncio.gather(*settling)
    assert all(99 < result.cooldown_seconds <= 100 for result in results)
    assert 98 < await cooldown(database) <= 100


async def test_a_reset_waits_for_a_settlement_and_nothing_of_it_is_left(
    database: Database, replica: Database, services: list[PermitService]
) -> None:
    workers = await workers_of_two_keys(database)
    for worker_id in workers:
        permit = await permit_of(services[0], worker_id)
        await services[0].settle(settlement(permit, Outcome.RATE_LIMITED, retry_after_seconds=100.0))
    assert await cooldown(database) > 90

    async def reset() -> None:
        async with replica.transaction() as other:
            await model_service.reset(other, "m", by="test")

    async with database.transaction() as connection:
        await models.lock(connection, ["m"])
        resetting = asyncio.create_task(reset())
        await until_blocked(database)
    await resetting
    assert await cooldown(database) == 0
    assert await value(database, "SELECT callers::text FROM llm_models WHERE model = 'm'") == "{}"


async def test_a_settlement_that_waits_for_a_reset_is_the_first_report_after_it(
    database: Database, services: list[PermitService]
) -> None:
    workers = await workers_of_two_keys(database)
    first, second = [await permit_of(services[0], worker_id) for worker_id in workers]
    await services[0].settle(settlement(first, Outcome.RATE_LIMITED, retry_after_seconds=100.0))
    async with database.transaction() as connection:
        await model_service.reset(connection, "m", by="test")
        settling = asyncio.create_task(
            services[1].settle(settlement(second, Outcome.RATE_LIMITED, retry_after_seconds=100.0))
        )
        await until_blocked(database)
    await settling
    assert await cooldown(database) == 0, "what was reported before the reset confirms nothing"


async def test_a_release_gives_a_worker_back_what_its_own_meters_were_charged(
    database: Database, services: list[PermitService]
) -> None:
    """Else it would be refused while others call, for calls that it has not made."""
    await execute(database, "UPDATE llm_models SET requests_per_window = 60, tokens_per_window = 6000")
    worker_id, _ = await holding(database)
    owed = "SELECT count(*) FROM llm_models, jsonb_object_keys(worker_tats)"
    for _ in range(2):
        permit = await permit_of(services[0], worker_id)
        assert await value(database, owed) == 2
        async with database.transaction() as connection:
            await permits.release(connection, permit.id, permit.token, worker_id)
        assert await value(database, owed) == 0


async def test_the_first_of_two_answers_stays(database: Database, replica: Database) -> None:
    async def write(target: Database, text: str) -> None:
        async with target.transaction() as connection:
            new = NewAnswer(question=b"q", answer=text, ttl_seconds=60.0)
            await cache.write(connection, b"key", new, model="m", written_by=text)

    async with database.transaction() as connection:
        await cache.write(
            connection, b"key", NewAnswer(question=b"q", answer="1", ttl_seconds=60.0), model="m", written_by="1"
        )
        second = asyncio.create_task(write(replica, "2"))
        await until_blocked(database)
    await second
    assert await value(database, "SELECT answer::text || written_by FROM llm_cache") == "11"
    await execute(database, "UPDATE llm_cache SET expires_at = now()")
    await write(database, "3")
    assert await value(database, "SELECT answer::text || written_by FROM llm_cache") == "33"


async def test_of_two_answers_in_one_batch_the_first_stays(database: Database, services: list[PermitService]) -> None:
    worker_id, _ = await holding(database)
    permits = [(await services[0].acquire(request(worker_id=worker_id, question=b"q"))).permit for _ in range(2)]
    answers = [NewAnswer(question=b"q", answer=str(number), ttl_seconds=60.0) for number in (1, 2)]
    await asyncio.gather(
        *(
            services[0].settle(settlement(permit, answer=answer))
            for permit, answer in zip(permits, answers, strict=True)
        )
    )
    assert await value(database, "SELECT answer::text FROM llm_cache") == "1"
