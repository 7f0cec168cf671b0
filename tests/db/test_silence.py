"""A network that loses everything without a word: nobody waits for ever, and what comes next works."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from app.db import hot_path, notify
from app.db.connections import Connections, LimitedConnection, Limits
from app.db.database import Database, now
from app.kernel.errors import DatabaseUnavailable
from tests.db.test_outage import ask, ask_hot
from tests.support.proxy import Line, silent_line
from tests.support.sql import execute, until, value

_RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%abandoned */'"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(notify, "_ANSWER_SECONDS", 1.0)


@pytest.fixture
async def line(database: Database) -> AsyncIterator[Line]:
    async with silent_line(database.url) as line:
        yield line


@pytest.fixture
async def far(line: Line) -> AsyncIterator[Database]:
    """The database over that line, with limits as a service has them."""
    far = Database(line.url, statement_seconds=1)
    yield far
    await far.close()


@pytest.mark.slow
async def test_a_statement_over_a_silent_line_ends_and_its_connection_is_thrown_away(far: Database, line: Line) -> None:
    await ask(far)
    line.hush()
    before = line.count
    async with asyncio.timeout(30):
        with pytest.raises(DatabaseUnavailable):
            await ask(far)
        await ask(far)
    assert line.count == before + 1


@pytest.mark.slow
async def test_a_silent_line_is_noticed_without_anybody_asking(
    far: Database, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """All connections are made anew, so that nobody has to lose a statement first to find out."""
    far.announcer.start()
    await ask(far)
    await ask_hot(far)
    line.hush()
    with caplog.at_level(logging.WARNING):
        await until(lambda: _holds("made anew" in caplog.text), within=60)
    await ask(far)
    assert await ask_hot(far) == 1


async def _holds(condition: bool) -> bool:
    return condition


@pytest.mark.slow
async def test_what_waits_when_the_silence_is_noticed_waits_no_longer(database: Database, line: Line) -> None:
    """Not even where its own limit is far away."""
    far = Database(line.url)
    far.announcer.start()
    # Connected, and not only connecting: a line that it makes anew is not silent.
    await until(lambda: _holds(far.announcer.backend is not None))
    async with asyncio.timeout(60):
        with pytest.raises(DatabaseUnavailable):
            await _fall_silent(far, line)
    await far.close()


async def _fall_silent(far: Database, line: Line) -> None:
    async with far.transaction() as connection:
        await now(connection)
        line.hush()
        await now(connection)


async def test_closing_does_not_wait_for_a_silent_line(line: Line) -> None:
    far = Database(line.url, statement_seconds=600)
    far.announcer.start()
    await ask(far)
    await ask_hot(far)
    waiting: list[asyncio.Task[object]] = [asyncio.create_task(ask(far)) for _ in range(3)]
    line.die()
    waiting += [asyncio.create_task(ask_hot(far)) for _ in range(3)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(30):
        await far.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} <= {DatabaseUnavailable, datetime}


async def test_a_cancelled_statement_costs_its_connection_and_ends_at_the_server(database: Database) -> None:
    """Nobody asks the server to cancel it, which a silent network would never answer."""
    far = Database(database.url, statement_seconds=60)
    task = asyncio.create_task(hot_path.run(far, lambda c: c.execute("SELECT pg_sleep(50) /* abandoned */")))
    await until(lambda: _is(database, _RUNNING, 1))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: _is(database, _RUNNING, 0), within=60)
    assert await ask_hot(far) == 1
    await far.close()


async def _is(database: Database, query: str, number: int) -> bool:
    return bool(await value(database, query) == number)


async def test_a_connection_that_is_cut_between_two_steps_of_a_statement_was_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a failover it was an error of ours, by a trace in the log and 500."""
    prepare = getattr(LimitedConnection, "_get_statement")  # noqa: B009 - not in the stubs of the driver

    async def prepare_and_cut(self: LimitedConnection, *arguments: Any, **options: Any) -> Any:
        statement = await prepare(self, *arguments, **options)
        self.terminate()
        return statement

    monkeypatch.setattr(LimitedConnection, "_get_statement", prepare_and_cut)
    with pytest.raises(DatabaseUnavailable):
        await hot_path.run(database, lambda connection: connection.fetch("SELECT 1"))


async def test_sockets_and_sessions_have_limits(database: Database) -> None:
    connection = await Connections(database.url).open(Limits(statement_seconds=7, lock_seconds=3))
    own_socket = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # no public way
    assert own_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert own_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert await connection.fetchval("SHOW statement_timeout") == "7s"
    assert await connection.fetchval("SHOW lock_timeout") == "3s"
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "8s"
    assert await connection.fetchval("SHOW tcp_user_timeout") in ("15s", "15000")
    assert await connection.fetchval("SHOW client_connection_check_interval") == "2s"
    await connection.close()


async def test_statements_that_the_driver_drops_are_limited_too(line: Line) -> None:
    connection = await Connections(line.url).open(Limits(statement_seconds=1))
    statement = await connection.prepare("SELECT 1")
    del statement
    connection._stmt_cache.clear()  # type: ignore[attr-defined]  # as a full cache does it
    line.hush()
    async with asyncio.timeout(60):
        with pytest.raises((TimeoutError, asyncpg.PostgresConnectionError)):
            await connection.fetchval("SELECT 2")
    assert connection.is_closed()
    assert isinstance(connection, LimitedConnection)


async def test_a_client_that_vanished_gives_back_its_locks(database: Database, line: Line) -> None:
    """At the server, to which the line seems well: a turn of a duty must not stay claimed by nobody."""
    await execute(database, "INSERT INTO loop_ticks (duty) VALUES ('sweep')")
    far = Database(line.url, statement_seconds=5)
    task = asyncio.create_task(_claim_and_fall_silent(far, line))
    started_at = time.monotonic()
    claim = "SELECT count(*) FROM (SELECT FROM loop_ticks WHERE duty = 'sweep' FOR UPDATE SKIP LOCKED) free"
    await until(lambda: _is(database, claim, 0))
    await until(lambda: _is(database, claim, 1), within=60)
    assert time.monotonic() - started_at < 60
    await far.close()
    await asyncio.gather(task, return_exceptions=True)


async def _claim_and_fall_silent(far: Database, line: Line) -> None:
    async with far.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM loop_ticks WHERE duty = 'sweep' FOR UPDATE")
        line.hush()
        await now(connection)


@pytest.mark.parametrize("is_hot", [False, True])
async def test_a_cancellation_during_a_statement_stays_a_cancellation(database: Database, is_hot: bool) -> None:
    """Also where the end of the transaction fails, as its connection is cut."""

    async def sleep() -> None:
        if is_hot:
            await hot_path.run(database, lambda c: c.execute("SELECT pg_sleep(50) /* cancelled */"))
        else:
            async with database.transaction() as connection:
                await connection.exec_driver_sql("SELECT pg_sleep(50) /* cancelled */")

    async def go_on_after_outages() -> None:
        while True:
            try:
                await sleep()
            except DatabaseUnavailable:
                await asyncio.sleep(3600)

    task = asyncio.create_task(go_on_after_outages())
    await until(lambda: _is(database, _RUNNING.replace("abandoned", "cancelled"), 1))
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
