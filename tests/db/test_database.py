"""What callers learn when PostgreSQL is away, refuses a value, or breaks off."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import asyncpg
import pytest

from app.db import database as app_database
from app.db import hot_path
from app.db.database import Database, now, plain_url
from app.kernel.errors import ConvenerError, DatabaseUnavailable, Locked, Unstorable
from app.kernel.lanes import Lane
from app.queue.broker.lane_view import LANES
from app.queue.store import ready_lanes
from tests.support.factories import submitted
from tests.support.sql import execute, until_blocked, value


@pytest.fixture
async def nowhere() -> AsyncIterator[Database]:
    """A database on a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        database = Database(f"postgresql://nobody@127.0.0.1:{probe.getsockname()[1]}/nothing")
        yield database
        await database.close()


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, code: str) -> None:
    """Answer as PostgreSQL does while it starts, stops or is full."""
    while True:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        if await reader.readexactly(length - 4) != struct.pack("!i", 80877103):
            break
        writer.write(b"N")
    fields = b"SFATAL\0VFATAL\0C" + code.encode() + b"\0Mgo away\0\0"
    writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
    await writer.drain()
    writer.close()


@pytest.fixture(params=["57P03", "53300", "57P01"], ids=["starting up", "too many connections", "shutting down"])
async def refusing(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    server = await asyncio.start_server(lambda r, w: refuse(r, w, request.param), "127.0.0.1")
    database = Database(f"postgresql://nobody@127.0.0.1:{server.sockets[0].getsockname()[1]}/nothing")
    yield database
    await database.close()
    server.close()


async def look(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[Lane, float]:
    return await ready_lanes.find(connection, LANES)


async def _ask_both_ways(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction() as connection:
            await now(connection)
    with pytest.raises(DatabaseUnavailable):
        await hot_path.run(database, look)


async def test_nobody_listens(nowhere: Database) -> None:
    await _ask_both_ways(nowhere)


async def test_of_several_servers_none_is_taken_that_takes_no_writes(own_database: Database) -> None:
    """As libpq has it, the first that answered was: a standby, while its primary started anew, and for ever after."""
    name = own_database.url.rpartition("/")[2]
    await execute(own_database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    place = own_database.url.rpartition("/")[0].rpartition("@")[2]
    url = own_database.url.replace(place, f"{place},{place}")
    several, whichever = Database(url), Database(f"{url}?target_session_attrs=any")
    try:
        await _ask_both_ways(several)
        async with whichever.transaction() as connection:
            await now(connection)
    finally:
        await several.close()
        await whichever.close()


async def test_servers_of_which_none_takes_writes_are_an_outage(database_url: str) -> None:
    """As while a standby is promoted: each duty told of it at each of its turns."""
    standbys = Database(f"{database_url}?target_session_attrs=standby")
    with pytest.raises(DatabaseUnavailable):
        async with standbys.transaction():
            pass
    assert standbys.outage.is_on
    await standbys.close()


async def test_an_outage_is_one_line_until_it_is_over(nowhere: Database, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with nowhere.transaction() as connection:
            await now(connection)

    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await ask()
    assert caplog.text.count("the database has been away") == 1
    nowhere.outage.note_answer()
    nowhere.outage.note_answer()
    assert caplog.text.count("the database is back after") == 1


async def test_an_outage_of_all_connections_of_a_program_is_one(
    nowhere: Database, caplog: pytest.LogCaptureFixture
) -> None:
    others = Database(nowhere.url, outage=nowhere.outage)
    for database in (nowhere, others):
        await _ask_both_ways(database)
    await others.close()
    assert caplog.text.count("the database has been away") == 1


async def test_the_server_takes_no_connections_now(refusing: Database) -> None:
    await _ask_both_ways(refusing)


async def test_connections_that_broke_are_replaced(database: Database) -> None:
    async with database.transaction() as connection:
        await now(connection)
    await hot_path.run(database, look)
    statement = """
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'convener'
          AND query NOT LIKE 'LISTEN%'
    """
    await execute(database, statement)
    async with database.transaction() as connection:
        await now(connection)
    for _ in range(3):
        try:
            assert await hot_path.run(database, look) == {}
            break
        except DatabaseUnavailable:
            continue
    else:
        pytest.fail("the hot path does not recover")


async def test_a_transaction_that_is_cut_off_is_an_outage(database: Database) -> None:
    async def cut_off() -> None:
        async with database.transaction() as connection:
            pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
            await execute(database, "SELECT pg_terminate_backend($1, 5000)", pid)
            await now(connection)

    with pytest.raises(DatabaseUnavailable):
        await cut_off()


async def test_a_value_that_cannot_be_stored_is_the_callers_fault(database: Database) -> None:
    with pytest.raises(Unstorable):
        await submitted(database, payload='{"text":"\\u0000"}')
    with pytest.raises(Unstorable):
        await submitted(database, goal_id="\0")
    with pytest.raises(Unstorable):
        await hot_path.run(database, lambda c: c.fetch("SELECT $1::text::jsonb", '"\\u0000"'))


async def test_what_is_nobodys_fault_is_not_disguised(database: Database) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        await hot_path.run(database, lambda c: c.fetch("SELECT FROM nothing"))
    with pytest.raises(TypeError):
        await hot_path.run(database, _mistaken)


async def _mistaken(_: object) -> None:
    raise TypeError


async def test_the_victim_of_a_deadlock_may_try_again(database: Database) -> None:
    """On the hot path it does so by itself; elsewhere the caller is told to."""
    one, other = await submitted(database, 2)
    lock = "SELECT FROM tasks WHERE id = $1 FOR UPDATE"

    async def survive() -> None:
        async with database.transaction() as connection:
            await connection.exec_driver_sql("SET LOCAL deadlock_timeout = '1min'")
            await connection.exec_driver_sql(lock, (one,))
            await connection.exec_driver_sql(lock, (other,))

    async def lose() -> None:
        async with database.transaction() as connection:
            await connection.exec_driver_sql("SET LOCAL deadlock_timeout = '10ms'")
            await connection.exec_driver_sql(lock, (other,))
            surviving.append(asyncio.create_task(survive()))
            await until_blocked(database)
            await connection.exec_driver_sql(lock, (one,))

    surviving: list[asyncio.Task[None]] = []
    with pytest.raises(DatabaseUnavailable):
        await lose()
    await surviving[0]


async def test_a_hot_statement_that_lost_a_race_is_tried_again(database: Database) -> None:
    tries = 0

    async def unlucky(_: object) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise asyncpg.DeadlockDetectedError
        return tries

    assert await hot_path.run(database, unlucky) == 3


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.ConnectionDoesNotExistError, ValueError])
async def test_whoever_runs_a_hot_statement_learns_that_its_locks_are_free_again(
    database: Database, error: type[Exception]
) -> None:
    undone: list[str] = []

    async def fail(_: object) -> None:
        raise error

    with pytest.raises((error, DatabaseUnavailable)):
        await hot_path.run(database, fail, tries=2, on_undone=lambda: undone.append("try"))
    assert len(undone) == (2 if error is asyncpg.DeadlockDetectedError else 1)


async def test_nothing_is_undone_where_there_was_no_connection(nowhere: Database) -> None:
    undone: list[str] = []
    with pytest.raises(DatabaseUnavailable):
        await hot_path.run(nowhere, look, on_undone=lambda: undone.append("try"))
    assert undone == []


async def test_a_failed_commit_commits_nothing(own_database: Database) -> None:
    await execute(
        own_database,
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON tasks DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()""",
    )
    heard: set[str] = set()
    own_database.announcer.subscribe(heard.update)
    with pytest.raises(Exception, match="no") as failed:
        await submitted(own_database)
    assert not isinstance(failed.value, ConvenerError)
    assert await value(own_database, "SELECT count(*) FROM tasks") == 0
    assert heard == set()


async def test_many_transactions_at_once_share_the_connections(database: Database) -> None:
    async def brief() -> object:
        async with database.transaction() as connection:
            return await now(connection)

    assert len(await asyncio.gather(*(brief() for _ in range(60)))) == 60


async def test_no_connection_in_time_is_no_fault_of_the_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to come again, as where PostgreSQL itself has none left."""
    monkeypatch.setattr(database.engine.sync_engine.pool, "_timeout", 0.01)

    async def take_all(taken: AsyncExitStack) -> None:
        while True:
            await taken.enter_async_context(database.transaction())

    async with AsyncExitStack() as taken:
        with pytest.raises(DatabaseUnavailable, match="in use"):
            await take_all(taken)
    async with database.transaction() as connection:
        await now(connection)


async def test_reads_have_connections_of_their_own_and_not_too_many_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_database, "_MAX_READS", 3)

    async def read_one_more() -> None:
        async with database.reading():
            pass

    async with AsyncExitStack() as reads:
        for _ in range(3):
            await reads.enter_async_context(database.reading())
        with pytest.raises(DatabaseUnavailable, match="too many reads"):
            await read_one_more()
        async with database.transaction() as connection:
            await now(connection)
    await read_one_more()


async def test_a_read_waits_for_a_lock_only_so_long(database: Database) -> None:
    async def read() -> None:
        async with database.reading() as reading:
            await reading.exec_driver_sql("SELECT count(*) FROM tasks")

    async with database.transaction() as connection:
        await connection.exec_driver_sql("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Locked):
            await read()
    await read()


@pytest.mark.parametrize("url", ["postgresql://a@b/c", "postgres://a@b/c", "postgresql+asyncpg://a@b/c"])
def test_urls_of_any_driver_are_understood(url: str) -> None:
    assert plain_url(url) == "postgresql://a@b/c"


@pytest.mark.parametrize("url", ["", "mysql://a@b/c", "a@b/c", f"{uuid4()}"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        plain_url(url)
