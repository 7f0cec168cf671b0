"""Connections of the service: a request that waits for something else holds none, and needs no more than one."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.http import computing
from tests.support.permit_callers import list_models
from tests.support.permit_calls import acquired, settled
from tests.support.pools import decided
from tests.support.service import Service, Worker
from tests.support.sql import until, until_blocked

# Six, and four more when it gets busy; those for reads are four, and two more.
_CONNECTIONS, _READ_CONNECTIONS = 10, 6


@pytest.mark.parametrize("path", ["/goals/kepler", "/fleet", "/agents", "/weights", "/status"])
async def test_a_request_needs_one_connection(service: Service, path: str) -> None:
    """Also when the configuration has to be read anew: where all held one and waited for another, none would go on."""
    await service.post("/goals", {"id": "kepler", "objective": "what moves the planets?"})
    services = service.app.state.services
    async with AsyncExitStack() as others:
        for _ in range(_CONNECTIONS - 1):
            await others.enter_async_context(services.database.transaction())
        for _ in range(_READ_CONNECTIONS - 1):
            await others.enter_async_context(services.database.reading())
        services[CurrentConfig]._known = None
        await service.get(path)


async def test_whoever_follows_events_leaves_connections_to_others(service: Service, database: Database) -> None:
    """However many begin at once, and however long each of their looks takes."""
    async with database.transaction() as connection:
        await connection.exec_driver_sql("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        following = [asyncio.create_task(service.get("/events")) for _ in range(2 * _CONNECTIONS)]
        await until_blocked(database)
        assert (await service.get("/weights"))["weights"]
    assert len(await asyncio.gather(*following)) == 2 * _CONNECTIONS


async def test_nothing_is_held_while_the_service_computes(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking back at decisions on the pool and on goals, and checking the audit log."""
    database = service.app.state.services.database
    engines = (database.engine, database._read_engine)
    pools: list[Any] = [engine.pool for engine in engines]
    computed = []

    async def free() -> bool:
        return all(pool.checkedout() == 0 for pool in pools)

    async def compute(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        # What else the process does holds a connection for a moment; this request would hold its own for good.
        await until(free)
        computed.append(function)
        return function(*args, **options)

    monkeypatch.setattr(computing, "run", compute)
    await decided(database)
    number = (await service.get("/scaling/decisions"))["items"][0]["id"]
    await service.get(f"/scaling/decisions/{number}")
    assert (await service.post(f"/scaling/decisions/{number}/replay"))["identical"]
    await service.post("/scaling/what-if", {"decision_id": number, "config": {"worker_pool": {"max_workers": 20}}})
    assert len(computed) == 4
    await service.post("/goals", {"id": "kepler", "objective": "what moves the planets?"})
    await service.post("/goals/kepler/iterations", {"iteration": 1, "quality": 1200})
    assert (await service.get("/goals/kepler/iterations/1/replay"))["identical"]
    assert (await service.post("/audit/verify"))["ok"]
    assert len(computed) == 6


async def test_readers_that_wait_for_a_lock_leave_connections_to_the_work(
    service: Service, database: Database, worker: Worker
) -> None:
    """However many there are; they are refused after a while, and told when to come again."""
    await list_models(database, "large")
    async with database.transaction() as connection:
        await connection.exec_driver_sql("LOCK TABLE context_entries IN ACCESS EXCLUSIVE MODE")
        reading = [asyncio.create_task(service.ask("GET", "/context/shared")) for _ in range(40)]
        await until_blocked(database)
        await asyncio.gather(*(service.submitted() for _ in range(20)))
        for _ in range(20):
            await worker.beat()
            lease = await worker.lease()
            assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
        permit = await acquired(service, model="large")
        await settled(service, permit)
        answers = await asyncio.gather(*reading)
    for answer in answers:
        # A key has its share of what is under way, so most are refused before they wait.
        assert answer.status_code in (429, 503)
        assert answer.headers["retry-after"]
    assert "locked" in {answer.json()["code"] for answer in answers}
