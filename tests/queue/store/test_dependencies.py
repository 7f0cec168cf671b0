"""Edges between tasks, among many of others."""

from uuid import UUID

import pytest

from app.db import hot_path
from app.db.database import Database
from app.queue.store import dependencies
from tests.support.plans import explained_database
from tests.support.sql import execute, value

_EDGES = (
    "INSERT INTO task_dependencies SELECT md5('d' || n)::uuid, gen_random_uuid() FROM generate_series(1, 20000) AS n"
)
_COMPLETED = "SELECT array_agg(md5('d' || n * 7)::uuid) FROM generate_series(1, 64) AS n"


async def test_completions_look_only_at_edges_of_their_own_without_statistics_too(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which they are locked, all edges were walked over: 64 completions touched 300,000 pages."""
    await execute(own_database, "ALTER TABLE task_dependencies SET (autovacuum_enabled = off)")
    await execute(own_database, _EDGES)
    completed: list[UUID] = await value(own_database, _COMPLETED)
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        await hot_path.run(database, lambda c: dependencies.unblock(c, completed))
        cost = log.take()
    assert await value(own_database, "SELECT count(*) FROM task_dependencies") == 20_000 - 64
    assert 64 < cost.pages < 20 * 64
