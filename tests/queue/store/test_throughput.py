"""Minutes are folded from events: every one once, whoever commits when, in batches that end between transactions."""

import random
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.db.folds import FoldedBatch
from app.kernel.agents import AgentType
from app.kernel.histograms import BOUNDS, bucket
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import MinuteCount
from app.queue.store import throughput
from tests.support.sql import execute, fetch, uncommitted, value

_TELL = """
INSERT INTO events (kind, task_id, agent_type, priority, seconds, at)
SELECT '{kind}', gen_random_uuid(), 'ranking', {priority}, {seconds}, now() - interval '{ago}'
FROM generate_series(1, {count})
"""
_HOUR = timedelta(hours=1)


async def _tell(
    connection: AsyncConnection,
    count: int = 1,
    kind: str = "task.assigned",
    seconds: float | None = 1.0,
    *,
    priority: str = "3",
    ago: str = "0 s",
) -> None:
    told = "NULL" if seconds is None else str(seconds)
    await connection.exec_driver_sql(_TELL.format(kind=kind, priority=priority, seconds=told, ago=ago, count=count))


async def _told(
    database: Database,
    count: int = 1,
    kind: str = "task.assigned",
    seconds: float | None = 1.0,
    *,
    priority: str = "3",
    ago: str = "0 s",
) -> None:
    async with database.transaction() as connection:
        await _tell(connection, count, kind, seconds, priority=priority, ago=ago)


async def _fold(database: Database, limit: int = 1000) -> FoldedBatch:
    async with database.transaction() as connection:
        return await throughput.fold(connection, limit)


async def _recent(database: Database) -> list[MinuteCount]:
    async with database.transaction() as connection:
        return await throughput.recent_minutes(connection, _HOUR)


async def _counted(database: Database) -> int:
    return sum(minute.durations.count for minute in await _recent(database))


async def test_an_event_is_counted_by_minute_lane_and_kind(database: Database) -> None:
    await _told(database, 2, seconds=3.0, ago="0 s")
    await _told(database, 1, "task.submitted", None)
    await _told(database, 1, seconds=0.001, ago="10 min")
    assert await _fold(database) == FoldedBatch(events=4, has_more=False)
    found = sorted(await _recent(database), key=lambda minute: (minute.start, minute.kind))
    assert {minute.lane for minute in found} == {Lane(agent_type=AgentType.RANKING, priority=Priority.HIGH)}
    assert [minute.kind for minute in found] == ["task.assigned", "task.assigned", "task.submitted"]
    old, new, submitted = (minute.durations for minute in found)
    assert old.count == 1
    assert old.longest == pytest.approx(0.001)
    assert old.histogram[0] == 1
    assert (new.count, new.seconds, new.longest, new.histogram[bucket(3.0)]) == (2, 6.0, 3.0, 2)
    assert (submitted.count, submitted.seconds, list(submitted.histogram)) == (1, 0.0, [])
    assert found[0].start < found[1].start


async def test_nothing_is_counted_twice(database: Database) -> None:
    await _told(database, 3)
    await _fold(database)
    assert await _fold(database) == FoldedBatch(events=0, has_more=False)
    assert await _counted(database) == 3


async def test_what_comes_later_is_added(database: Database) -> None:
    for seconds in (0.5, 7.0, 0.5):
        await _told(database, 2, seconds=seconds)
        await _fold(database)
    found = [minute.durations for minute in await _recent(database)]
    assert sum(part.count for part in found) == 6
    assert sum(part.seconds for part in found) == pytest.approx(16.0)
    assert max(part.longest for part in found) == 7.0
    assert sum(part.histogram[bucket(0.5)] for part in found) == 4
    assert all(len(part.histogram) == len(BOUNDS) + 1 for part in found)


async def test_events_that_know_no_priority_are_passed_over(database: Database) -> None:
    await _told(database, 5, priority="NULL")
    assert (await _fold(database)).events == 5
    assert await _fold(database) == FoldedBatch(events=0, has_more=False)
    assert await _recent(database) == []


async def test_a_transaction_that_is_open_is_counted_when_it_is_over(database: Database) -> None:
    async with uncommitted(database) as slow:
        await _tell(slow)
        await _told(database)
        assert (await _fold(database)).events == 0
        await slow.commit()
    assert (await _fold(database)).events == 2


