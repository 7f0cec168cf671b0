"""Of several servers the one is found that serves, and a process works on one at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from app.db import connections, hot_path
from app.db.connections import Connections, RunningServer
from app.db.database import Database, now
from tests.db.test_database import look, refuse
from tests.support.proxy import Line, silent_line

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(answer: Answer) -> AsyncIterator[int]:
    """A server that is none, and its port."""
    server = await asyncio.start_server(answer, "127.0.0.1")
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def _database(real_url: str, *ports: int) -> AsyncIterator[Database]:
    """A database with these ports before that of the real server."""
    parts = urlsplit(real_url)
    user, _, place = parts.netloc.rpartition("@")
    hosts = ",".join([*(f"127.0.0.1:{port}" for port in ports), place])
    database = Database(parts._replace(netloc=f"{user}@{hosts}").geturl())
    yield database
    await database.close()


def _port(line: Line) -> int:
    port = urlsplit(line.url).port
    assert port is not None
    return port


async def _serves(database: Database) -> None:
    async with database.transaction() as connection:
        await now(connection)
    await hot_path.run(database, look)


async def test_a_host_that_is_silent_costs_its_share_of_the_time_once(database_url: str) -> None:
    """As one that is off: the driver waited there until no time was left for the other, for ever."""
    async with silent_line(database_url) as silent, _database(database_url, _port(silent)) as database:
        silent.is_dead = True
        await _serves(database)
        assert silent.count == 1


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("answer", [lambda r, w: refuse(r, w, "57P03"), _hang_up], ids=["starting up", "hangs up"])
async def test_a_server_that_lets_nobody_in_now_is_passed_over(database_url: str, answer: Answer) -> None:
    async with _server(answer) as other, _database(database_url, other) as database:
        await _serves(database)


async def test_whoever_has_found_another_server_leaves_the_former_for_good(database_url: str) -> None:
    """Connections to a former primary that nobody has stopped were used beside those to the new one."""
    async with AsyncExitStack() as stack:
        former = await stack.enter_async_context(silent_line(database_url))
        database = await stack.enter_async_context(_database(database_url, _port(former)))
        await _serves(database)
        assert former.count == 2
        old = await database.connect()
        # New connections to it get no answer, and those that are open still work.
        former.is_dead = True
        (await database.connect()).terminate()
        assert old.is_closed()
        former.come_back()
        count = former.count
        await _serves(database)
        assert former.count == count


async def test_whoever_gets_through_to_the_former_server_late_leads_nobody_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cut all connections to the other one, and the process worked on the former again."""
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 2.0)
    parts, line, may_answer = urlsplit(database_url), Line(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_answer.wait()
        await line.serve(reader, writer, parts.hostname or "127.0.0.1", parts.port or 5432)

    async with _server(answer) as former, _database(database_url, former) as database:
        first = asyncio.create_task(database.connect())
        await asyncio.sleep(0.5)
        late = asyncio.create_task(database.connect())
        connection = await first
        may_answer.set()
        second = await late
        assert not connection.is_closed()
        assert line.count == 2
        assert not second.is_closed()
        await _serves(database)
        assert line.count == 2
        line.close()


async def test_many_that_find_another_server_at_once_do_not_cut_each_other(database_url: str) -> None:
    async with _server(_hang_up) as other, _database(database_url, other) as database:
        found = await asyncio.gather(*(database.connect() for _ in range(5)))
        assert not any(connection.is_closed() for connection in found)


async def test_the_look_for_a_successor_goes_on_after_whatever_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    async def stumble(url: str) -> RunningServer | None:
        looks.append(url)
        raise RuntimeError("a bug")

    monkeypatch.setattr(connections, "_WATCH_SECONDS", 0.001)
    monkeypatch.setattr(connections, "_server_at", stumble)
    watch = asyncio.create_task(Connections("postgresql://a,b/convener", None).watch())
    async with asyncio.timeout(10):
        while len(looks) < 3:
            await asyncio.sleep(0.001)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_who_has_moved_during_the_look_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut once more, and took the former server for the one on which it works."""
    pool, cuts, looks = Connections("postgresql://a,b/convener", None), 0, 0

    def cut() -> None:
        nonlocal cuts
        cuts += 1

    async def move_meanwhile(url: str) -> RunningServer:
        nonlocal looks
        looks += 1
        if looks == moves_at:
            pool._move(pool._servers, pool._servers[1])
        started_at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=looks)
        return RunningServer(place=url, started_at=started_at, system=1, timeline=looks)

    monkeypatch.setattr(pool, "cut", cut)
    monkeypatch.setattr(connections, "_server_at", move_meanwhile)
    for moves_at in (1, 2):
        looks, cuts = 0, 0
        await pool._look_for_successor(pool._servers)
        assert (looks, cuts) == (moves_at, 1)
