"""Daily partitions: made ahead, dropped when their time is over, and never in the way of a row."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text

from app.db import retention
from app.db.database import Database
from app.settings import MAX_DAYS
from tests.support.sql import execute, fetch, until_blocked, value
from tests.support.turns import fold_events

_EVENT = (
    "INSERT INTO events (at, kind, task_id, agent_type) VALUES ($1, 'task.submitted', gen_random_uuid(), 'ranking')"
)
_MANY = "SELECT $1, 'task.submitted', gen_random_uuid(), 'ranking' FROM generate_series(1, 100000)"
_BYTES = "SELECT pg_relation_size('events_default')"
_PLACE = "SELECT DISTINCT tableoid::regclass::text FROM events"


async def _create_ahead(database: Database, days: int = 3) -> list[str]:
    async with database.transaction() as connection:
        return await retention.create_ahead(connection, days)


async def _drop_older(database: Database, days: int) -> list[str]:
    async with database.transaction() as connection:
        old = await retention.old_partitions(connection, "events", days)
        assert all([await retention.drop(connection, name) for name in old])
    return old


async def _today(database: Database) -> date:
    found: date = await value(database, "SELECT (now() AT TIME ZONE 'UTC')::date")
    return found


async def _drop_days(database: Database, *days: date) -> None:
    """Drop the partitions of events of these days; a database that was made before midnight lacks the last."""
    await execute(database, "DROP TABLE IF EXISTS " + ", ".join(f"events_{day:%Y%m%d}" for day in days))


@pytest.fixture
def abroad() -> Iterator[Callable[[str], None]]:
    """Move this process to another time zone."""
    with pytest.MonkeyPatch.context() as patch:

        def move(zone: str) -> None:
            patch.setenv("TZ", zone)
            time.tzset()

        yield move
    time.tzset()


async def test_partitions_are_made_once(own_database: Database) -> None:
    await _create_ahead(own_database)
    assert await _create_ahead(own_database) == []
    assert len(await _create_ahead(own_database, 5)) == 2 * 2


async def test_rows_go_to_their_day(own_database: Database) -> None:
    await _create_ahead(own_database)
    today = await _today(own_database)
    await execute(own_database, _EVENT, datetime.combine(today, datetime.min.time(), UTC))
    assert await value(own_database, _PLACE) == f"events_{today:%Y%m%d}"


async def test_a_day_that_nobody_prepared_loses_nothing(own_database: Database) -> None:
    """Housekeeping stood still; its rows are in the default partition, where they stay."""
    day = await _today(own_database) + timedelta(days=30)
    await execute(own_database, _EVENT, datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=20))
    assert await value(own_database, _PLACE) == "events_default"
    made = await _create_ahead(own_database, 31)
    assert f"events_{day:%Y%m%d}" not in made
    assert f"events_{day + timedelta(days=1):%Y%m%d}" in made
    assert f"task_history_{day:%Y%m%d}" in made


async def test_a_large_default_partition_keeps_writers_waiting_only_briefly(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new partition costs a look at all of its rows under a lock that nobody can write beside."""
    day = await _today(own_database) + timedelta(days=30)
    await execute(own_database, f"{_EVENT.partition('VALUES')[0]} {_MANY}", day - timedelta(days=10))
    monkeypatch.setattr(retention, "_LONGEST_CREATION_MS", 5)
    async with own_database.transaction() as connection:
        assert not await retention.create(connection, "events", day)
    assert await value(own_database, "SELECT count(*) FROM every_event") == 100_000
    monkeypatch.undo()
    async with own_database.transaction() as connection:
        assert await retention.create(connection, "events", day)


