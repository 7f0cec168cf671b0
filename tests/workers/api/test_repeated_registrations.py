"""Registrations whose answer was lost: the same request has the same worker, with a key that works."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from app.admin.service.access import create_key, create_launch_key, use_to_register
from app.admin.store import keys
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.workers.service import pool, workers
from tests.support.factories import registration as registration_of_store
from tests.support.factories import report
from tests.support.service import Service, Worker, registration
from tests.support.sql import execute, until_blocked, value

WORKERS, KEYS = "SELECT count(*) FROM workers", "SELECT count(*) FROM keys WHERE worker_id IS NOT NULL"


async def _launch(database: Database) -> str:
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(1))
    worker_id = await value(database, "SELECT id FROM workers")
    async with database.transaction() as connection:
        return await create_launch_key(connection, worker_id)


async def _enrolment(database: Database, uses: int = 1) -> str:
    key = NewKey(role=Role.POOL, label="node 7", uses_left=uses, expires_in_seconds=900)
    async with database.transaction() as connection:
        return (await create_key(connection, key)).text


async def _key(service: Service, database: Database, kind: str) -> str:
    if kind == "pool":
        return service.keys[Role.POOL]
    return await (_launch(database) if kind == "launch" else _enrolment(database))


def _introduction(name: str = "ada", **more: Any) -> dict[str, Any]:
    return registration(name, request_id=str(uuid4()), **more)


def _worker(service: Service, registered: dict[str, Any]) -> Worker:
    return Worker(service=service, id=registered["worker_id"], key=registered["key"])


async def _is_refused(service: Service, said: dict[str, Any], key: str) -> bool:
    answer = await service.ask("POST", "/workers", said, key=key)
    return (answer.status_code, answer.json().get("code")) == (401, "unauthenticated")


@pytest.mark.parametrize("kind", ["launch", "enrolment", "pool"])
async def test_a_registration_whose_answer_was_lost_is_repeated(
    service: Service, database: Database, kind: str
) -> None:
    key, said = await _key(service, database, kind), _introduction(seconds_left=900.5)
    lost = await service.post("/workers", said, key=key)
    registered = await service.post("/workers", said | {"seconds_left": 899.2}, key=key)
    assert {**registered, "key": ""} == {**lost, "key": ""}
    assert registered["key"] != lost["key"]
    assert await value(database, WORKERS) == 1
    answer = await service.ask("POST", f"/workers/{lost['worker_id']}/goodbye", {"reason": "x"}, key=lost["key"])
    assert answer.status_code == 401
    assert (await _worker(service, registered).beat())["state"] == "ready"


@pytest.mark.parametrize("kind", ["launch", "enrolment"])
async def test_another_request_with_a_key_that_is_used_up_is_refused(
    service: Service, database: Database, kind: str
) -> None:
    key, said = await _key(service, database, kind), _introduction()
    await service.post("/workers", said, key=key)
    assert await _is_refused(service, _introduction(), key)
    assert await _is_refused(service, registration("ada"), key)
    assert await value(database, KEYS) == 1
    assert (await _worker(service, await service.post("/workers", said, key=key)).beat())["state"] == "ready"


@pytest.mark.parametrize("kind", ["launch", "enrolment"])
async def test_nothing_is_repeated_once_the_worker_was_heard_of(
    service: Service, database: Database, kind: str
) -> None:
    key, said = await _key(service, database, kind), _introduction()
    worker = _worker(service, await service.post("/workers", said, key=key))
    await worker.beat()
    assert await _is_refused(service, said, key)
    assert (await worker.beat())["state"] == "ready"


async def test_a_request_is_repeated_with_the_key_that_it_came_with_only(service: Service, database: Database) -> None:
    said = _introduction()
    first = await service.post("/workers", said, key=await _enrolment(database, 2))
    answer = await service.ask("POST", "/workers", said, key=service.keys[Role.POOL])
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    assert (await _worker(service, first).beat())["state"] == "ready"


async def test_a_repeated_request_uses_up_nothing(service: Service, database: Database) -> None:
    key, said = await _enrolment(database, 2), _introduction()
    for _ in range(3):
        await service.post("/workers", said, key=key)
    assert await service.post("/workers", _introduction("bob"), key=key)
    assert await _is_refused(service, _introduction("eve"), key)


async def test_a_revoked_key_repeats_nothing(service: Service, database: Database) -> None:
    key, said = await _enrolment(database), _introduction()
    await service.post("/workers", said, key=key)
    assert (await service.ask("DELETE", f"/keys/{key.split('_')[1]}")).status_code == 204
    assert await _is_refused(service, said, key)


async def test_a_repetition_waits_for_the_request_that_is_still_under_way(service: Service, database: Database) -> None:
    key, said = await _launch(database), _introduction()
    async with database.transaction() as connection:
        assert await workers.register_again(connection, said["request_id"], key.split("_")[1]) is None
        launched = await use_to_register(connection, key.split("_")[1], is_repeatable=True)
        await workers.register(connection, registration_of_store(request_id=said["request_id"]), launched)
        rival = asyncio.create_task(service.ask("POST", "/workers", said, key=key))
        await until_blocked(database)
    registered = (await rival).json()
    assert (await _worker(service, registered).beat())["state"] == "ready"


async def test_the_key_of_a_launch_goes_once_its_worker_was_heard_of(service: Service, database: Database) -> None:
    key = await _launch(database)
    worker = _worker(service, await service.post("/workers", _introduction(), key=key))
    for is_heard in (False, True):
        if is_heard:
            await worker.beat()
        async with database.transaction() as connection:
            assert await keys.prune(connection) == is_heard
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now()")
    assert await _is_refused(service, _introduction(), key)
