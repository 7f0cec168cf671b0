"""Shares of what is not hot: one key cannot keep others waiting, and hot routes never wait."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from app.admin.rules.keys import read_key
from app.http.callers import ReadLog
from app.http.shares import SharePolicy, Shares
from app.kernel.access import Principal, Role
from app.kernel.errors import TooManyRequests
from tests.support.service import Service

_BRIEF = SharePolicy(of_key=2, in_all=3, wait_seconds=0.05, waiting=4)


async def test_a_key_has_so_many_turns_and_others_have_theirs() -> None:
    shares = Shares(_BRIEF)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(shares.of("one"))
        with pytest.raises(TooManyRequests):
            await stack.enter_async_context(shares.of("one"))
        await stack.enter_async_context(shares.of("other"))
        # All turns are taken now, and who was refused has left none behind.
        with pytest.raises(TooManyRequests):
            await stack.enter_async_context(shares.of("third"))
    async with shares.of("one"), shares.of("one"), shares.of("third"):
        pass
    assert shares._usual._by_key == {}


async def test_who_waits_gets_the_turn_that_becomes_free() -> None:
    shares = Shares(SharePolicy(of_key=1, wait_seconds=30))
    done: list[int] = []

    async def work(number: int) -> None:
        async with shares.of("one"):
            await asyncio.sleep(0)
            done.append(number)

    await asyncio.gather(*(work(number) for number in range(50)))
    assert done == list(range(50))


async def test_a_key_cannot_pile_up_waiting_requests() -> None:
    shares = Shares(SharePolicy(of_key=1, wait_seconds=30, waiting=4))
    async with shares.of("one"):
        waiting = [asyncio.create_task(shares.of("one").__aenter__()) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await shares.of("one").__aenter__()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert shares._usual._by_key == {}


async def test_a_key_that_does_too_much_at_once_is_told_so(service: Service) -> None:
    shares = service.app.state.services[Shares]
    shares._usual._policy = _BRIEF
    key = read_key(service.keys[Role.OPERATOR])
    assert key is not None
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(shares.of(key[0]))
        answer = await service.ask("GET", "/tasks", key=Role.OPERATOR)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) >= 1
        # Others, hot routes, and what waits for something to happen are served.
        assert (await service.ask("GET", "/tasks", key=Role.ADMIN)).status_code == 200
        assert (await service.ask("GET", "/events", key=Role.OPERATOR)).status_code == 200
        body = {"agent_type": "ranking"}
        assert (await service.ask("POST", "/tasks", body, key=Role.OPERATOR)).status_code == 201
    assert (await service.ask("GET", "/tasks", key=Role.OPERATOR)).status_code == 200


async def test_a_key_that_is_revoked_while_it_waits_for_its_turn_changes_nothing(service: Service) -> None:
    key = read_key(service.keys[Role.OPERATOR])
    assert key is not None
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(service.app.state.services[Shares].of(key[0]))
        pause = asyncio.create_task(service.ask("POST", "/queues/pause", {}, key=Role.OPERATOR))
        while service.app.state.services[Shares]._usual._by_key[key[0]].requests < 5:
            await asyncio.sleep(0.01)
        assert (await service.ask("DELETE", f"/keys/{key[0]}", key=Role.ADMIN)).status_code == 204
        while (await service.ask("POST", "/tasks", {"agent_type": "ranking"}, key=Role.OPERATOR)).status_code == 201:
            await asyncio.sleep(0.05)
    assert (await pause).status_code in (401, 429)
    assert (await service.ask("GET", "/queues", key=Role.MONITOR)).json()["paused"] == []


async def test_a_caller_has_one_large_body_worked_on_at_a_time_and_all_have_two() -> None:
    shares, large = Shares(), 3 << 20
    async with shares.of_body("a", large):
        second = asyncio.ensure_future(shares.of_body("a", large).__aenter__())
        async with shares.of_body("a", 1000), shares.of_body("b", large):
            third = asyncio.ensure_future(shares.of_body("c", large).__aenter__())
            await asyncio.sleep(0.05)
            assert not third.done()
        await asyncio.wait_for(third, 30)
        assert not second.done(), "whoever sends many keeps others waiting for one of them only"
    await asyncio.wait_for(second, 30)


async def test_a_caller_has_one_batch_of_calls_read_at_a_time() -> None:
    shares = Shares()
    async with shares.of_batch("a"):
        second = asyncio.ensure_future(shares.of_batch("a").__aenter__())
        async with shares.of_batch("b"):
            await asyncio.sleep(0.05)
            assert not second.done()
    await asyncio.wait_for(second, 30)


async def test_the_record_of_a_read_is_written_within_its_share(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    async def note(principal: Principal, action: str, address: str) -> None:
        share = service.app.state.services[Shares]._usual._by_key.get(principal.key_id)
        requests.append((action, address, share.requests if share else 0))

    monkeypatch.setattr(service.app.state.services[ReadLog], "note", note)
    await service.get("/tasks", limit=3)
    assert requests == [("tasks.read", "/tasks?limit=3", 1)]


async def test_the_size_of_a_namespace_has_a_share_of_what_costs_much(service: Service) -> None:
    shares = service.app.state.services[Shares]
    shares._costly._policy = SharePolicy(of_key=1, in_all=2, wait_seconds=0.05)
    key = read_key(service.keys[Role.ADMIN])
    assert key is not None
    async with shares.of(key[0], is_costly=True):
        answer = await service.ask("GET", "/context/n", params={"size": True})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert (await service.get("/context/n"))["items"] == []
    assert (await service.get("/context/n", size=True))["size"] == {"entries": 0, "bytes": 0}
