"""Of several servers the one is found that serves, and a process works on one at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from app.db import connections, hot_path
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
