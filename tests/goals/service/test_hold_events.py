"""What the client of a goal is told of holds: whenever the budget keeps its tasks back, and it was to go on."""

import asyncio
from typing import Any

from app.db.database import Database
from app.goals.rules.goals import Constraints
from app.goals.service import budget_enforcement, goals
from app.queue.rules.holds import Hold
from app.queue.service import leases
from tests.goals.service.budgeted_goals import (
    claim_lease,
    create_goal,
    enforce_budgets,
    pause,
    phases,
    ready_tasks,
    resume,
)
from tests.support.factories import fence, leased, ready_worker, submitted
from tests.support.sql import execute, fetch, until_blocked, value


async def _hold(database: Database) -> Hold | None:
    async with database.transaction() as connection:
        return (await goals.read(connection, "goal")).hold


async def _enforce(replica: Database) -> dict[str, Any]:
    async with replica.transaction() as connection:
        return await budget_enforcement.enforce_budgets(connection)


async def _extend(database: Database, usd: float) -> None:
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(money_budget=usd), "me")


async def _spend(database: Database, usd: int) -> None:
    await execute(database, "DELETE FROM llm_spending")
    await execute(database, "INSERT INTO llm_spending VALUES ('goal', $1, 0, 1, 0)", usd)


async def _told(database: Database) -> list[str]:
    """What was told of the goal, in order, but for what merely warns."""
    query = "SELECT kind FROM every_event WHERE kind LIKE 'goal.%' AND kind <> 'goal.budget_low' ORDER BY seq"
    rows = await fetch(database, query)
    return [row["kind"] for row in rows]


async def test_a_goal_that_goes_on_after_a_pause_is_told_of_where_its_budget_keeps_it_back(database: Database) -> None:
    """Calls that were under way have used it up; its client has heard of the pause and of the resumption only."""
    await create_goal(database, money_budget=5)
    await submitted(database, 2)
    await pause(database)
    await enforce_budgets(database)
    await _spend(database, 5)
    assert await enforce_budgets(database) == {}, "its client has paused it, and knows why nothing is leased"
    await resume(database)
    assert await claim_lease(database) is None
    for held in ({"held": ["goal"]}, {}):
        assert await enforce_budgets(database) == held
        assert await _hold(database) is Hold.BUDGET
        assert await claim_lease(database) is None
    assert (await _told(database))[-2:] == ["goal.resumed", "goal.held"]


async def test_a_goal_with_budget_left_is_not_held_by_a_resumption(database: Database) -> None:
    await create_goal(database, money_budget=5)
    ids = await submitted(database, 2)
    await pause(database)
    await enforce_budgets(database)
    await resume(database)
    assert await claim_lease(database) is None, "before the budget is looked at"
    assert await _hold(database) is None
    await enforce_budgets(database)
    assert await ready_tasks(database) == ids
    assert "goal.held" not in await _told(database)
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def test_an_extension_that_is_used_up_already_is_told_of(database: Database) -> None:
    """Its client was told of the first hold, has extended it by too little, and waits for whatever comes next."""
    await create_goal(database, money_budget=5)
    ids = await submitted(database, 2)
    await _spend(database, 8)
    assert await enforce_budgets(database) == {"held": ["goal"]}
    await _extend(database, 7)
    for held in ({"held": ["goal"]}, {}):
        assert await enforce_budgets(database) == held
        assert await claim_lease(database) is None
    assert (await _told(database))[-3:] == ["goal.held", "goal.extended", "goal.held"]
    await _extend(database, 9)
    assert await enforce_budgets(database) == {}
    assert await ready_tasks(database) == ids


async def test_nothing_is_leased_between_an_extension_and_the_look_at_the_budget(database: Database) -> None:
    """Not of what was submitted before the hold, whose tasks may not be set aside yet, nor of what comes meanwhile."""
    await create_goal(database, money_budget=5)
    await submitted(database, 2)
    await _spend(database, 8)
    async with database.transaction() as connection:
        await budget_enforcement.enforce_budgets(connection)
    await _extend(database, 7)
    await submitted(database)
    assert await claim_lease(database) is None
    await budget_enforcement.process_holds(database)
    await submitted(database)
    assert await claim_lease(database) is None
    assert await enforce_budgets(database) == {"held": ["goal"]}
    assert await phases(database) == {"held": 4}


async def test_what_comes_back_from_a_worker_is_not_leased_either(database: Database) -> None:
    """It came back after the tasks of its goal were set aside, and before anybody looked for such."""
    await create_goal(database, money_budget=5)
    await submitted(database)
    worker = await ready_worker(database)
    lease = await leased(database, worker)
    await pause(database)
    await budget_enforcement.process_holds(database)
    async with database.transaction() as connection:
        await leases.release(connection, fence(worker, lease), "the host goes down")
    assert len(await ready_tasks(database)) == 1
    await _spend(database, 5)
    await resume(database)
    assert await claim_lease(database) is None
    assert await enforce_budgets(database) == {"held": ["goal"]}


async def test_a_hold_is_told_of_after_the_resumption_that_it_follows(database: Database, replica: Database) -> None:
    """Also where the budget is looked at while the resumption is under way: that one has nothing to tell yet."""
    await create_goal(database, money_budget=5)
    await submitted(database)
    await pause(database)
    await _spend(database, 5)
    async with database.transaction() as connection:
        await goals.resume(connection, "goal", "after lunch", "me")
        enforcing = asyncio.create_task(_enforce(replica))
        await until_blocked(database)
    assert (await enforcing)["held"] == []
    assert await claim_lease(database) is None
    assert await enforce_budgets(replica) == {"held": ["goal"]}
    assert (await _told(database))[-2:] == ["goal.resumed", "goal.held"]
