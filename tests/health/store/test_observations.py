"""Statements on what alerts watch, on a database in which it is so."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from app.db.database import Database
from app.db.uuids import time_ordered_uuid
from app.health.rules.snapshot import WorkerCounts
from app.health.store import observations
from app.kernel.agents import AgentType
from app.workers.rules.recovery import RecoveryPolicy, RecoverySnapshot, SlotRecord
from app.workers.store import pool
from tests.support.factories import holding, ready_worker
from tests.support.sql import execute, until, until_blocked, value

POLICY = RecoveryPolicy()


async def read(database: Database, what: Any, *arguments: Any) -> Any:
    async with database.transaction() as connection:
        return await what(connection, *arguments)


async def test_running_tasks_by_agent_type(database: Database) -> None:
    assert (await read(database, observations.read_workers, 30.0)).running == {}
    await holding(database)
    _, lease = await holding(database, agent_type=AgentType.GENERATION)
    await execute(
        database,
        "UPDATE tasks SET leased_at = now() - interval '100 s', deadline_at = now() - interval '40 s' WHERE id = $1",
        lease.task_id,
    )
    result = (await read(database, observations.read_workers, 30.0)).running[AgentType.GENERATION]
    assert result.overdue == 1
    assert 100 <= result.longest_seconds < 160


async def test_idle_is_who_has_taken_nothing_for_a_while(database: Database) -> None:
    busy, _ = await holding(database)
    fresh, idle = await ready_worker(database), await ready_worker(database)
    draining = await ready_worker(database)
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min' WHERE id <> $1", fresh)
    await execute(database, "UPDATE workers SET state = 'draining' WHERE id = $1", draining)
    await execute(database, "UPDATE workers SET capabilities = '{ranking}' WHERE id = $1", idle)
    workers = await read(database, observations.read_workers, 30.0)
    assert (workers.starting, workers.ready, workers.busy, workers.draining) == (0, 3, 1, 1)
    assert workers.counts == WorkerCounts(alive=4, idle=1, idle_for=frozenset({AgentType.RANKING}))
    await execute(database, "DELETE FROM tasks WHERE worker_id = $1", busy)
    assert (await read(database, observations.read_workers, 30.0)).counts.idle == 1, "it took a task a moment ago"
    await execute(database, "UPDATE leases SET leased_at = now() - interval '1 min'")
    assert (await read(database, observations.read_workers, 30.0)).counts.idle == 2


async def slot(database: Database, number: int, state: str, *, age: int, lived: int | None = None) -> Any:
    """A worker that was asked for `age` seconds ago and, unless it lives, was over after `lived` seconds."""
    worker_id = time_ordered_uuid()
    await execute(
        database,
        "INSERT INTO workers (id, name, incarnation, state, provisioner, slot, host, capabilities, labels,"
        " requested_at, first_beat_at, ended_at) VALUES ($1, $2, $3, $4, 'local', $5, 'here', '{}', '{}',"
        " now() - make_interval(secs => $6::int),"
        " CASE WHEN $4 = 'ready' THEN now() - make_interval(secs => $6::int) END,"
        " now() - make_interval(secs => $6::int) + make_interval(secs => $7::int))",
        worker_id,
        f"here-{number}",
        await value(database, "SELECT 1 + count(*) FROM workers"),
        state,
        number,
        age,
        lived,
    )
    return worker_id


async def test_the_slots_of_the_pool(database: Database) -> None:
    for age in (200, 100, 50):
        await slot(database, 1, "lost", age=age, lived=5)
    await slot(database, 1, "starting", age=2)
    await slot(database, 2, "failed", age=250, lived=30)
    await slot(database, 2, "ready", age=100)
    await slot(database, 3, "lost", age=100, lived=90)
    await slot(database, 3, "ready", age=5)
    await slot(database, 4, "stopped", age=20, lived=5)
    await slot(database, 5, "lost", age=1000, lived=5)
    result = await read(database, pool.recovery_snapshot, POLICY)
    assert result == RecoverySnapshot(
        slots=[
            SlotRecord(host="here", slot=1, young_deaths=3, is_steady=False),
            SlotRecord(host="here", slot=2, young_deaths=1, is_steady=True),
            SlotRecord(host="here", slot=3, young_deaths=0, is_steady=False),
        ],
        silent_hosts=[],
    )


async def test_a_replacement_is_overdue_while_its_worker_has_not_come(database: Database) -> None:
    lost = await slot(database, 1, "lost", age=100, lived=60)
    new = await slot(database, 1, "starting", age=35)
    await execute(
        database,
        "INSERT INTO replacements (lost_worker_id, worker_id, slot, worker_name, cause, detected_at)"
        " VALUES ($1, $2, 1, 'here-1', 'test', now() - interval '40 s')",
        lost,
        new,
    )
    assert (await read(database, pool.recovery_snapshot, POLICY)).overdue == 1
    await execute(database, "UPDATE replacements SET registered_at = now()")
    assert (await read(database, pool.recovery_snapshot, POLICY)).overdue == 0


async def test_the_oldest_snapshot_is_seen_while_it_is_held(database: Database) -> None:
    other = Database(database.url)
    try:
        async with other.engine.connect() as holder:
            await holder.execution_options(isolation_level="REPEATABLE READ")
            await holder.execute(text("SELECT count(*) FROM tasks"))
            await asyncio.sleep(0.05)
            for _ in range(3):
                await execute(database, "INSERT INTO goals (id) VALUES (gen_random_uuid()::text)")
            held = await read(database, observations.database_condition)
        after = await read(database, observations.database_condition)
    finally:
        await other.close()
    assert held.snapshot_seconds >= 0.05
    assert held.snapshot_transactions >= 3
    assert after.snapshot_seconds < held.snapshot_seconds


async def _insert(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO goals (id) VALUES ('a')"))


@pytest.mark.parametrize("lock", ["LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE", "LOCK TABLE goals"])
async def test_a_session_whose_locks_others_wait_for_is_named(database: Database, lock: str) -> None:
    other = Database(database.url)
    waiting: asyncio.Task[None] | None = None
    try:
        async with other.engine.connect() as holder:
            pid = (await holder.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            await holder.execute(text(lock))
            if "goals" in lock:
                assert await read(database, observations.blocking_session) is None
                waiting = asyncio.create_task(_insert(other))
                await until_blocked(database, 1)

            async def is_seen() -> bool:
                return await read(database, observations.blocking_session) is not None

            await until(is_seen)
            session = await read(database, observations.blocking_session)
        if waiting is not None:
            await waiting
        after = await read(database, observations.blocking_session)
    finally:
        await other.close()
    assert session is not None
    assert (session.pid, session.seconds > 0, after) == (pid, True, None)


async def test_dead_rows_and_connections_are_figures(database: Database) -> None:
    condition = await read(database, observations.database_condition)
    assert set(condition.dead_rows) >= {"tasks", "leases", "workers"}
    assert 0 < condition.connections < 1


async def test_breakers_that_are_not_closed(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO llm_models (model, concurrency, open_until) VALUES ('closed', 1, NULL),"
        " ('open', 1, now() + interval '1 min'), ('about to be tried', 1, now() - interval '1 min'),"
        " ('nobody calls it', 1, now() - interval '11 min')",
    )
    states = {name: trouble.state for name, trouble in (await read(database, observations.model_troubles)).items()}
    assert states == {"open": "failing", "about to be tried": "failing", "nobody calls it": "ok"}


async def test_a_model_that_fails_for_its_only_caller_counts_as_one(database: Database) -> None:
    for name, failures in (("fails", 3), ("answers others", 0)):
        moment = datetime.now(UTC).isoformat()
        callers: dict[str, dict[str, Any]] = {"worker": {"reported_at": moment, "open_until": moment}}
        callers["worker"] |= {"failures": failures} if failures else {}
        await execute(
            database,
            "INSERT INTO llm_models (model, concurrency, callers) VALUES ($1, 1, $2)",
            name,
            json.dumps(callers),
        )
    troubles = await read(database, observations.model_troubles)
    assert {name for name, trouble in troubles.items() if trouble.is_out_of_order} == {"fails"}