async def test_each_event_is_counted_once_whoever_commits_when(database: Database) -> None:
    """Transactions of random length, folds in between."""
    draw = random.Random(7)
    told, folded = 0, 0
    for _ in range(12):
        async with uncommitted(database) as one, uncommitted(database) as other:
            for connection in draw.choices([one, other], k=4):
                await _tell(connection, 1 + draw.randrange(3))
                if draw.random() < 0.5:
                    folded += (await _fold(database, 2)).events
            await (one if draw.random() < 0.5 else other).commit()
            folded += (await _fold(database, 2)).events
    while (batch := await _fold(database, 2)).events:
        folded += batch.events
    told = int(await value(database, "SELECT count(*) FROM every_event"))
    assert told == folded == await _counted(database)


async def test_a_batch_ends_between_transactions(database: Database) -> None:
    for count in (4, 4, 4):
        await _told(database, count)
    assert await _fold(database, 10) == FoldedBatch(events=8, has_more=True)
    assert await _fold(database, 10) == FoldedBatch(events=4, has_more=False)


async def test_a_transaction_larger_than_a_batch_is_taken_whole(database: Database) -> None:
    for count in (30, 2):
        await _told(database, count)
    assert await _fold(database, 10) == FoldedBatch(events=30, has_more=True)
    assert await _fold(database, 10) == FoldedBatch(events=2, has_more=False)


async def test_a_batch_of_just_the_right_size(database: Database) -> None:
    await _told(database, 10)
    await _told(database, 1)
    assert await _fold(database, 10) == FoldedBatch(events=10, has_more=True)
    assert await _fold(database, 10) == FoldedBatch(events=1, has_more=False)


async def test_buckets_are_the_same_in_sql(database: Database) -> None:
    seconds = [0.0, *(bound * factor for bound in BOUNDS for factor in (0.999, 1.0, 1.001)), 1e9]
    query = "SELECT width_bucket(s, $1::float8[]) FROM unnest($2::float8[]) WITH ORDINALITY AS t (s, n) ORDER BY n"
    assert [row[0] for row in await fetch(database, query, list(BOUNDS), seconds)] == list(map(bucket, seconds))


async def test_what_finished_a_second(database: Database) -> None:
    async with database.transaction() as connection:
        assert await throughput.finished_per_second(connection) == 0.0
    await _told(database, 60, "task.completed")
    await _told(database, 60, "task.failed")
    await _told(database, 60, "task.assigned")
    await _told(database, 60, "task.completed", ago="5 min")
    await _fold(database)
    async with database.transaction() as connection:
        assert 1.0 <= await throughput.finished_per_second(connection) <= 2.0


async def test_totals_and_what_is_forgotten(database: Database) -> None:
    await _told(database, 2, "task.failed")
    await _told(database, 3, "task.displaced", ago="30 min")
    await _told(database, 4, "task.failed", ago="2 h")
    await _told(database, 5, "task.failed", ago="3 days")
    await _fold(database)
    async with database.transaction() as connection:
        assert await throughput.count_events(connection, {"task.failed", "task.displaced"}, _HOUR) == 5
        assert await throughput.prune(connection, 2) == 1
        assert await throughput.count_events(connection, {"task.failed"}, timedelta(days=9)) == 6


@pytest.mark.slow
async def test_a_fold_reads_from_its_mark_only(own_database: Database) -> None:
    """Whatever the planner knows of the events, it must not walk through the old ones."""
    for _ in range(10):
        await _told(own_database, 10_000)
        await _fold(own_database, 20_000)
    await _told(own_database, 100)
    for preparation in ("SELECT 1", "ANALYZE"):
        await execute(own_database, preparation)
        async with uncommitted(own_database) as connection:
            values = {"until": 2**62, "limit": 20_000, "bounds": list(BOUNDS)}
            rows = await connection.execute(
                throughput._FOLD.__class__(f"EXPLAIN (ANALYZE) {throughput._FOLD.text}"), values
            )
            plan = "\n".join(rows.scalars())
        assert "Seq Scan on events" not in plan, plan
        assert "Index" in plan


async def test_minutes_of_before_the_clock_was_set_back_are_not_recent(database: Database) -> None:
    """By an hour, all that had ended within it counted as of the last minute."""
    await _told(database, 600, "task.completed")
    await _fold(database)
    await execute(database, "UPDATE queue_minutes SET minute = minute + interval '1 h'")
    assert await _recent(database) == []
    async with database.transaction() as connection:
        assert await throughput.finished_per_second(connection) == 0
