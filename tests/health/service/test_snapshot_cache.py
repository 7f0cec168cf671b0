"""The snapshot of the system: shared, in time whatever the database does, at the same cost for any number of tasks."""

import asyncio
import re
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from app.db.database import Database
from app.health.rules.finding import Overall
from app.health.rules.report import DATABASE_AWAY, DATABASE_SLOW
from app.health.service.snapshot_cache import CachePolicy, SnapshotCache, SnapshotSettings, read_snapshot
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.queue.rules.admission import CapacityPolicy
from tests.conftest import run_on
from tests.support.factories import leased, ready_worker, submitted
from tests.support.plans import plans_of
from tests.support.ports import free_port
from tests.support.proxy import silent_line
from tests.support.sql import execute, until, until_blocked

_SETTINGS = SnapshotSettings(capacity=CapacityPolicy(), initial_mode=Mode.DEVELOPMENT, silent_seconds=15)
# As long as a busy machine needs; tests of the limits shorten them.
_PATIENT = CachePolicy(fresh_seconds=0, statement_seconds=20, wait_seconds=30, silence_seconds=30)
_EAGER = CachePolicy(fresh_seconds=0, statement_seconds=0.2, wait_seconds=0.5)


@pytest.fixture
async def cache(database: Database) -> AsyncIterator[SnapshotCache]:
    cache = SnapshotCache(Database(database.url, connections=1), _SETTINGS, _PATIENT)
    yield cache
    await cache.close()


async def test_a_fresh_system_with_workers_is_seen(database: Database, cache: SnapshotCache) -> None:
    for _ in range(2):
        await ready_worker(database)
    await submitted(database, 3)
    snapshot = await cache.read()
    assert (snapshot.pool.idle, snapshot.min_workers, snapshot.target_workers, snapshot.queue.count()) == (
        2,
        2,
        None,
        3,
    )
    report, answered = await cache.report()
    assert answered
    # Nothing has ever run the duties.
    assert (report.overall, report.reasons[0].code) == (Overall.CRITICAL, "loops_never_ran")


async def test_loops_that_have_stopped_for_a_minute_are_critical(database: Database, cache: SnapshotCache) -> None:
    for _ in range(2):
        await ready_worker(database)
    await execute(database, "INSERT INTO loop_ticks (duty, last_run_at, every_seconds) VALUES ('a', now(), 1)")
    assert (await cache.report())[0].overall is Overall.HEALTHY
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() - interval '1 min'")
    report, _ = await cache.report()
    assert [(r.code, r.level) for r in report.reasons if r.level != "note"] == [("loops_silent", "critical")]


async def test_the_target_is_that_of_the_last_decision(database: Database, cache: SnapshotCache) -> None:
    for target in (4, 7):
        await execute(
            database,
            "INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output)"
            " VALUES (now(), 'scale_up', 1, $1, '{}', '{}')",
            target,
        )
    assert (await cache.read()).target_workers == 7


async def test_all_who_ask_at_once_share_a_snapshot(database: Database, cache: SnapshotCache) -> None:
    snapshots = await asyncio.gather(*(cache.read() for _ in range(20)))
    assert len({id(snapshot) for snapshot in snapshots}) == 1
    assert await cache.read() is not snapshots[0]
    cache.policy = CachePolicy(fresh_seconds=60)
    assert await cache.read() is await cache.read()


async def test_a_locked_table_is_reported_in_time_and_forgotten_after(database: Database, cache: SnapshotCache) -> None:
    await ready_worker(database)
    await cache.report()
    async with database.engine.connect() as other:
        await other.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        cache.policy = _EAGER
        began = time.monotonic()
        report, answered = await cache.report()
        took = time.monotonic() - began
        await other.rollback()
    assert not answered
    assert took < 10, "the lock would have been waited for to the end"
    assert (report.overall, report.reasons[0].code) == (Overall.CRITICAL, DATABASE_SLOW)
    assert report.total_workers == 1
    assert report.reasons[1].code == "out_of_date"
    cache.policy = _PATIENT
    assert (await cache.report())[1]


async def test_who_stops_waiting_leaves_the_snapshot_to_others(database: Database, cache: SnapshotCache) -> None:
    cache.policy = CachePolicy(fresh_seconds=0, statement_seconds=20, wait_seconds=0.05)
    async with database.engine.connect() as other:
        await other.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(DatabaseUnavailable):
            await cache.read()
        await until_blocked(database)
        with pytest.raises(DatabaseUnavailable):
            await cache.read()
        await until_blocked(database, 1)
        cache.policy = CachePolicy(fresh_seconds=0)
        waiting = asyncio.create_task(cache.read())
        await other.rollback()
    assert (await waiting).pool.total == 0


