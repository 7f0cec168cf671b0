"""Metered goals: which of their tasks are let through, and when the room of one is given to another."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import event

from app.db.database import Database
from app.goals.rules.goals import Constraints
from app.goals.service import budget_enforcement, goals
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.resources import Resources
from app.queue.rules.holds import Hold
from app.queue.service import dead_letters, leases
from app.queue.store import cancel
from app.queue.store.listing import Selection
from app.queue.store.tables import KEPT_COLUMNS
from tests.goals.service.budgeted_goals import claim_lease, create_goal, enforce_budgets, ready_tasks
from tests.support.factories import fence, leased, ready_worker, submitted
from tests.support.sql import execute, value

_TOMORROW = timedelta(days=1)


@pytest.fixture(autouse=True)
async def metered_goal(database: Database) -> None:
    """Nothing was ever measured, so the goal has room for one task."""
    await ready_worker(database)
    await create_goal(database, compute_budget_seconds=1e6)


async def _check_twice(database: Database) -> list[UUID]:
    for _ in range(2):
        await enforce_budgets(database)
    return await ready_tasks(database)


async def _hold(database: Database) -> Hold | None:
    async with database.transaction() as connection:
        return (await goals.read(connection, "goal")).hold


async def test_a_new_goal_is_held_by_its_budget_only_once_that_is_used(database: Database) -> None:
    """Whether its tasks are set aside by then or not; and it is told of once."""
    assert await _hold(database) is None, "nothing is spent"
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(money_budget=1), "me")
    await execute(database, "INSERT INTO llm_spending VALUES ('goal', 1, 0, 1, 0)")
    await submitted(database)
    for held in ({"held": ["goal"]}, {}):
        assert await enforce_budgets(database) == held
        assert await _hold(database) is Hold.BUDGET
        assert await claim_lease(database) is None
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'goal.held'") == 1


async def test_a_blocked_task_keeps_no_room(database: Database) -> None:
    """Even where its type comes first by the alphabet."""
    (first,) = await submitted(database)
    await submitted(database, depends_on=(first,), agent_type=AgentType.EVOLUTION)
    assert await _check_twice(database) == [first]
    assert await claim_lease(database) is not None


async def test_a_delayed_task_keeps_no_room_until_it_is_due(database: Database) -> None:
    (delayed,) = await submitted(database, run_at=datetime.now(UTC) + _TOMORROW)
    assert await _check_twice(database) == []
    (first,) = await submitted(database)
    assert await _check_twice(database) == [first]
    lease = await leased(database, await ready_worker(database))
    await cancel_task(database, lease.task_id)
    await execute(database, "UPDATE tasks SET due_at = now()")
    assert await _check_twice(database) == [delayed]


async def test_the_most_urgent_task_is_let_through_first(database: Database) -> None:
    await submitted(database, priority=Priority.LOW)
    (critical,) = await submitted(database, priority=Priority.CRITICAL, agent_type=AgentType.RANKING)
    await submitted(database, priority=Priority.HIGH)
    assert await _check_twice(database) == [critical]


async def cancel_task(database: Database, task_id: UUID) -> None:
    async with database.transaction() as connection:
        await cancel.cancel(connection, [task_id], Selection(goal_id="goal"), "not needed")


async def test_the_room_of_a_task_that_never_began_is_given_anew(database: Database) -> None:
    ids = await submitted(database, 4)
    for task_id in ids[:3]:
        assert await _check_twice(database) == [task_id], "the same room is not given twice"
        await cancel_task(database, task_id)
    assert await _check_twice(database) == ids[3:]
    lease = await claim_lease(database)
    assert lease is not None
    assert lease.task_id == ids[3]
    assert await _check_twice(database) == []


async def test_a_task_that_is_delayed_after_it_was_let_through_keeps_no_room(database: Database) -> None:
    first, second = await submitted(database, 2)
    assert await _check_twice(database) == [first]
    await execute(database, "UPDATE tasks SET run_at = now() + interval '1 day' WHERE id = $1", first)
    assert await _check_twice(database) == [second]


async def test_a_task_that_comes_back_keeps_its_room(database: Database) -> None:
    """Its attempt has ended, and it waits again beside nothing else."""
    first, _ = await submitted(database, 2)
    assert await _check_twice(database) == [first]
    worker = await ready_worker(database)
    lease = await leased(database, worker)
    await execute(database, "UPDATE tasks SET leased_at = now() - interval '400000 s' WHERE worker_id IS NOT NULL")
    async with database.transaction() as connection:
        await leases.release(connection, fence(worker, lease), "going home")
    assert await _check_twice(database) == [first]
    assert await value(database, "SELECT is_metered AND released + base = 2 FROM holds")


async def test_dead_letters_that_are_requeued_are_let_through_one_by_one(database: Database) -> None:
    first, *others = await submitted(database, 4)
    await execute(database, "UPDATE tasks SET priority = 1 WHERE id = $1", first)
    assert await _check_twice(database) != []
    await execute(
        database,
        "WITH gone AS (DELETE FROM tasks RETURNING *)"
        f" INSERT INTO task_history ({', '.join(KEPT_COLUMNS)}, state, finished_at)"
        f" SELECT {', '.join(KEPT_COLUMNS)}, 'failed', now() FROM gone",
    )
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, first, "again")
    outcome = await dead_letters.requeue_many(database, Selection(), limit=10, reason="again")
    assert outcome.processed_count == len(others)
    assert await ready_tasks(database) == []
    assert len(await _check_twice(database)) == 1


@pytest.mark.parametrize("is_beside_one_that_is_not_ready", [False, True])
async def test_a_task_that_no_present_worker_can_run_keeps_no_room(
    database: Database, is_beside_one_that_is_not_ready: bool
) -> None:
    await execute(database, "UPDATE workers SET capabilities = '{generation}'")
    if is_beside_one_that_is_not_ready:
        worker = await ready_worker(database)
        await execute(
            database, "UPDATE workers SET state = 'starting', not_ready_reason = 'no model' WHERE id = $1", worker
        )
    (unserved,) = await submitted(database, agent_type=AgentType.EVOLUTION, priority=Priority.CRITICAL)
    assert await _check_twice(database) == [unserved], "there is nothing else"
    first, second = await submitted(database, 2)
    assert set(await _check_twice(database)) == {unserved, first}
    assert set(await _check_twice(database)) == {unserved, first}, "the same room is not given twice"
    await cancel_task(database, first)
    assert set(await _check_twice(database)) == {unserved, second}


async def test_of_tasks_that_are_set_aside_those_come_first_that_a_present_worker_can_run(database: Database) -> None:
    await execute(database, "UPDATE workers SET capabilities = '{generation}', memory_gb = 1")
    await submitted(database, 3, agent_type=AgentType.EVOLUTION, priority=Priority.CRITICAL)
    await submitted(database, resources=Resources(memory_gb=64).text(), priority=Priority.HIGH)
    (served,) = await submitted(database, priority=Priority.LOW)
    assert await _check_twice(database) == [served]


async def _count_statements(database: Database) -> int:
    """Number of statements of the next turn."""
    statements = []

    def note(*args: object) -> None:
        statements.append(args[2])

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        async with database.transaction() as connection:
            await budget_enforcement.enforce_budgets(connection)
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    return len(statements)


async def test_goals_without_a_task_to_let_through_cost_a_turn_no_statement(database: Database) -> None:
    """Each took six, and was locked until the end of the turn: submits to it waited 10 s at 1000 of them."""
    (running,) = await submitted(database)
    assert await _check_twice(database) == [running]
    statements = await _count_statements(database)
    for number in range(10):
        await create_goal(database, f"goal-{number}", compute_budget_seconds=1e6)
        await submitted(database, goal_id=f"goal-{number}", run_at=datetime.now(UTC) + _TOMORROW)
    await enforce_budgets(database)
    assert await value(database, "SELECT count(*) FROM holds WHERE is_metered AND NOT is_closed") == 11
    assert await _count_statements(database) == statements
    await execute(database, "UPDATE tasks SET due_at = now() WHERE goal_id <> 'goal'")
    assert len(await _check_twice(database)) == 11
