"""Workers that a person wants: started within every limit, all or none, once, and kept."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.admin.rules import config as rules
from app.admin.rules.config import ConfigAction, LimitsConfig
from app.admin.service import config
from app.admin.service.config import ChangeRequest
from app.db.database import Database
from app.kernel.modes import Mode
from app.scaling.service import tick
from app.workers.errors import StartRefused
from app.workers.service import manual_start, pool
from app.workers.service.manual_start import Starting, StartOrder
from app.workers.store import hosts
from tests.support.config_calls import change
from tests.support.factories import ready_worker, report
from tests.support.pools import arrive, bounds, crew
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, fetch, until_blocked, value


async def _report(database: Database, size: int = 2, mode: Mode = Mode.PRODUCTION, **host: Any) -> None:
    async with database.transaction() as connection:
        await pool.tick(connection, mode, report(size, **host))


async def _start(
    database: Database, count: int, mode: Mode = Mode.PRODUCTION, request_id: UUID | None = None
) -> list[Starting]:
    order = StartOrder(request_id=request_id or uuid4(), count=count, by="test", reason="a long run")
    async with database.transaction() as connection:
        return await manual_start.start(connection, mode, order)


async def _at_most(database: Database, workers: int) -> None:
    async with database.transaction() as connection:
        now = await config.current(connection, Mode.PRODUCTION)
        pool = {**config.content(now)["worker_pool"], "min_workers": 1, "max_workers": workers}
        document = rules.from_json({**config.content(now), "worker_pool": pool})
        order = ChangeRequest(expected_version=now.version, by="test")
        await config.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, document)


async def _names(database: Database) -> list[str]:
    return [row["name"] for row in await fetch(database, "SELECT name FROM workers ORDER BY slot")]


async def test_workers_are_asked_for_in_the_next_slots_and_counted_in_the_size(database: Database) -> None:
    await _report(database)
    started = await _start(database, 2)
    assert [worker.name for worker in started] == ["here-3", "here-4"]
    assert await _names(database) == ["here-1", "here-2", "here-3", "here-4"]
    await _report(database)
    assert await value(database, "SELECT size FROM hosts") == 4
    assert await value(database, "SELECT count(*) FROM workers WHERE directive IS NULL") == 4


async def test_the_same_order_again_starts_nobody_else(database: Database) -> None:
    await _report(database)
    request_id = uuid4()
    first = await _start(database, 2, request_id=request_id)
    assert await _start(database, 2, request_id=request_id) == first
    assert len(await _names(database)) == 4
    assert await value(database, "SELECT count(*) FROM audit WHERE action = 'workers.start'") == 1


async def test_the_same_order_twice_at_once_has_one_answer(database: Database) -> None:
    await _report(database)
    request_id = uuid4()
    async with database.transaction() as connection:
        await hosts.lock_pool(connection)
        both = [asyncio.create_task(_start(database, 2, request_id=request_id)) for _ in range(2)]
        await until_blocked(database, 2)
    first, second = await asyncio.gather(*both)
    assert first == second
    assert await _names(database) == ["here-1", "here-2", "here-3", "here-4"]


async def test_two_orders_at_once_do_not_fill_the_same_room(database: Database) -> None:
    await _at_most(database, 4)
    await _report(database)
    async with database.transaction() as connection:
        await hosts.lock_pool(connection)
        both = [asyncio.create_task(_start(database, 2)) for _ in range(2)]
        await until_blocked(database, 2)
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StartRefused", "list"]
    assert len(await _names(database)) == 4


@pytest.mark.parametrize(
    ("size", "most", "room", "count", "reason"),
    [(2, 5, 100.0, 4, "max_workers"), (2, 1000, 0.1, 3, "resources"), (2, 5, 100.0, 3, None)],
)
async def test_no_limit_is_passed_and_the_refusal_says_which(
    database: Database, size: int, most: int, room: float, count: int, reason: str | None
) -> None:
    await _at_most(database, most)
    await _report(database, size, cpu_cores=room)
    if reason is None:
        assert len(await _start(database, count)) == count
        return
    with pytest.raises(StartRefused) as refused:
        await _start(database, count)
    assert refused.value.reason == reason
    assert len(await _names(database)) == size


async def test_a_host_must_have_the_memory_that_the_configuration_promises(database: Database) -> None:
    """A quarter of the limit each: 16 GB are enough for six of 2 GB, the kernel having its share, and 3 of 4 GB."""
    for limit, fits in ((8, 4), (16, 1)):
        await _allow(database, limit)
        await _report(database, 2, memory_gb=16.0, memory_used_gb=1.0)
        with pytest.raises(StartRefused, match="memory of the host"):
            await _start(database, fits + 1)
        assert len(await _start(database, fits)) == fits
        await execute(database, "DELETE FROM workers")
        await execute(database, "DELETE FROM hosts")


async def _allow(database: Database, memory_gb: float) -> None:
    async with database.transaction() as connection:
        now = await config.current(connection, Mode.PRODUCTION)
        document = replace(now.document, resource_limits=LimitsConfig(max_memory_per_worker_gb=memory_gb))
        order = ChangeRequest(expected_version=now.version, by="test")
        await config.change(connection, Mode.PRODUCTION, order, ConfigAction.SET, document)


async def test_workers_of_others_count_too(database: Database) -> None:
    await _at_most(database, 4)
    await _report(database)
    await ready_worker(database)
    with pytest.raises(StartRefused, match="start at most 1"):
        await _start(database, 2)


async def test_without_a_host_nobody_can_be_started(database: Database) -> None:
    with pytest.raises(StartRefused, match="no host starts workers"):
        await _start(database, 1)
    await _report(database)
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '20 s'")
    with pytest.raises(StartRefused):
        await _start(database, 1)


async def test_where_the_size_is_fixed_they_stay_until_their_host_leaves(database: Database) -> None:
    await _report(database, 2, Mode.DEVELOPMENT)
    await _start(database, 1, Mode.DEVELOPMENT)
    async with database.transaction() as connection:
        await tick.tick(connection, database, Mode.DEVELOPMENT)
    await _report(database, 2, Mode.DEVELOPMENT)
    assert await value(database, "SELECT count(*) FROM workers WHERE directive IS NULL") == 3
    async with database.transaction() as connection:
        await hosts.remove(connection, "local", "here")
    await execute(database, "DELETE FROM workers")
    await _report(database, 2, Mode.DEVELOPMENT)
    assert len(await _names(database)) == 2


async def test_who_started_them_and_why_is_kept(database: Database) -> None:
    await _report(database)
    await _start(database, 1)
    (entry,) = await fetch(database, "SELECT by, reason, before, after FROM audit WHERE action = 'workers.start'")
    assert (entry["by"], entry["reason"]) == ("test", "a long run")
    assert ('"workers": 2' in entry["before"], "here-3" in entry["after"]) == (True, True)


async def test_trusted_testers_start_a_quarter_more_at_a_time(database: Database) -> None:
    """Whoever starts as many again before those are ready gets no more."""
    await bounds(database, 5, 50, Mode.TRUSTED_TESTER)
    await crew(database, 8)
    with pytest.raises(StartRefused, match="25% more workers in a step: 10 with the 8"):
        await _start(database, 3, Mode.TRUSTED_TESTER)
    assert len(await _start(database, 2, Mode.TRUSTED_TESTER)) == 2
    with pytest.raises(StartRefused, match="in a step"):
        await _start(database, 1, Mode.TRUSTED_TESTER)
    await arrive(database)
    assert len(await _start(database, 2, Mode.TRUSTED_TESTER)) == 2


async def test_trusted_testers_say_why_workers_are_started(service: Service, database: Database) -> None:
    mode = {"mode": "trusted_tester", "reason": "guests"}
    assert (await change(service, "POST", mode, 1, "/config/mode")).status_code == 200
    await crew(database, 5)
    is_problem(await service.ask("POST", "/workers/start", {}), 422, "reason_required", "reason")
    assert len(await _names(database)) == 5
    assert (await service.ask("POST", "/workers/start", {"reason": "a long run"})).status_code == 201