async def test_of_a_larger_one_only_the_day_that_comes_is_taken(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would grow for ever otherwise; and for no other day writers have to wait."""
    today = await _today(own_database)
    await _drop_days(own_database, *(today + timedelta(days=n) for n in (1, 2, 3)))
    await execute(own_database, f"{_EVENT.partition('VALUES')[0]} {_MANY}", today - timedelta(days=10))
    monkeypatch.setattr(retention, "_LONGEST_CREATION_MS", 5)
    monkeypatch.setattr(retention, "_SMALL_BYTES", 0)
    async with own_database.transaction() as connection:
        days = await retention.missing_days(connection, "events")
        assert days == [today + timedelta(days=1)]
        with monkeypatch.context() as patch:
            patch.setattr(retention, "_LARGEST_BYTES", 0)
            assert not await retention.create(connection, "events", days[0])
        assert await retention.create(connection, "events", days[0])
        assert await retention.missing_days(connection, "events") == []


async def test_an_operator_makes_partitions_beside_the_largest_default_one_by_one_look_at_it(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row of another day is in the way of them, and none is refused afterwards."""
    today = await _today(own_database)
    days = [today + timedelta(days=n) for n in range(1, 7)]
    await _drop_days(own_database, *days[:3])
    await execute(own_database, _EVENT, datetime.combine(today, datetime.min.time(), UTC) - timedelta(days=10))
    ahead = datetime.combine(days[5], datetime.min.time(), UTC)  # by a clock that was set back since
    await execute(own_database, _EVENT, ahead)
    monkeypatch.setattr(retention, "_LARGEST_BYTES", 0)
    async with own_database.transaction() as connection:
        assert await retention.too_large(connection) == {"events": await value(own_database, _BYTES)}
        assert not await retention.create(connection, "events", days[0])
        looks = text("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'events_default'")
        before = (await connection.execute(looks)).scalar_one()
        made = await retention.create_beside_default(connection, "events", days=30, seconds=60)
        assert made == [f"events_{day:%Y%m%d}" for day in days[:5]]
        assert (await connection.execute(looks)).scalar_one() - before == 1
    for day in (days[0], days[5], days[5] + timedelta(days=1)):
        await execute(own_database, _EVENT, datetime.combine(day, datetime.min.time(), UTC))
    names = await fetch(own_database, _PLACE)
    assert {name for (name,) in names} == {"events_default", made[0]}
    async with own_database.transaction() as connection:
        assert await retention.create_beside_default(connection, "events", days=5, seconds=60) == []


async def test_an_operator_who_makes_partitions_waits_for_nobody(own_database: Database) -> None:
    await _drop_days(own_database, await _today(own_database) + timedelta(days=1))
    async with own_database.transaction() as reader, own_database.transaction() as connection:
        await reader.execute(text("SELECT FROM events LIMIT 1"))
        assert await retention.create_beside_default(connection, "events", days=1, seconds=60) is None


async def test_an_operator_who_makes_partitions_ends_a_vacuum_of_the_default_one(own_database: Database) -> None:
    """PostgreSQL ends an automatic one for whoever has waited for a second, and that of a large table takes long."""
    await _drop_days(own_database, await _today(own_database) + timedelta(days=1))
    async with asyncio.TaskGroup() as group, own_database.transaction() as connection:
        async with own_database.transaction() as vacuum:
            await vacuum.exec_driver_sql("LOCK TABLE events_default IN SHARE UPDATE EXCLUSIVE MODE")
            made = group.create_task(retention.create_beside_default(connection, "events", days=1, seconds=60))
            await until_blocked(own_database)
            await asyncio.sleep(1.2)
        assert await made is not None


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize("hour", [1, 23])
async def test_days_are_those_of_utc_wherever_we_and_the_server_are(
    own_database: Database, abroad: Callable[[str], None], zone: str, hour: int
) -> None:
    abroad(zone)
    name = own_database.url.rpartition("/")[2]
    await execute(own_database, f"ALTER DATABASE {name} SET timezone = '{zone}'")
    elsewhere = Database(own_database.url)
    day = await _today(elsewhere) + timedelta(days=30)
    await execute(elsewhere, _EVENT, datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=hour))
    made = await _create_ahead(elsewhere, 31)
    await elsewhere.close()
    assert f"events_{day:%Y%m%d}" not in made
    assert {f"events_{day + timedelta(days=step):%Y%m%d}" for step in (-1, 1)} <= set(made)


async def test_only_what_is_older_is_dropped_and_whole(own_database: Database) -> None:
    today = await _today(own_database)
    old = [today - timedelta(days=ago) for ago in (9, 8, 7, 6)]
    for day in old:
        for statement in retention._creation("events", day):
            await execute(own_database, statement)
        await execute(own_database, _EVENT, datetime.combine(day, datetime.min.time(), UTC))
    await fold_events(own_database)
    dropped = await _drop_older(own_database, 7)
    assert dropped == [f"events_{day:%Y%m%d}" for day in old[:2]]
    assert await value(own_database, "SELECT count(*) FROM events") == 2
    assert await value(own_database, "SELECT to_regclass('events_default') IS NOT NULL")


async def test_the_last_event_that_goes_is_noted(own_database: Database) -> None:
    """Whether with its partition or from the default one."""
    today = await _today(own_database)
    days = [datetime.combine(today - timedelta(days=days), datetime.min.time(), UTC) for days in (20, 9, 0)]
    async with own_database.transaction() as connection:
        await retention.create(connection, "events", days[1].date())
    for day in days:
        await execute(own_database, _EVENT, day)
    seqs = [row["seq"] for row in await fetch(own_database, "SELECT seq FROM events ORDER BY at")]
    mark = "SELECT seq FROM folds WHERE name = 'events dropped'"
    await fold_events(own_database)
    async with own_database.transaction() as connection:
        assert await retention.prune_default(connection, "events", 7) == 1
    assert await value(own_database, mark) == seqs[0]
    await _drop_older(own_database, 7)
    assert await value(own_database, mark) == seqs[1]


@pytest.mark.parametrize(
    ("table", "ours"),
    [("events_20260101", True), ("task_history_default", True), ("events", False), ("events_2026", False)],
)
def test_partitions_are_told_from_tables(table: str, *, ours: bool) -> None:
    assert retention.is_partition(table) is ours


async def test_what_is_to_be_kept_for_as_long_as_settings_allow_is_kept(own_database: Database) -> None:
    """Partitions are compared by names, and only years of four digits let that: with 500,000 days all were dropped."""
    await _create_ahead(own_database)
    assert await _drop_older(own_database, MAX_DAYS) == []
