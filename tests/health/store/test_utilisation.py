"""Samples are added to their minute at once: none is lost to a rival, none is counted for two."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from app.db import hot_path
from app.db.database import Database
from app.health.rules.utilisation import POOL, WORKERS, Measure, Sample, host_subject, single_sample
from app.health.store import utilisation
from app.workers.store import workers
from tests.conftest import run_on
from tests.support.factories import beat, leased, ready_worker, submitted
from tests.support.plans import PlanLog, explained_database
from tests.support.sql import early_in_a_minute, execute, fetch, until_blocked, value

_LAB = host_subject("lab")
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)


async def _add(database: Database, *samples: Sample, apart: float = 0.0) -> int:
    async with database.transaction() as connection:
        return await utilisation.add_samples(connection, samples, apart_seconds=apart)


async def test_samples_of_a_minute_are_put_together(database: Database) -> None:
    await early_in_a_minute(database)
    for low, mean, high in ((1.0, 10.0, 20.0), (5.0, 30.0, 90.0)):
        await _add(database, Sample(subject=WORKERS, measure=Measure.CPU, low=low, mean=mean, high=high))
    await _add(database, single_sample(_LAB, Measure.CPU, 7.0))
    async with database.transaction() as connection:
        spans = {span.subject: span for span in await utilisation.recent_minutes(connection, _HOUR)}
    assert spans[_LAB].last == 7.0
    span = spans[WORKERS]
    assert (span.samples, span.low, span.mean, span.high, span.last) == (2, 1.0, 20.0, 90.0, 30.0)


async def test_two_processes_of_a_host_count_once(database: Database) -> None:
    await early_in_a_minute(database)
    await _add(database, single_sample(_LAB, Measure.CPU, 7.0))
    assert (
        await _add(database, single_sample(_LAB, Measure.CPU, 8.0), single_sample(_LAB, Measure.MEMORY, 1.0), apart=30)
        == 1
    )
    rows = await fetch(database, "SELECT measure, samples FROM utilisation ORDER BY measure")
    assert [tuple(row) for row in rows] == [("cpu", 1), ("memory", 1)]
    await execute(database, "UPDATE utilisation SET last_at = last_at - interval '31 s'")
    assert await _add(database, single_sample(_LAB, Measure.CPU, 9.0), apart=30) == 1


async def test_minutes_of_before_the_clock_was_set_back_are_not_recent(database: Database) -> None:
    """The last sample before would stay the newest of its host until the old time came."""
    await _add(database, single_sample(_LAB, Measure.MEMORY, 99.0))
    ahead = ", ".join(f"{column} = {column} + interval '1 h'" for column in ("minute", "last_at"))
    await execute(database, f"UPDATE utilisation SET {ahead}")
    await _add(database, single_sample(_LAB, Measure.MEMORY, 20.0))
    async with database.transaction() as connection:
        assert [span.last for span in await utilisation.recent_minutes(connection, _HOUR)] == [20.0]


async def test_rivals_wait_for_each_other_in_one_order_and_lose_nothing(database: Database) -> None:
    await early_in_a_minute(database)
    cpu, memory = single_sample(_LAB, Measure.CPU, 1.0), single_sample(_LAB, Measure.MEMORY, 1.0)
    await _add(database, cpu, memory)
    async with database.transaction() as first:
        await utilisation.add_samples(first, [cpu], apart_seconds=0)
        second = asyncio.create_task(_add(database, memory, cpu))
        await until_blocked(database)
        # The second waits without having written anything that the first still wants.
        await utilisation.add_samples(first, [memory], apart_seconds=0)
    await second
    assert await value(database, "SELECT sum(samples) FROM utilisation") == 6


async def test_workers_are_measured_by_what_they_have(database: Database) -> None:
    one, other, mute = [await ready_worker(database) for _ in range(3)]
    for worker_id, percent, mib in ((one, 50.0, 256.0), (other, 150.0, 512.0)):
        reported = beat(worker_id, cpu_percent=percent, memory_mb=mib)
        await hot_path.run(database, lambda c, reported=reported: workers.record_heartbeats(c, [reported], 15.0))  # type: ignore[misc]
    nothing = beat(mute, cpu_percent=None, memory_mb=None)
    await hot_path.run(database, lambda c: workers.record_heartbeats(c, [nothing], 15.0))
    await execute(database, "UPDATE workers SET cpu_cores = 2, memory_gb = 1")
    async with database.transaction() as connection:
        samples = {s.measure: s for s in await utilisation.sample_workers(connection, fresh_seconds=15)}
    cpu, memory = samples[Measure.CPU], samples[Measure.MEMORY]
    assert (cpu.low, cpu.mean, cpu.high) == (25.0, 50.0, 75.0)
    assert (memory.low, memory.mean, memory.high) == (25.0, 37.5, 50.0)
    assert (samples[Measure.CORES].mean, samples[Measure.GIGABYTES].mean) == (2.0, 0.75)


@pytest.mark.parametrize("least", [5e-324, 1e-310])
async def test_what_is_next_to_nothing_spoils_no_sample(database: Database, least: float) -> None:
    one, other = [await ready_worker(database) for _ in range(2)]
    reported = [beat(one, cpu_percent=least, memory_mb=least), beat(other, cpu_percent=50.0, memory_mb=512.0)]
    await hot_path.run(database, lambda c: workers.record_heartbeats(c, reported, 15.0))
    await execute(database, "UPDATE workers SET cpu_cores = 1, memory_gb = 1")
    async with database.transaction() as connection:
        samples = {s.measure: s for s in await utilisation.sample_workers(connection, fresh_seconds=15)}
    assert {measure: samples[measure].mean for measure in (Measure.CPU, Measure.MEMORY)} == {
        "cpu": 25.0,
        "memory": 25.0,
    }
    await execute(database, "UPDATE workers SET cpu_cores = $1, memory_gb = $1 WHERE id = $2", least, other)
    async with database.transaction() as connection:
        samples = {s.measure: s for s in await utilisation.sample_workers(connection, fresh_seconds=15)}
    assert samples[Measure.CORES].mean == 0.5, "cores and gigabytes in use are known, whatever there is of them"


async def test_nobody_has_said_anything(database: Database) -> None:
    worker_id = await ready_worker(database)
    reported = beat(worker_id, cpu_percent=None, memory_mb=None)
    await hot_path.run(database, lambda c: workers.record_heartbeats(c, [reported], 15.0))
    async with database.transaction() as connection:
        assert await utilisation.sample_workers(connection, fresh_seconds=15) == []
    await execute(database, "UPDATE workers SET cpu_percent = 5, last_seen_at = now() - interval '1 min'")
    async with database.transaction() as connection:
        assert await utilisation.sample_workers(connection, fresh_seconds=15) == []


async def test_the_pool_is_busy_by_the_share_that_holds_a_task(database: Database) -> None:
    async with database.transaction() as connection:
        assert await utilisation.sample_pool(connection) is None
    busy = await ready_worker(database)
    for _ in range(3):
        await ready_worker(database)
    await submitted(database)
    await leased(database, busy)
    async with database.transaction() as connection:
        sample = await utilisation.sample_pool(connection)
    assert sample == single_sample(POOL, Measure.BUSY, 25.0)


_OLD = """
INSERT INTO utilisation (minute, subject, measure, samples, total, low, high, last, last_at)
SELECT timestamptz '2026-01-01T00:00Z' + n * interval '1 min', 'host:lab', 'cpu', 2, 2 * n, n - 1, n + 1, n,
       timestamptz '2026-01-01T00:00Z' + n * interval '1 min' + interval '55 s'
