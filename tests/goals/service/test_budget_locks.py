"""Locks of the duty that enforces budgets: all of goals before any of tasks."""

import asyncio
from typing import Any

from app.db.database import Database
from app.goals.service import budget_enforcement, goals
from app.goals.store import goals as store
from tests.support.factories import goal_request, leased, ready_worker, submitted
from tests.support.sql import execute, until_blocked, value


async def test_tasks_are_taken_back_after_the_last_goal_is_locked(database: Database, replica: Database) -> None:
    """Who submits to one goal may hold it and wait for a task of another."""
    # Tasks may run for a goal before it is created.
    await submitted(database, 3)
    for _ in range(3):
        await leased(database, await ready_worker(database))
    await execute(database, "UPDATE tasks SET leased_at = now() - interval '28 s'")
    async with database.transaction() as connection:
        await goals.create(connection, goal_request("goal", compute_budget_seconds=100))
        await goals.create(connection, goal_request("later", time_limit_seconds=60))
    compute = "INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) VALUES ('goal', 'generation', 1, 20)"
    await execute(database, compute)
    await execute(database, "UPDATE goals SET started_at = now() - interval '61 s' WHERE id = 'later'")

    async def enforce() -> dict[str, Any]:
        async with replica.transaction() as connection:
            return await budget_enforcement.enforce_budgets(connection)

    async with database.transaction() as connection:
        await store.lock(connection, "later")
        enforcing = asyncio.create_task(enforce())
        await until_blocked(database)
        await connection.exec_driver_sql("SELECT FROM tasks ORDER BY id FOR UPDATE NOWAIT")
    done = await enforcing
    assert (done["stopped"], done["taken_back"]) == (["later"], 2)
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL") == 1
