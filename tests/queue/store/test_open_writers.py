"""Readers of events wait for transactions that write events, for nobody else, and are told who stays open."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import hot_path
from app.db.database import Database
from app.kernel.events import TaskEvent
from app.queue.rules.status import OpenWriter
from app.queue.store import completions, counters, events, open_writers, outputs, throughput
from app.queue.store.events import BEGINNING, Cursor
from tests.support.factories import completion, holding, submitted
from tests.support.sql import PATIENCE, until, value


@asynccontextmanager
async def _foreign(url: str, name: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    try:
        yield connection
    finally:
        await connection.close()


async def _append(connection: AsyncConnection) -> None:
    await events.append(connection, TaskEvent.SUBMITTED, task_id=uuid4(), agent_type="ranking", goal_id=None)


async def _complete_one(database: Database) -> None:
    worker_id, lease = await holding(database)
    await hot_path.run(database, lambda c: completions.complete(c, [completion(worker_id, lease)]))


async def _read_all(database: Database) -> tuple[int, int, int, int]:
    """Numbers of events and outputs that are read, of events that are folded, and of lines of counts that are left."""
    # A fold knows whole transactions: an announcement that commits amid a change may leave its last number to the next.
    async with database.transaction() as connection:
        await connection.exec_driver_sql("SELECT pg_current_xact_id()")
    async with database.transaction() as connection:
        event_count = len((await events.read_batch(connection, BEGINNING, None, 1000)).items)
        page = await outputs.page(connection, BEGINNING, agent_type=None, goal_id=None, limit=100)
        folded = await throughput.fold(connection)
        await counters.fold(connection)
    return event_count, len(page.items), folded.events, await value(database, "SELECT count(*) FROM queue_changes")


@pytest.mark.parametrize("statement", ["SELECT pg_current_xact_id()", "CREATE TEMP TABLE scratch AS SELECT 1"])
async def test_an_open_transaction_of_another_database_keeps_nobody_waiting(
    own_database: Database, emptied_url: str, statement: str
) -> None:
    async with _foreign(emptied_url, "analysis") as foreign, foreign.transaction():
        await foreign.execute(statement)
        await _complete_one(own_database)
        event_count, output_count, folded, lines = await _read_all(own_database)
        assert (event_count >= 3, output_count, folded >= 2, lines) == (True, 1, True, 0)
        async with own_database.transaction() as connection:
            assert await open_writers.read(connection) == []


async def test_nor_does_one_of_this_database_that_writes_no_events(database: Database, emptied_url: str) -> None:
    async with _foreign(emptied_url, "analysis") as foreign, foreign.transaction():
        await foreign.execute("CREATE TEMP TABLE scratch AS SELECT 1")
        await _complete_one(database)
        event_count, output_count, _, lines = await _read_all(database)
        assert (event_count >= 3, output_count, lines) == (True, 1, 0)


async def test_changes_of_an_old_transaction_are_folded_after_those_of_younger_ones(database: Database) -> None:
    async with database.engine.connect() as old:
        await old.exec_driver_sql("SELECT pg_current_xact_id()")
        await submitted(database, 3)
        async with database.transaction() as connection:
            await counters.fold(connection)
        await old.exec_driver_sql("DELETE FROM tasks")
        await old.commit()
    for _ in range(2):
        async with database.transaction() as connection:
            assert await counters.read(connection) == []
            await counters.fold(connection)


async def test_who_stays_open_is_told_by_name(database: Database, emptied_url: str) -> None:
    async with _foreign(emptied_url, "by hand") as foreign, foreign.transaction():
        await foreign.execute("INSERT INTO events (kind) VALUES ('task.submitted')")
        await submitted(database)

        async def told() -> list[OpenWriter]:
            async with database.transaction() as connection:
                return await open_writers.read(connection)

        await until(told)
        (writer,) = await told()
        pid = foreign.get_server_pid()
        assert (writer.pid, writer.gid, writer.application) == (pid, None, "by hand")
        assert emptied_url.endswith(f"/{writer.database}")
        assert writer.seconds >= 3
        assert f"pg_terminate_backend({pid})" in writer.sentence
        assert (await _read_all(database))[0] == 0
    assert (await _read_all(database))[0] == 2


async def test_a_prepared_transaction_is_told_by_its_own_name(database: Database, emptied_url: str) -> None:
    async def open_ones() -> list[OpenWriter]:
        async with database.transaction() as connection:
            return await open_writers.read(connection)

    async with _foreign(emptied_url, "by hand") as foreign:
        insert = "INSERT INTO events (kind) VALUES ('task.submitted')"
        for statement in ("BEGIN", insert, "SAVEPOINT s", insert, "PREPARE TRANSACTION 'moving house'"):
            await foreign.execute(statement)
        try:
            await until(open_ones)
            (writer,) = await open_ones()
        finally:
            await foreign.execute("ROLLBACK PREPARED 'moving house'")
    assert (writer.pid, writer.gid) == (None, "moving house")
    assert writer.seconds >= 3
    assert await open_ones() == []


async def test_the_sentence_says_how_to_end_a_prepared_transaction() -> None:
    writer = OpenWriter(pid=None, gid="move", database="lab", application=None, seconds=61.4)
    assert writer.sentence.endswith(
        "the prepared transaction move (database lab); this ends it: ROLLBACK PREPARED 'move'"
    )


@pytest.mark.slow
async def test_a_reader_gets_each_event_once_whoever_commits_when(own_database: Database) -> None:
    """Writers that are old before they write, that take their time or roll back; and one of another database."""
    written: set[str] = set()
    writing = 8

    async def write(seed: int) -> None:
        nonlocal writing
        draw = random.Random(seed)
        for turn in range(40):
            name = f"{seed}-{turn}"
            async with own_database.engine.connect() as connection:
                if draw.random() < 0.5:
                    await connection.exec_driver_sql("SELECT pg_current_xact_id()")
                    await asyncio.sleep(draw.random() * 0.03)
                await events.append_system(connection, "task.submitted", {"name": name})
                await asyncio.sleep(draw.random() * 0.02)
                if draw.random() < 0.2:
                    await connection.rollback()
                else:
                    written.add(name)
                    await connection.commit()
        writing -= 1

    async def follow(after: Cursor) -> list[str]:
        names: list[str] = []
        is_last = False
        while not is_last:
            is_last = not writing
            async with own_database.transaction() as connection:
                page = (await events.read_batch(connection, after, None, 7)).items
            names += [(event.detail or {})["name"] for event in page]
            after = page[-1].cursor if page else after
            is_last = is_last and not page
        return names

    following = asyncio.create_task(follow(BEGINNING))
    await asyncio.gather(*map(write, range(writing)))
    names = await asyncio.wait_for(following, PATIENCE)
    assert len(names) == len(set(names))
    assert set(names) == written
