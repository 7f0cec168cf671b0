"""A database that is away is told of in one line, whoever uses it, and in one more when it is back."""

import asyncio

import pytest

from app.admin.service.keyring import Keyring
from app.db import hot_path
from app.db.database import Database, now
from app.kernel.errors import DatabaseUnavailable
from app.loops.schedule import Job
from app.outage import Outage
from tests.conftest import run_on
from tests.support.ports import free_port
from tests.support.runner import running
from tests.support.sql import until

LOST = ConnectionRefusedError("nobody is there")


async def ask(database: Database) -> object:
    """The time, by a transaction."""
    async with database.transaction() as connection:
        return await now(connection)


async def ask_hot(database: Database) -> object:
    """Something, by the hot path."""
    return await hot_path.run(database, lambda c: c.fetchval("SELECT 1"))


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines of ours: asyncio logs what the connections of earlier tests have left to the collector at any time."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("app.")]


def test_a_line_at_once_then_one_a_minute_and_one_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage, moment = Outage(), 0.0
    monkeypatch.setattr("app.outage.time.monotonic", lambda: moment)
    for _ in range(1300):
        outage.note_failure(LOST)
        moment += 0.1
    outage.note_answer()
    outage.note_answer()
    seconds = [line.partition(" for ")[2].partition(" s")[0] for line in _lines(caplog)[:-1]]
    assert seconds == ["0", "60", "120"]
    assert _lines(caplog)[-1] == "the database is back after 130 s"


def test_tries_of_which_some_fail_and_some_succeed_fill_no_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the password has changed: old connections go on, and new ones are refused."""
    outage, moment = Outage(), 0.0
    monkeypatch.setattr("app.outage.time.monotonic", lambda: moment)
    for _ in range(300):
        outage.note_failure(LOST)
        outage.note_answer()
        moment += 0.1
    assert len(_lines(caplog)) == 2 * 3, "a pair in ten seconds"
    for _ in range(150):
        outage.note_failure(LOST)
        moment += 0.1
    assert len(_lines(caplog)) == 2 * 3 + 1, "one that lasts is told of"


async def test_whatever_uses_it_tells_of_it_in_one_line_together(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The hot path, transactions, announcements, the check of keys and duties all find nobody, several times."""
    host = database.url.rpartition("@")[2].partition("/")[0]
    away = Database(database.url.replace(host, f"127.0.0.1:{free_port()}"))
    away.announcer.start()
    following = asyncio.create_task(Keyring(away).follow())
    async with running(away, Job(name="asking", seconds=0.2, run=lambda _: _work(away))):
        for _ in range(8):
            for call in (ask, ask_hot):
                with pytest.raises(DatabaseUnavailable):
                    await call(away)
            await asyncio.sleep(0.2)
    following.cancel()
    await asyncio.wait([following])
    (line,) = _lines(caplog)
    assert line.startswith("the database has been away for 0 s")
    await away.close()


async def test_whoever_finds_all_connections_of_its_role_taken_tells_of_that(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All calls were refused, and no line of the log said why."""
    await run_on(database_url, f"ALTER DATABASE {database_url.rpartition('/')[2]} CONNECTION LIMIT 0")
    for call in (ask, ask_hot):
        late = Database(database_url)
        with pytest.raises(DatabaseUnavailable, match="no connection left for us"):
            await call(late)
        await late.close()
    assert _lines(caplog) == ["the database has been away for 0 s (TooManyConnectionsError), trying again"] * 2


async def test_the_hot_path_notices_when_it_is_back(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    database.outage.note_failure(LOST)
    await ask_hot(database)
    assert not database.outage.is_on
    assert "the database is back" in caplog.text


async def test_a_database_that_is_busy_is_not_called_away(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only connection of the hot path is in use for longer than others wait for it."""
    is_held, is_over = asyncio.Event(), asyncio.Event()

    async def hold(connection: hot_path.HotConnection) -> None:
        await connection.fetchval("SELECT 1")
        is_held.set()
        await is_over.wait()

    busy = Database(database.url, hot_connections=1)
    holding = asyncio.create_task(hot_path.run(busy, hold))
    await is_held.wait()
    monkeypatch.setattr(hot_path, "_ACQUIRE_SECONDS", 0.1)
    with pytest.raises(DatabaseUnavailable, match="all connections to the database are in use"):
        await ask_hot(busy)
    assert not busy.outage.is_on
    is_over.set()
    await holding
    assert not _lines(caplog)
    await busy.close()


async def test_the_same_error_of_a_duty_again_and_again_is_told_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    turns = 0

    async def fail(_: object) -> None:
        nonlocal turns
        turns += 1
        raise ValueError("bad luck")

    async def has_failed() -> bool:
        return turns > 5

    async with running(database, Job(name="failing", seconds=0.01, run=fail)):
        await until(has_failed)
    assert caplog.text.count("Traceback") == 1


async def _work(database: Database) -> None:
    await ask(database)
