"""How pool, duties and server stand, by what really is."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.health.rules.runtime import PoolCounts
from app.health.store import observations, pool_counts
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.queue.store import agent_types
from tests.support.factories import leased, ready_worker, submitted
from tests.support.sql import execute

_LATELY = timedelta(minutes=5)


async def _read_pool(connection: AsyncConnection) -> PoolCounts:
    workers = await observations.read_workers(connection, 30.0)
    return await pool_counts.read_pool(connection, workers, silent_seconds=15, lately=_LATELY)


async def test_workers_are_counted_by_what_they_do(database: Database) -> None:
    busy, idle, draining, silent, lost, failed, long_ago, stopped = [await ready_worker(database) for _ in range(8)]
    await submitted(database)
    await leased(database, busy)
    changes = {
        idle: "assigned_agent = 'ranking'",
        draining: "state = 'draining'",
        silent: "last_seen_at = now() - interval '16 s'",
        lost: "state = 'lost', ended_at = now()",
        failed: "state = 'failed', ended_at = now() - interval '4 min'",
        long_ago: "state = 'lost', ended_at = now() - interval '6 min'",
        stopped: "state = 'stopped', ended_at = now()",
    }
    for worker_id, change in changes.items():
        await execute(database, f"UPDATE workers SET {change} WHERE id = $1", worker_id)
    await execute(
        database,
        "INSERT INTO workers (id, name, incarnation, state, capabilities, labels)"
        " VALUES (gen_random_uuid(), 'new', 1, 'starting', '{}', '{}')",
    )
    async with database.transaction() as connection:
        result = await _read_pool(connection)
    assert (result.starting, result.idle, result.busy, result.draining) == (1, 2, 1, 1)
    assert (result.silent, result.failed, result.total, result.healthy) == (1, 2, 5, 3)
    assert (result.not_ready, result.not_ready_example) == (0, None)
    assert result.able_workers == dict.fromkeys(AgentType, 3)
    assert {agent: count for agent, count in result.assigned_workers.items() if count} == {AgentType.RANKING: 1}


async def test_those_that_cannot_work_are_counted_and_serve_nothing(database: Database) -> None:
    worker = await ready_worker(database)
    refused = "state = 'starting', not_ready_reason = 'no handlers', last_seen_at = now() - interval '16 s', name = 'w'"
    await execute(database, f"UPDATE workers SET {refused} WHERE id = $1", worker)
    async with database.transaction() as connection:
        result = await _read_pool(connection)
        assert await agent_types.served_agents(connection) == frozenset()
    assert (result.starting, result.not_ready, result.not_ready_example) == (1, 1, "w: no handlers")
    assert (result.healthy, result.silent, result.able_workers) == (0, 0, {})


async def test_a_worker_that_becomes_ready_meanwhile_is_counted_once(database: Database) -> None:
    """In neither of two looks, as it was starting at the first, and the pool seemed to be below its minimum."""
    worker = await ready_worker(database)
    await execute(database, "UPDATE workers SET state = 'starting'")
    async with database.transaction() as connection:
        workers = await observations.read_workers(connection, 30.0)
        await execute(database, "UPDATE workers SET state = 'ready' WHERE id = $1", worker)
        result = await pool_counts.read_pool(connection, workers, silent_seconds=15, lately=_LATELY)
    assert result.total == 1


async def test_a_pool_of_nobody(database: Database) -> None:
    async with database.transaction() as connection:
        result = await _read_pool(connection)
    assert (result.total, result.failed, result.able_workers, result.assigned_workers) == (0, 0, {}, {})


async def test_turns_are_told_with_their_pace(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO loop_ticks (duty, last_run_at, every_seconds) VALUES ('a', now() - interval '40 s', 2),"
        " ('never', NULL, 2), ('of a host', now(), NULL)",
    )
    async with database.transaction() as connection:
        result = {turn.duty: turn for turn in await pool_counts.duty_turns(connection)}
    assert set(result) == {"a", "of a host"}
    assert (int(result["a"].seconds_ago), result["a"].every_seconds) == (40, 2.0)
    assert result["of a host"].every_seconds is None


async def test_in_a_hurry_a_long_statement_is_ended_and_known_as_slow(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        await _sleep(database, hurry=0.02)
    assert pool_counts.is_statement_timeout(caught.value)
    async with database.transaction() as connection:
        limit = (await connection.execute(text("SHOW statement_timeout"))).scalar_one()
    assert limit == "30s"
    assert not pool_counts.is_statement_timeout(DatabaseUnavailable())


async def _sleep(database: Database, *, hurry: float) -> None:
    async with database.transaction() as connection:
        await pool_counts.limit_statement_time(connection, hurry)
        await connection.execute(text("SELECT pg_sleep(5)"))
