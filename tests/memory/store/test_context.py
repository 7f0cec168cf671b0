"""Two connections that build on the same version: exactly one wins."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.memory.store import context
from app.memory.store.context import EntryKey, Version, Write
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch, until_blocked

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


_FILL = """
INSERT INTO context_entries (namespace, key, version, value, written_by)
SELECT 'test', 'k', n, '{"a": 1}'::jsonb, 'me' FROM generate_series(1, 300) AS n
UNION ALL SELECT 'test', 'key ' || n, 1, '{"a": 1}'::jsonb, 'me' FROM generate_series(1, 300) AS n
"""


async def test_a_page_looks_at_each_of_its_entries_a_few_times_without_statistics_too(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined to those of the page before it was walked, a page of 500 versions touched a million pages of 8 KiB."""
    await execute(own_database, "ALTER TABLE context_entries SET (autovacuum_enabled = off)")
    await execute(own_database, _FILL)
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        async with database.transaction() as connection:
            versions, _ = await context.history(connection, _NAME, before_version=1000, limit=250)
        history = log.take()
        async with database.transaction() as connection:
            entries, _ = await context.page(connection, "test", after_key="", limit=250, with_values=True)
        page = log.take()
    assert len(versions) == len(entries) == 250
    assert 250 < history.pages < 20 * 250
    assert 250 < page.pages < 40 * 250


async def test_the_size_of_a_namespace_is_no_probe_for_each_key(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two probes for each of 100,000 keys it touched 700,000 pages of 8 KiB."""
    await execute(
        own_database,
        "INSERT INTO context_entries (namespace, key, version, value, written_by)"
        " SELECT 'test', 'k' || n, 1, '{\"a\": 1}', 'me' FROM generate_series(1, 2000) n",
    )
    await execute(own_database, "VACUUM ANALYZE context_entries")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            size = await context.size(connection, "test")
        cost = log.take()
    assert (size.entries, size.bytes) == (2000, 2000 * len('{"a": 1}'))
    assert cost.pages < 2000


async def test_the_size_of_a_new_namespace_compares_no_entry_with_each_other(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL knows nothing of it: 4,000 entries took 5 s."""
    fill = """INSERT INTO context_entries (namespace, key, version, deleted, value, written_by)
        SELECT $1, 'k' || k, v, k > 1000, '{"a": 1}', 'me' FROM generate_series(1, 1010) k, generate_series(1, 2) v"""
    await execute(own_database, "ALTER TABLE context_entries SET (autovacuum_enabled = off)")
    await execute(own_database, fill, "old")
    await execute(own_database, "VACUUM ANALYZE context_entries")
    await execute(own_database, fill, "new")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            size = await context.size(connection, "new")
        cost = log.take()
    assert (size.entries, size.bytes) == (1000, 1000 * len('{"a": 1}'))
    assert cost.rows < 10 * 2020


async def test_pruning_looks_only_at_entries_with_many_versions(connection: AsyncConnection) -> None:
    """However many others are old: with a million of them a look at each took longer than a statement may."""
    await connection.exec_driver_sql("""
        INSERT INTO context_entries (namespace, key, version, deleted, written_by, written_at)
        SELECT 'test', 'old-' || n, 1, true, 'me', now() - interval '1 year' FROM generate_series(1, 500) n
        UNION ALL SELECT 'test', 'long', n, true, 'me', now() - interval '1 year' FROM generate_series(1, 8) n
    """)
    looks = text("SELECT coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = 'context_entries'")
    before = (await connection.execute(looks)).scalar_one()
    assert await context.prune(connection, keep=3, days=30) == (5, None)
    assert (await connection.execute(looks)).scalar_one() - before < 20


async def test_a_round_of_pruning_walks_once_along_the_entries(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a look at the whole table for each batch a round with very many to delete took minutes."""
    await execute(
        own_database,
        """INSERT INTO context_entries (namespace, key, version, deleted, written_by, written_at)
        SELECT 'test ' || s, 'k' || k, v, true, 'me', now() - CASE v WHEN 9 THEN interval '0' ELSE interval '1 year' END
        FROM generate_series(1, 2) s, generate_series(1, 200) k, generate_series(1, 20) v""",
    )
    await execute(own_database, "VACUUM ANALYZE context_entries")
    counts: list[int] = []
    place: context.Place | None = context.FIRST
    async with explained_database(own_database, monkeypatch) as (database, log):
        while place is not None:
            async with database.transaction() as connection:
                count, place = await context.prune(connection, keep=3, days=30, after=place, limit=70)
            counts.append(count)
        cost = log.take()
    left = await fetch(
        own_database, "SELECT array_agg(version ORDER BY version) FROM context_entries GROUP BY namespace, key"
    )
    assert {tuple(versions) for (versions,) in left} == {(9, 18, 19, 20)}
    assert (sum(counts), len(left), max(counts) <= 70) == (400 * 16, 400, True)
    assert cost.rows < 12 * 8000, "the rows of one walk, whatever the number of batches"
