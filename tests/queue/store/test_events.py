"""Events are read in an order in which no reader ever misses one, whoever commits when."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database, now
from app.kernel.events import TaskEvent
from app.queue.store import events
from app.queue.store.events import BEGINNING, Cursor, Event
from tests.support.sql import execute, uncommitted


async def _tell(connection: AsyncConnection, task_id: UUID | None = None) -> UUID:
    task_id = task_id or uuid4()
    await events.append(connection, TaskEvent.SUBMITTED, task_id=task_id, agent_type="ranking", goal_id="goal")
    return task_id


async def _told(database: Database) -> UUID:
    async with database.transaction() as connection:
        return await _tell(connection)


async def _read(database: Database, after: Cursor = BEGINNING, limit: int = 100) -> list[Event]:
    async with database.transaction() as connection:
        return list((await events.read_batch(connection, after, None, limit)).items)


async def _everything(database: Database, after: Cursor = BEGINNING, limit: int = 100) -> list[UUID | None]:
    """What a reader sees that follows its cursor page by page."""
    seen = []
    while page := await _read(database, after, limit):
        seen += [event.task_id for event in page]
        after = page[-1].cursor
    return seen


async def test_pages_follow_each_other_without_gap_or_repetition(database: Database) -> None:
    told = [await _told(database) for _ in range(7)]
    assert await _everything(database, limit=3) == told


async def test_one_transaction_may_span_pages(database: Database) -> None:
    async with database.transaction() as connection:
        told = [await _tell(connection) for _ in range(7)]
    assert await _everything(database, limit=3) == told


async def test_an_earlier_transaction_that_commits_later_is_not_skipped(database: Database) -> None:
    async with uncommitted(database) as slow:
        first = await _tell(slow)
        second = await _told(database)
        assert await _read(database) == []
        await slow.commit()
    assert await _everything(database) == [first, second]


async def test_a_reader_stays_behind_a_transaction_that_is_still_open(database: Database) -> None:
    before = await _told(database)
    async with uncommitted(database) as slow:
        late = await _tell(slow)
        after = await _told(database)
        (seen,) = await _read(database)
        assert seen.task_id == before
        await slow.commit()
    assert await _everything(database, seen.cursor) == [late, after]


async def test_what_was_written_last_comes_last_although_its_transaction_began_first(database: Database) -> None:
    """It may have waited for a lock of the other, and its change follows the other's."""
    async with uncommitted(database) as slow:
        await slow.exec_driver_sql("SELECT pg_current_xact_id()")
        early = await _told(database)
        late = await _tell(slow)
        await slow.commit()
    seen = await _read(database)
    assert [event.task_id for event in seen] == [early, late]


async def test_a_transaction_that_rolls_back_holds_nobody_up(database: Database) -> None:
    async with uncommitted(database) as slow:
        await _tell(slow)
        told = await _told(database)
    assert await _everything(database) == [told]


async def test_now_is_before_whatever_comes(database: Database) -> None:
    await _told(database)
    async with database.transaction() as connection:
        now = await events.latest(connection)
    assert await _read(database, now) == []
    told = await _told(database)
    assert await _everything(database, now) == [told]


async def test_now_is_before_the_first_event_of_a_new_database(own_database: Database) -> None:
    async with own_database.transaction() as connection:
        now = await events.latest(connection)
    told = await _told(own_database)
    assert await _everything(own_database, now) == [told]


async def test_now_does_not_miss_what_is_being_written(database: Database) -> None:
    async with uncommitted(database) as slow:
        late = await _tell(slow)
        async with database.transaction() as connection:
            now = await events.latest(connection)
        await slow.commit()
    assert late in await _everything(database, now)


@pytest.mark.parametrize("cursor", [BEGINNING, Cursor(transaction=12, seq=345)])
def test_a_cursor_is_written_plainly(cursor: Cursor) -> None:
    assert str(cursor) == f"{cursor.transaction}-{cursor.seq}"


async def test_a_time_leads_to_a_cursor_shortly_before_it(database: Database) -> None:
    async with database.transaction() as connection:
        assert await events.cursor_before(connection, await now(connection)) <= await events.latest(connection)
    minutes = 20
    told = [await _told(database) for _ in range(minutes)]
    for age, task_id in enumerate(reversed(told)):
        query = "UPDATE events SET at = now() - make_interval(mins => $2) WHERE task_id = $1"
        await execute(database, query, task_id, age)
    for age in (-1, 0, 1, 7, minutes, minutes * 100):
        async with database.transaction() as connection:
            # The looks are for half a minute before, in the middle between two events.
            moment = await now(connection) - timedelta(minutes=age)
            cursor = await events.cursor_before(connection, moment)
        assert await _everything(database, cursor) == told[max(0, minutes - 1 - age) :], age


async def test_the_cursor_of_a_time_is_never_of_what_was_dropped(database: Database) -> None:
    for _ in range(3):
        await _told(database)
    (first, *_) = await _read(database)
    mark = "INSERT INTO folds (name, transaction, seq) VALUES ('events dropped', $1, $2)"
    await execute(database, mark, first.cursor.transaction, first.cursor.seq)
    async with database.transaction() as connection:
        cursor = await events.cursor_before(connection, first.at - timedelta(days=1))
    assert cursor == first.cursor
