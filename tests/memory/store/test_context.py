"""Two connections that build on the same version: exactly one wins."""

import asyncio

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.memory.store import context
from app.memory.store.context import EntryKey, Version, Write
from tests.support.sql import until_blocked

_NAME = EntryKey(namespace="test", key="k")


def _change(value: str, by: str = "me") -> Write:
    return Write(value=value, written_by=by)


async def _write(database: Database, expected: int, value: str) -> Version | None:
    async with database.transaction() as connection:
        return await context.write(connection, _NAME, expected, _change(value))


async def _write_concurrently(
    database: Database, connection: AsyncConnection, expected: int
) -> "asyncio.Task[Version | None]":
    """Start a write on another connection, which waits for the one on `connection`."""
    assert await context.write(connection, _NAME, expected, _change("1")) is not None
    rival = asyncio.create_task(_write(database, expected, "2"))
    await until_blocked(database)
    return rival


async def test_the_second_waits_for_the_first_and_loses(database: Database) -> None:
    for expected in (0, 1):
        async with database.transaction() as connection:
            rival = await _write_concurrently(database, connection, expected)
        assert await rival is None
    async with database.transaction() as connection:
        found = await context.read(connection, _NAME)
    assert found is not None
    assert (found.version, found.value) == (2, 1)


async def test_the_second_wins_when_the_first_gives_up(database: Database) -> None:
    async with database.engine.connect() as connection:
        rival = await _write_concurrently(database, connection, 0)
        await connection.rollback()
        made = await rival
    assert made is not None
    assert made.version == 1


async def test_a_repetition_is_recognised_by_everything_about_it(connection: AsyncConnection) -> None:
    change = Write(value='{"a": 1, "b": [2]}', written_by="me", request_id="r")
    assert await context.write(connection, _NAME, 0, change) is not None
    same = Write(value='{"b": [2], "a": 1.0}', written_by="me", request_id="r")
    assert await context.find_repetition(connection, _NAME, 1, same) is not None
    for other in (
        Write(value='{"a": 1}', written_by="me", request_id="r"),
        Write(value=None, written_by="me", request_id="r"),
        Write(value=same.value, written_by="you", request_id="r"),
        Write(value=same.value, written_by="me"),
    ):
        assert await context.find_repetition(connection, _NAME, 1, other) is None
    assert await context.find_repetition(connection, _NAME, 2, same) is None


async def test_a_page_costs_a_probe_for_each_key_not_for_each_version(connection: AsyncConnection) -> None:
    """Thousands of versions of one entry do not make the listing of its namespace slower."""
    await connection.exec_driver_sql(
        "INSERT INTO context_entries (namespace, key, version, value, written_by)"
        " SELECT 'test', 'k' || k, v, to_jsonb(v), 'me' FROM generate_series(1, 9) k, generate_series(1, 2000) v"
    )
    await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    found, following = await context.page(connection, "test", after_key="", limit=20, with_values=True)
    assert [(entry.key, entry.version, entry.value) for entry in found] == [(f"k{n}", 2000, 2000) for n in range(1, 10)]
    assert following is None
    plan = await connection.exec_driver_sql(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
        + str(context._PAGE_OF_KEYS.text)
        .replace(":namespace", "'test'")
        .replace(":after", "''")
        .replace(":limit", "20")
    )
    blocks = plan.scalar_one()[0]["Plan"]["Shared Hit Blocks"]
    assert blocks < 150, f"{blocks} blocks for a page of nine"
