"""Whoever no longer wants an answer hangs up, in whatever moment that comes and however often it is said."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress

import httpx
import pytest

from tests.worker_agent.llm.loopback import ReceivedRequest, ResponseWriter, serving
from worker_agent.llm.cancellation import cancel_at_most_once
from worker_agent.llm.permits import PermitClient
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.upstream import UpstreamClient

_SECONDS = 30.0


Ask = Callable[[httpx.AsyncClient], Coroutine[object, object, object]]
_SETTINGS = GatewaySettings(base_url="http://127.0.0.1/v1", models=("gpt-4.1",))
_WAYS: dict[str, Ask] = {
    "whole": lambda http: UpstreamClient(_SETTINGS, http).ask({"model": "gpt-4.1"}, None),
    "stream": lambda http: UpstreamClient(_SETTINGS, http).open_stream({"model": "gpt-4.1"}, None),
    # A handler that is killed may just be asking for an earlier answer.
    "control plane": lambda http: PermitClient(http, lambda: "key").cached_answer("a digest", "m"),
}


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("begins", [False, True], ids=["silent", "begun"])
@pytest.mark.parametrize("way", _WAYS)
async def test_two_cancellations_that_follow_each_other(way: str, begins: bool, turns: int) -> None:
    reached, hung_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless(request: ReceivedRequest, writer: ResponseWriter) -> None:
        if begins:
            writer.begin({"content-type": "text/event-stream"})
        loop.call_soon_threadsafe(reached.set)
        if writer.sees_hang_up(_SECONDS):
            loop.call_soon_threadsafe(hung_up.set)

    with serving(endless) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http, asyncio.timeout(_SECONDS):
            asking = asyncio.create_task(_WAYS[way](http))
            await reached.wait()
            await asyncio.sleep(0.02)
            asking.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled()
            await hung_up.wait()


async def test_a_result_that_nobody_wants_is_undone() -> None:
    undone: list[str] = []

    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(_SECONDS)
        return "opened"

    async def undo(result: str) -> None:
        await asyncio.sleep(0)
        undone.append(result)

    doing = asyncio.create_task(cancel_at_most_once(stubborn(), undo))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    doing.cancel()
    await asyncio.wait({doing})
    assert doing.cancelled()
    assert undone == ["opened"]


async def test_a_failure_is_passed_on() -> None:
    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await cancel_at_most_once(failing())