async def test_without_a_database_it_still_reports() -> None:
    cache = SnapshotCache(
        Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", connections=1), _SETTINGS, _PATIENT
    )
    report, answered = await cache.report()
    assert not answered
    assert (report.overall, report.reasons[0].code) == (Overall.CRITICAL, DATABASE_AWAY)
    await cache.close()


async def test_a_database_that_goes_and_comes_back(own_database: Database, server_url: str) -> None:
    cache = SnapshotCache(Database(own_database.url, connections=1), _SETTINGS, _PATIENT)
    await ready_worker(own_database)
    assert (await cache.report())[1]
    name = own_database.url.rpartition("/")[2]
    await run_on(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await run_on(server_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    async def gone() -> bool:
        return not (await cache.report())[1]

    await until(gone)
    report, _ = await cache.report()
    assert [reason.code for reason in report.reasons] == [DATABASE_AWAY, "out_of_date"]
    assert report.total_workers == 1
    await run_on(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    async def back() -> bool:
        return (await cache.report())[1]

    await until(back)
    await cache.close()


async def test_others_that_have_taken_all_connections_are_told_of(own_database: Database, server_url: str) -> None:
    """It said that the database cannot be reached, beside commands that reached it."""
    await run_on(server_url, f"ALTER DATABASE {own_database.url.rpartition('/')[2]} CONNECTION LIMIT 0")
    cache = SnapshotCache(Database(own_database.url, connections=1), _SETTINGS, _EAGER)
    report, answered = await cache.report()
    assert not answered
    assert (report.overall, report.reasons[0].code) == (Overall.CRITICAL, DATABASE_AWAY)
    assert report.reasons[0].message == "the database has no connection left for us"
    await cache.close()


async def test_a_database_that_is_not_as_it_should_be_is_reported(own_database: Database) -> None:
    await execute(own_database, "DROP TABLE utilisation")
    cache = SnapshotCache(Database(own_database.url, connections=1), _SETTINGS, _PATIENT)
    report, answered = await cache.report()
    assert not answered
    assert (report.overall, report.reasons[0].code) == (Overall.CRITICAL, DATABASE_AWAY)
    assert "the log of the API says why" in report.reasons[0].message
    await cache.close()


async def test_a_connection_that_has_gone_silent_is_replaced(database: Database) -> None:
    """As after a failover: packets of the old connection get lost, and a new one would be answered."""
    policy = CachePolicy(fresh_seconds=0, wait_seconds=0.1, silence_seconds=0.3)
    async with silent_line(database.url) as line:
        cache = SnapshotCache(Database(line.url, connections=1), _SETTINGS, _PATIENT)
        await cache.read()
        cache.policy = policy
        line.hush()
        with pytest.raises(DatabaseUnavailable):
            await cache.read()
        # On the new one a busy machine may need longer.
        cache.policy = _PATIENT

        async def answered() -> bool:
            return (await cache.report())[1]

        await until(answered)
        await cache.close()


async def test_all_connections_of_others_may_be_taken(database: Database, cache: SnapshotCache) -> None:
    async with asyncio.TaskGroup() as group:
        taken = [await database.engine.connect() for _ in range(10)]
        reading = group.create_task(cache.read())
    for connection in taken:
        await connection.close()
    assert reading.result().database.connections > 0


async def test_a_snapshot_walks_through_nothing_that_grows_with_the_tasks(own_database: Database) -> None:
    """Whatever statistics the planner has: of the tasks only those that workers hold are read, by key."""
    await submitted(own_database, 500)
    for _ in range(3):
        await leased(own_database, await ready_worker(own_database))
    for preparation in ("SELECT 1", "ANALYZE"):
        await execute(own_database, preparation)
        plans = await plans_of(own_database, lambda: _take_snapshot(own_database))
        assert len(plans) >= 15
        assert sum(" on leases" in plan for plan in plans) == 1, "each worker is looked up in the ledger once"
        for plan in plans:
            assert not re.search(r" on (task_history|events|task_attempts)\w*", plan), plan
            for line in re.findall(r"^.* on (?:tasks|leases)\b.*$", plan, re.MULTILINE):
                assert re.search(r"using (tasks|leases)_pkey", line), plan


async def _take_snapshot(database: Database) -> None:
    async with database.transaction() as connection:
        await read_snapshot(connection, _SETTINGS)
