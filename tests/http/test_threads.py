"""A process that may start no more threads, as under a limit of a container, goes on with those that it has."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db.database import Database
from app.http import bodies, computing
from app.kernel.access import Role
from tests.support.service import make_keys, serving


def _refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_requests_need_no_new_thread(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large body, a checkpoint and a scrape were answered with 500."""
    for module, name in ((bodies, "_parser"), (computing, "_thread")):
        monkeypatch.setattr(module, name, ThreadPoolExecutor(max_workers=1))
    async with serving(database.url, await make_keys(database)) as service:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _refuse)
            payload = {"list": [{"number": number, "text": "x" * 20} for number in range(12_000)]}
            body = {"agent_type": "ranking", "payload": payload}
            submitted = await service.ask("POST", "/tasks", body, key=Role.SUPERVISOR)
            taken = await service.ask("POST", "/checkpoints", {"reason": "test"})
            scraped = await service.ask("GET", "/metrics", key=Role.MONITOR)
            may_end = threading.Event()
            checkpoint = asyncio.create_task(asyncio.to_thread(may_end.wait))
            await asyncio.sleep(0)
            beside_it = await service.ask("GET", "/metrics", key=Role.MONITOR)
            may_end.set()
            await checkpoint
    assert [answer.status_code for answer in (submitted, taken, scraped, beside_it)] == [201, 201, 200, 200]


@pytest.mark.parametrize("room", [1, 3])
async def test_the_service_starts_with_room_for_fewer_threads(
    database: Database, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    start, others = threading.Thread.start, set(threading.enumerate())

    def start_while_there_is_room(thread: threading.Thread) -> None:
        common = [one for one in set(threading.enumerate()) - others if one.name.startswith("common")]
        if thread.name.startswith("common") and len(common) >= room:
            _refuse(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_while_there_is_room)
    async with serving(database.url, await make_keys(database)) as service:
        may_end = threading.Event()
        waits = [asyncio.create_task(asyncio.to_thread(may_end.wait)) for _ in range(room)]
        scrape = asyncio.create_task(service.ask("GET", "/metrics", key=Role.MONITOR))
        await asyncio.sleep(0.1)
        assert not scrape.done()
        may_end.set()
        await asyncio.gather(*waits)
        assert (await scrape).status_code == 200
