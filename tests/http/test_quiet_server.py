"""The server that wakes once a second, and at once when it is stopped."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import uvicorn

from app.http import quiet_server
from app.http.quiet_server import QuietServer


class _Server(QuietServer):
    """Counts its looks."""

    looks = 0

    async def on_tick(self, counter: int) -> bool:
        self.looks += 1
        return await super().on_tick(counter)


@pytest.fixture
def server() -> _Server:
    config = uvicorn.Config(app=lambda *_: None, log_config=None)
    config.load()
    return _Server(config)


def _set(server: _Server) -> None:
    server.should_exit = True


def _signal(_: _Server) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def handled(server: _Server) -> Iterator[None]:
    """A signal that is handled as uvicorn handles those that stop it: while the event loop waits."""
    former = signal.signal(signal.SIGUSR1, server.handle_exit)
    yield
    signal.signal(signal.SIGUSR1, former)


@pytest.mark.parametrize("stop", [_set, _signal])
@pytest.mark.usefixtures("handled")
async def test_it_stops_at_once(
    server: _Server, monkeypatch: pytest.MonkeyPatch, stop: Callable[[_Server], None]
) -> None:
    monkeypatch.setattr(quiet_server, "_TICK_SECONDS", 600.0)
    serving = asyncio.create_task(server.main_loop())
    asyncio.get_running_loop().call_later(0.2, stop, server)
    async with asyncio.timeout(20):
        await serving
    assert server.looks == 2


async def test_it_does_not_begin_where_it_is_stopped_before(server: _Server) -> None:
    server.should_exit = True
    await server.main_loop()
    assert server.looks == 1


async def test_it_renews_the_date_of_its_answers_and_hardly_wakes(server: _Server) -> None:
    serving = asyncio.create_task(server.main_loop())
    dates = set[bytes]()
    # By dates, not by time: on a busy machine more than one second may go by in each of ours.
    async with asyncio.timeout(30):
        while len(dates) < 3:
            await asyncio.sleep(0.1)
            dates |= {value for name, value in server.server_state.default_headers if name == b"date"}
    server.should_exit = True
    await serving
    assert server.looks <= 5
