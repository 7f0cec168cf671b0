"""Locks of the duty that enforces budgets: all of goals before any of tasks."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from app.db.database import Database
from app.goals.rules.goals import Constraints
from app.goals.service import budget_enforcement, goals
from app.goals.store import goals as store
from app.queue.service import tasks
from app.queue.store import holds
from tests.goals.service.budgeted_goals import create_goal, ready_tasks
from tests.support.factories import goal_request, leased, ready_worker, submission, submitted
from tests.support.sql import execute, until_blocked, value


async def _enforce(replica: Database) -> dict[str, Any]:
    async with replica.transaction() as connection:
        return await budget_enforcement.enforce_budgets(connection)


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

    async with database.transaction() as connection:
        await store.lock(connection, "later")
        enforcing = asyncio.create_task(_enforce(replica))
        await until_blocked(database)
        await connection.exec_driver_sql("SELECT FROM tasks ORDER BY id FOR UPDATE NOWAIT")
    done = await enforcing
    assert (done["stopped"], done["taken_back"]) == (["later"], 2)
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL") == 1


@pytest.fixture
async def metered_task(database: Database) -> UUID:
    """The only task of `first`; that goal and `second` have a task set aside, which may be let through."""
    for goal_id in ("first", "second"):
        await create_goal(database, goal_id, compute_budget_seconds=1e6)
    ids = [(await submitted(database, goal_id=goal_id))[0] for goal_id in ("first", "second")]
    await ready_worker(database)
    await budget_enforcement.process_holds(database)
    return ids[0]


@pytest.mark.usefixtures("metered_task")
async def test_tasks_are_let_through_after_the_last_goal_is_locked(database: Database, replica: Database) -> None:
    async with database.transaction() as connection:
        await store.lock(connection, "second")
        enforcing = asyncio.create_task(_enforce(replica))
        await until_blocked(database)
        await connection.exec_driver_sql("SELECT FROM tasks ORDER BY id FOR UPDATE NOWAIT")
    assert (await enforcing)["let_through"] == 2
    assert len(await ready_tasks(database)) == 2


async def test_a_submit_to_one_goal_waits_for_a_task_of_another(
    database: Database, replica: Database, metered_task: UUID
) -> None:
    """Its first step keeps the hold of its goal; the task that it depends on comes later."""
    async with database.transaction() as connection:
        await holds.lock_gate(connection, ["second"])
        enforcing = asyncio.create_task(_enforce(replica))
        await until_blocked(database)
        await tasks.submit(connection, [submission(goal_id="second", depends_on=(metered_task,))])
    assert (await enforcing)["let_through"] == 2


@pytest.mark.parametrize(
    ("spent", "limits"),
    [
        ("UPDATE goals SET started_at = now() - interval '61 s'", {"time_limit_seconds": 60}),
        ("INSERT INTO llm_spending VALUES ('goal', 10, 0, 10, 0)", {"money_budget": 10}),
    ],
)
async def test_a_goal_that_is_extended_as_it_is_judged_is_judged_anew(
    database: Database, replica: Database, spent: str, limits: dict[str, Any]
) -> None:
    """What was decided by the old limits ends nothing after the answer that it goes on."""
    await create_goal(database, **limits)
    await execute(database, spent)
    async with database.transaction() as connection:
        await goals.extend(
            connection, "goal", Constraints(**{name: 10 * value for name, value in limits.items()}), "me"
        )
        enforcing = asyncio.create_task(_enforce(replica))
        await until_blocked(database)
    done = await enforcing
    assert (done["stopped"], done["held"]) == ([], [])
    done = await _enforce(replica)
    assert (done["stopped"], done["held"]) == ([], [])
    assert await value(database, "SELECT state FROM goals") == "running"
    assert await value(database, "SELECT count(*) FROM events WHERE kind = 'goal.budget_low'") == 0
