"""Lines of an exchange: the first with everything that need not wait, later ones for what does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.errors import DatabaseUnavailable
from app.queue.broker.broker import Broker
from app.queue.service import leases as lease_service
from app.queue.store import claims, completions, ready_lanes
from app.server import begin_shutdown
from app.workers.api import exchange_run
from tests.support.exchanges import PATH, ask, exchanged, exchanging, hand_in, item
from tests.support.service import Service, Worker
from tests.support.sql import until, value
from tests.support.streams import on_a_port

_WAIT_SECONDS = 30


@pytest.fixture
async def port(database: Database) -> AsyncIterator[Service]:
    async with on_a_port(database) as port:
        yield port.service


def _waiting(service: Service) -> int:
    broker: Broker = service.app.state.services[Broker]
    return broker.waiting_count


async def _until_waiting(service: Service, count: int) -> None:
    async def is_so() -> bool:
        return _waiting(service) == count

    await until(is_so)


async def _holding(service: Service, worker: Worker) -> Any:
    await service.submitted()
    return (await exchanged(service, ask(worker)))[0]["body"]


def _statuses(line: list[dict[str, Any]]) -> dict[int, int]:
    return {answer["index"]: answer["status"] for answer in line}


async def test_what_need_not_wait_comes_first_and_a_task_when_it_is_there(port: Service) -> None:
    first, second, third = [await port.worker() for _ in range(3)]
    lease = await _holding(port, first)
    items = ask(second, _WAIT_SECONDS), hand_in(first, lease), ask(third), ask(first, _WAIT_SECONDS)
    async with exchanging(port, *items) as lines:
        assert _statuses(await anext(lines)) == {1: 200, 2: 204}
        assert _waiting(port) == 2
        for count in (1, 0):
            await port.submitted()
            (answer,) = await anext(lines)
            assert answer["status"] == 200
            assert _waiting(port) == count
        assert [line async for line in lines] == []


async def test_all_that_can_be_leased_at_once_comes_in_one_line(port: Service) -> None:
    workers = [await port.worker() for _ in range(12)]
    for _ in range(15):
        await port.submitted()
    async with exchanging(port, *(ask(worker, _WAIT_SECONDS) for worker in workers)) as lines:
        counts = [len(line) async for line in lines]
    assert counts == [12]


async def test_a_wait_ends_without_a_task(port: Service) -> None:
    workers = [await port.worker() for _ in range(3)]
    async with exchanging(port, *(ask(worker, 0.3) for worker in workers)) as lines:
        answers = [answer for line in [line async for line in lines] for answer in line]
    assert _statuses(answers) == dict.fromkeys(range(3), 204)
    assert not any("body" in answer for answer in answers)


async def test_who_hangs_up_waits_no_longer(port: Service, database: Database) -> None:
    workers = [await port.worker() for _ in range(3)]
    async with exchanging(
        port, item(workers[0], "lease"), *(ask(worker, _WAIT_SECONDS) for worker in workers)
    ) as lines:
        assert _statuses(await anext(lines)) == {0: 422}
        await _until_waiting(port, 3)
    await _until_waiting(port, 0)
    await port.submitted()
    assert (await exchanged(port, ask(workers[1])))[0]["status"] == 200


async def test_a_result_of_whoever_hung_up_before_a_claim_accepts_it_is_kept(
    port: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = [await port.worker() for _ in range(2)]
    lease = await _holding(port, worker)

    may_claim, claim = asyncio.Event(), claims.claim

    async def late(*arguments: Any) -> Any:
        await may_claim.wait()
        return await claim(*arguments)

    async def is_kept() -> bool:
        return bool(await value(database, "SELECT count(*) FROM task_history WHERE state = 'completed'"))

    monkeypatch.setattr(claims, "claim", late)
    items = item(other, "lease"), hand_in(worker, lease, and_next=True), ask(other, _WAIT_SECONDS)
    async with exchanging(port, *items) as lines:
        assert _statuses(await anext(lines)) == {0: 422}
        assert not await is_kept()
    await until(is_kept)
    may_claim.set()


async def test_a_task_of_whoever_hung_up_meanwhile_goes_back(
    port: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await port.worker() for _ in range(2)]
    is_claiming, may_claim = asyncio.Event(), asyncio.Event()
    claim = claims.claim

    async def slowly(*arguments: Any) -> Any:
        is_claiming.set()
        await may_claim.wait()
        return await claim(*arguments)

    async with exchanging(
        port, item(workers[0], "lease"), *(ask(worker, _WAIT_SECONDS) for worker in workers)
    ) as lines:
        await anext(lines)
        monkeypatch.setattr(claims, "claim", slowly)
        await port.submitted()
        await is_claiming.wait()
    await _until_waiting(port, 0)
    may_claim.set()

    async def is_back() -> bool:
        return bool(await value(database, "SELECT count(*) = 1 FROM events WHERE kind = 'task.released'"))

    await until(is_back)
    assert await value(database, "SELECT state FROM tasks") == "pending"


async def test_a_task_that_was_leased_before_the_first_line_goes_back_where_nobody_takes_it(
    port: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_run, "_PATIENCE_SECONDS", 60)
    first, second = await port.worker(), await port.worker()
    held, may_complete, complete = await _holding(port, first), asyncio.Event(), completions.complete
    await port.submitted()

    async def slowly(*arguments: Any) -> Any:
        await may_complete.wait()
        return await complete(*arguments)

    async def are_leased() -> bool:
        count = await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL")
        return count == 2 and _waiting(port) == 0

    async def is_back() -> bool:
        return bool(await value(database, "SELECT count(*) = 1 FROM every_event WHERE kind = 'task.released'"))

    # Before there is a line, whoever waits for it hangs up.
    monkeypatch.setattr(completions, "complete", slowly)
    items = [hand_in(first, held), ask(second, _WAIT_SECONDS)]
    headers = {"Authorization": items[0]["authorization"]}
    call = asyncio.create_task(port.client.post(PATH, json={"items": items}, headers=headers))
    await until(are_leased)
    call.cancel()
    await asyncio.wait([call])
    try:
        await until(is_back)
    finally:
        may_complete.set()


async def test_a_locked_row_keeps_no_other_item_back(
    port: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_service, "UNLOCKED_PAUSES", (0.05,) * 200)
    workers = [await port.worker() for _ in range(3)]
    held = [await _holding(port, worker) for worker in workers]
    await port.submitted()
    items = [*(hand_in(worker, lease) for worker, lease in zip(workers, held, strict=True)), *map(ask, workers)]
    async with database.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM tasks WHERE id = $1 FOR UPDATE", (held[1]["task_id"],))
        async with exchanging(port, *items) as lines:
            assert _statuses(await anext(lines)).keys() == {0, 2, 3, 5}
            await connection.rollback()
            rest = [answer async for line in lines for answer in line]
    assert _statuses(rest).keys() == {1, 4}
    assert _statuses(rest)[1] == 200


async def test_those_who_wait_are_answered_when_the_service_stops(port: Service) -> None:
    workers = [await port.worker() for _ in range(2)]
    lease = await _holding(port, workers[0])
    async with exchanging(
        port, hand_in(workers[0], lease), *(ask(worker, _WAIT_SECONDS) for worker in workers)
    ) as lines:
        assert _statuses(await anext(lines)) == {0: 200}
        await begin_shutdown(port.app.state.services)
        rest = [answer async for line in lines for answer in line]
    assert _statuses(rest) == {1: 204, 2: 204}


async def test_without_the_database_each_item_is_answered_as_on_its_plain_route(
    port: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await port.worker() for _ in range(3)]
    lease = await _holding(port, workers[0])

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    async def fail_lanes(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(claims, "claim", fail)
    monkeypatch.setattr(ready_lanes, "find", fail_lanes)
    monkeypatch.setattr(completions, "complete", fail)
    async with exchanging(port, hand_in(workers[0], lease), ask(workers[1]), ask(workers[2], _WAIT_SECONDS)) as lines:
        first = await anext(lines)
        assert _statuses(first) == {0: 503, 1: 503}
        assert {answer["retry_after"] for answer in first} == {1}
        monkeypatch.undo()
        await port.submitted()
        assert [_statuses(line) async for line in lines] == [{2: 200}]


async def test_large_tasks_come_in_several_lines(port: Service) -> None:
    workers = [await port.worker() for _ in range(4)]
    for _ in workers:
        await port.submitted(payload={"text": "x" * 700_000})
    async with exchanging(port, *map(ask, workers)) as lines:
        counts = [len(line) async for line in lines]
    assert counts == [2, 2]
