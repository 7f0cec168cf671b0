"""Edges between tasks, among many of others."""

from uuid import UUID

import pytest

from app.db import hot_path
from app.db.database import Database
from app.queue.store import cancel, dependencies
from app.queue.store.listing import Selection
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


async def test_a_batch_of_a_cancellation_reads_no_other_tasks_where_many_wait_for_one(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 10,000 of a million tasks waited for one, each thousand was found by a walk over all: 150,000 pages."""
    await execute(
        own_database,
        """INSERT INTO tasks (id, state, agent_type, goal_id, priority, payload, labels, max_attempts, retry_delays,
                              request_hash, created_at, blockers, has_dependents)
           SELECT md5('d' || n)::uuid, CASE WHEN n <= 2000 THEN 'blocked' ELSE 'pending' END, 'ranking',
                  CASE WHEN n > 20000 THEN 'goal' END, 2, '{}', '{}', 3, '{}', '', now(), (n <= 2000)::int, n = 2001
           FROM generate_series(1, 20100) n""",
    )
    await execute(
        own_database,
        "INSERT INTO task_dependencies SELECT md5('d2001')::uuid, md5('d' || n)::uuid FROM generate_series(1, 2000) n",
    )
    await execute(own_database, "VACUUM ANALYZE tasks, task_dependencies")
    selection = Selection(goal_id="goal")
    async with explained_database(own_database, monkeypatch) as (database, log), database.transaction() as connection:
        ids = await cancel.find(connection, selection, 100)
        log.take()
        assert (await cancel.cancel(connection, ids, selection, "test")).selected_tasks == 100
        cost = log.take()
    assert 100 < cost.rows < 40 * 100
