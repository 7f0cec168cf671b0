"""Places in the queue for permits: what one key may keep of them, and for how long."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.lanes import Priority
from app.llm.errors import PermitRefused
from app.llm.rules.permits import RequestId
from app.llm.service.permits import PermitService
from app.queue.rules.fair_queueing import FairQueue
from tests.support.permit_callers import allow_calls, request
from tests.support.sql import execute, value


@pytest.fixture
async def permit_service(database: Database) -> AsyncIterator[PermitService]:
    await allow_calls(database, 50)
    permit_service = PermitService(database, FairQueue())
    yield permit_service
    await permit_service.stop()


async def refused(permit_service: PermitService, key_id: str, **changes: Any) -> float:
    """Ask for a permit; return the wait, 0 with a permit."""
    try:
        await permit_service.acquire(request(id=RequestId(key_id, uuid4()), **changes))
    except PermitRefused as error:
        return float(error.facts["retry_after"])
    return 0.0


async def flood(permit_service: PermitService, count: int, **changes: Any) -> None:
    """Requests of one key, each for a task of its own."""
    await asyncio.gather(*(refused(permit_service, "flooding", task_id=uuid4(), **changes) for _ in range(count)))


async def test_a_thousand_requests_of_one_key_keep_few_places(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 1)
    for priority in (Priority.LOW, Priority.MEDIUM, Priority.HIGH):
        await flood(permit_service, 334, priority=priority)
    assert await value(database, "SELECT count(*) FROM llm_claims WHERE lapses > now()") <= 64
    assert await value(database, "SELECT max(lapses - now()) <= interval '1 min' FROM llm_claims")


async def test_nobody_waits_for_places_of_a_key_that_cannot_come_within_a_minute(
    database: Database, permit_service: PermitService
) -> None:
    await execute(database, "UPDATE llm_models SET tokens_per_window = 60000")
    for _ in range(3):
        await flood(permit_service, 100, tokens=100_000_000)
    wait = await refused(permit_service, "honest")
    # The meter owes one window, of which a tenth may come at once.
    assert wait <= 55
    assert await value(database, "SELECT extract(epoch FROM tokens_tat - now()) < 61 FROM llm_models")


async def test_a_clock_that_was_set_back_keeps_nobody_from_a_model(
    database: Database, permit_service: PermitService
) -> None:
    await execute(database, "UPDATE llm_models SET requests_per_window = 60, tokens_per_window = 6000")
    hours = "now() + interval '3 h'"
    await execute(database, f"UPDATE llm_models SET requests_tat = {hours}, tokens_tat = {hours}, open_until = {hours}")
    await execute(database, f"UPDATE llm_models SET cooldown_until = {hours}")
    assert await refused(permit_service, "honest") == 0
    assert await value(database, "SELECT tokens_tat < now() + interval '1 min' FROM llm_models")


async def test_a_place_from_which_nobody_came_in_time_makes_nobody_wait(
    database: Database, permit_service: PermitService
) -> None:
    await execute(database, "UPDATE llm_models SET tokens_per_window = 60000, token_burst = 6000")
    await execute(database, "UPDATE llm_models SET tokens_tat = now() + interval '30 s'")
    await flood(permit_service, 1, tokens=6000)
    alone = await refused(permit_service, "honest")
    await execute(database, "UPDATE llm_claims SET due = now() - interval '1 s' WHERE key_id = 'flooding'")
    assert await refused(permit_service, "honest") < alone - 5