FROM generate_series(0, 119) AS n WHERE n NOT BETWEEN 60 AND 69
"""


async def test_steps_put_minutes_together_and_leave_gaps(database: Database) -> None:
    await execute(database, _OLD)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    async with database.transaction() as connection:
        spans = await utilisation.read_steps(connection, since=start, until=start + 2 * _HOUR, step=10 * _MINUTE)
        assert (
            await utilisation.read_steps(
                connection, since=start, until=start + _HOUR, step=_MINUTE, subject="host:other"
            )
            == []
        )
    assert [(span.start - start) // _MINUTE for span in spans] == [0, 10, 20, 30, 40, 50, 70, 80, 90, 100, 110]
    first = spans[0]
    assert (first.samples, first.mean, first.low, first.high) == (20, 4.5, -1.0, 10.0)


_DAY = """
INSERT INTO utilisation (minute, subject, measure, samples, total, low, high, last, last_at)
SELECT minute, 'host:' || host, 'cpu', 2, 2, 1, 1, 1, minute FROM generate_series(1, 10) AS host
CROSS JOIN generate_series(timestamptz '2026-01-01T00:00Z', '2026-01-01T23:59Z', interval '1 min') AS minute
"""


def _sorted(log: PlanLog) -> list[int]:
    """Of each step that sorts, the number of its rows."""
    nodes = [plan["Plan"] for plan in log.plans]
    for node in nodes:
        nodes += node.get("Plans", [])
    return [int(node["Actual Rows"]) for node in nodes if node["Node Type"] == "Sort"]


async def test_steps_look_once_at_each_minute_and_at_none_of_other_subjects(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A week of 20 hosts has 600,000 rows: sorting them took seconds, and so did one host among them."""
    await execute(own_database, _DAY)
    await run_on(own_database.url, "ANALYZE utilisation")
    start, rows = datetime(2026, 1, 1, tzinfo=UTC), {}
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        for subject in (None, "host:3", "host:none"):
            log.take()
            async with database.transaction() as connection:
                steps = await utilisation.read_steps(
                    connection, since=start, until=start + 24 * _HOUR, step=_HOUR, subject=subject, limit=1000
                )
            assert not [rows for rows in _sorted(log) if rows > len(steps)]
            rows[subject] = log.take().rows
            assert len(steps) == {None: 240, "host:3": 24, "host:none": 0}[subject]
    # A bitmap has each row twice.
    assert 14_400 <= rows[None] < 2.2 * 14_400
    assert 1440 <= rows["host:3"] < 2.2 * 1440
    assert rows["host:none"] < 10


async def test_what_is_old_is_forgotten(database: Database) -> None:
    await execute(database, _OLD)
    await _add(database, single_sample(_LAB, Measure.CPU, 7.0))
    async with database.transaction() as connection:
        assert await utilisation.prune(connection, 30) == 110
    assert await value(database, "SELECT count(*) FROM utilisation") == 1
