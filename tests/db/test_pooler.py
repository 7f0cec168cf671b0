"""Through a real pgbouncer in transaction mode: what works there, and what is told where something does not."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from app.cli.pooler_checks import pooler_checks
from app.db import hot_path, notify, pooler, presence
from app.db.database import Database
from app.kernel.errors import DatabaseUnavailable
from app.kernel.presence import PresencePolicy
from app.terminal.databases import check_database
from app.terminal.failures import Failure
from tests.support.proxies import Pooler, pgbouncer
from tests.support.sql import execute, until

_SETTINGS = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "enable_seqscan",
    "jit",
    "max_parallel_workers_per_gather",
)


@pytest.fixture(scope="module")
def bouncer(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    with pgbouncer(server_url, tmp_path_factory.mktemp("pooler") / "pgbouncer.log") as bouncer:
        yield bouncer


@pytest.fixture(scope="module")
def name(emptied_url: str) -> str:
    return emptied_url.rpartition("/")[2]


@pytest.fixture
async def pooled(bouncer: Pooler, database: Database, name: str) -> AsyncIterator[Database]:
    """The database by way of the pooler, as the API uses it."""
    pooled = Database(bouncer.url(name), direct_url=database.url, statement_seconds=7)
    yield pooled
    await pooled.close()


async def _settings(database: Database) -> dict[str, str]:
    async with database.transaction() as connection:
        return {setting: (await connection.execute(text(f"SHOW {setting}"))).scalar_one() for setting in _SETTINGS}


async def test_transactions_have_the_limits_of_a_session_of_their_own(database: Database, pooled: Database) -> None:
    direct = Database(database.url, statement_seconds=7)
    assert await _settings(pooled) == await _settings(direct)
    assert (await _settings(pooled))["statement_timeout"] == "7s"
    await direct.close()
    other = Database(pooled.url, direct_url=pooled.direct_url)
    assert (await _settings(other))["statement_timeout"] == "30s"
    await other.close()


async def test_statements_of_the_hot_path_have_theirs_whoever_had_the_session_before(pooled: Database) -> None:
    async def shown(connection: hot_path.HotConnection) -> list[str]:
        return [await connection.fetchval(f"SHOW {setting}") for setting in _SETTINGS]

    await _settings(pooled)
    assert await hot_path.run(pooled, shown) == ["500ms", "5s", "8s", "off", "off", "0"]


async def test_each_transaction_is_read_committed_whatever_the_server_has(
    own_database: Database, bouncer: Pooler
) -> None:
    """Elsewhere who has waited for a lock does not see what was changed meanwhile, or fails."""
    name = own_database.url.rpartition("/")[2]
    await execute(own_database, f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    for database in (Database(own_database.url), Database(bouncer.url(name), direct_url=own_database.url)):
        async with database.transaction() as connection:
            shown = [(await connection.execute(text("SHOW transaction_isolation"))).scalar_one()]
        shown.append(await hot_path.run(database, lambda c: c.fetchval("SHOW transaction_isolation")))
        assert shown == ["read committed"] * 2
        await database.close()


async def test_what_a_dba_has_set_for_the_database_changes_no_answer_and_no_plan(
    own_database: Database, bouncer: Pooler
) -> None:
    """Moments were told in its zone, numbers lost digits, and a permit read 20,000 rows instead of 100."""
    name = own_database.url.rpartition("/")[2]
    queries = {
        "SELECT to_json(timestamptz 'epoch')::text": '"1970-01-01T00:00:00+00:00"',
        "SELECT to_json(1 / 3::float8)::text": "0.3333333333333333",
        "SHOW enable_nestloop": "on",
    }
    for setting in ("timezone = 'America/New_York'", "extra_float_digits = 0", "enable_nestloop = off"):
        await execute(own_database, f"ALTER DATABASE {name} SET {setting}")
    for database in (Database(own_database.url), Database(bouncer.url(name), direct_url=own_database.url)):
        for query, answer in queries.items():
            async with database.transaction() as transaction:
                assert (await transaction.execute(text(query))).scalar_one() == answer
            single = await database.connect_for_statements()
            assert await single.fetchval(query) == answer
            single.terminate()
        await database.close()


async def test_a_session_that_has_nothing_to_say_stays(own_database: Database) -> None:
    """With it a migration lost the lock that keeps others out, and announcements did not arrive."""
    name = own_database.url.rpartition("/")[2]
    await execute(own_database, f"ALTER DATABASE {name} SET idle_session_timeout = '20ms'")
    connection = await own_database.connect()
    await asyncio.sleep(1)
    assert await connection.fetchval("SELECT 1") == 1
    connection.terminate()


async def test_nothing_is_missing_with_the_files_of_deploy(pooled: Database) -> None:
    assert await pooler.shortcomings(pooled) == {}


async def test_news_arrive_from_process_to_process(pooled: Database, bouncer: Pooler, database: Database) -> None:
    other = Database(pooled.url, direct_url=pooled.direct_url)
    heard: list[notify.News] = []
    other.announcer.subscribe(heard.append)
    other.announcer.start()
    pooled.announcer.start()

    async def arrives() -> bool:
        pooled.announcer.announce(["weights"])
        return bool(heard)

    await until(arrives)
    await other.close()


async def test_listening_through_it_is_found_out(bouncer: Pooler, name: str, database: Database) -> None:
    deaf = Database(bouncer.url(name), direct_url=bouncer.url(name))
    with pytest.raises(Exception, match="unsupported startup parameter"):
        await pooler.hears(deaf.connect)
    assert not await pooler.hears(deaf.connect_for_statements)
    assert await pooler.hears(database.connect)
    await deaf.close()


def test_lost_statements_are_told_by_doctor(server_url: str, emptied_url: str, name: str, tmp_path: Path) -> None:
    with pgbouncer(server_url, tmp_path / "pgbouncer.log", settings=["max_prepared_statements = 0"]) as bouncer:
        checks = list(pooler_checks(bouncer.url(name), emptied_url))
    assert [(check.status.value, check.detail) for check in checks] == [("failed", pooler.FORGETFUL)]


def test_settings_that_are_missing_are_told_by_doctor(
    server_url: str, emptied_url: str, name: str, tmp_path: Path
) -> None:
    with pgbouncer(server_url, tmp_path / "pgbouncer.log") as bouncer:
        file = bouncer.directory / "databases.ini"
        file.write_text(file.read_text().partition(" connect_query=")[0])
        bouncer.reload()
        (check,) = pooler_checks(bouncer.url(name), emptied_url)
    missing = set(check.detail.rpartition(": ")[2].split(", "))
    # jit is off by default in some versions.
    assert (check.status.value, missing | {"jit"}) == ("failed", {*_SETTINGS, "client_connection_check_interval"})


def test_deaf_listening_is_told_by_doctor(server_url: str, name: str, tmp_path: Path) -> None:
    with pgbouncer(server_url, tmp_path / "pgbouncer.log") as bouncer:
        ini = bouncer.directory / "pgbouncer.ini"
        ours = "jit, enable_seqscan, statement_timeout, lock_timeout, idle_in_transaction_session_timeout"
        ours += ", tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, tcp_user_timeout"
        ours += ", client_connection_check_interval, default_transaction_isolation, max_parallel_workers_per_gather"
        ours += ", extra_float_digits, enable_nestloop, idle_session_timeout"
        ini.write_text(ini.read_text().replace("%include", f"ignore_startup_parameters = {ours}\n%include"))
        bouncer.reload()
        checks = list(pooler_checks(bouncer.url(name), None))
    assert [(check.status.value, check.detail) for check in checks] == [("failed", pooler.DEAF)]
    assert "CONVENER_DATABASE_DIRECT_URL" in checks[0].remedy


async def test_two_addresses_of_different_databases_are_told_apart(
    bouncer: Pooler, database: Database, shared: Database, name: str
) -> None:
    apart = Database(bouncer.url(name), direct_url=shared.url)
    assert await pooler.shortcomings(apart) == {pooler.APART: pooler.APART_REMEDY}
    await apart.close()


async def test_a_process_that_is_sent_through_it_does_not_start(bouncer: Pooler, name: str, database: Database) -> None:
    with pytest.raises(Failure) as refused:
        await check_database(bouncer.url(name))
    assert "connection pooler" in refused.value.message
    assert "CONVENER_DATABASE_DIRECT_URL" in (refused.value.hint or "")
    await check_database(bouncer.url(name), database.url)


async def test_a_process_of_the_api_is_over_when_its_own_session_is(pooled: Database, database: Database) -> None:
    policy = PresencePolicy(away_after_seconds=5)
    pooled.announcer.start()

    async def listens() -> bool:
        return pooled.announcer.backend is not None

    await until(listens)
    await hot_path.run(pooled, lambda c: presence.note(c, uuid4(), policy, pooled.announcer.backend))

    async def connected() -> list[bool]:
        async with database.transaction() as connection:
            return [process.is_connected for process in await presence.read(connection)]

    assert await connected() == [True]
    # The sessions behind the pooler stay, as they would for the next client.
    await pooled.announcer.stop()

    async def over() -> bool:
        return await connected() == [False]

    await until(over)


async def _write_as_on_a_standby(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("SET TRANSACTION READ ONLY"))
        await connection.execute(text("UPDATE loop_ticks SET runs = runs"))


async def test_a_standby_counts_as_away(pooled: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        await _write_as_on_a_standby(pooled)


async def test_the_start_of_a_process_warns_in_words(
    bouncer: Pooler, database: Database, shared: Database, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await check_database(bouncer.url(name), database.url)
    assert not caplog.records
    await check_database(bouncer.url(name), shared.url)
    assert [record.getMessage() for record in caplog.records] == [f"{pooler.APART}; {pooler.APART_REMEDY}"]
