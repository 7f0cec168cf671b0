"""Goals with a budget: made, paused, worked on and metered."""

from typing import Any
from uuid import UUID, uuid4

from app.db import hot_path
from app.db.database import Database
from app.goals.service import budget_enforcement, goals
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, counters
from app.queue.store.claims import ClaimRequest, Lease
from tests.support.factories import (
    GENERATION,
    goal_request,
    ready_worker,
)
from tests.support.sql import fetch


async def create_goal(database: Database, goal_id: str = "goal", **constraints: float) -> None:
    async with database.transaction() as connection:
        await goals.create(connection, goal_request(goal_id, **constraints))


async def pause(database: Database, goal_id: str = "goal") -> None:
    async with database.transaction() as connection:
        await goals.pause(connection, goal_id, "lunch", "me")


async def resume(database: Database, goal_id: str = "goal") -> None:
    async with database.transaction() as connection:
        await goals.resume(connection, goal_id, "after lunch", "me")
    await budget_enforcement.process_holds(database)


async def stop(database: Database, goal_id: str = "goal") -> None:
    async with database.transaction() as connection:
        await goals.stop(connection, goal_id, "enough", "me")


async def claim_lease(database: Database) -> Lease | None:
    """The lease that a new worker gets, straight from the store."""
    ask = ClaimRequest(worker_id=await ready_worker(database), request_id=uuid4(), lane=GENERATION, acknowledge=True)
    return (await hot_path.run(database, lambda c: claims.claim(c, [ask], LeasePolicy())))[0].lease


async def ready_tasks(database: Database) -> list[UUID]:
    """The tasks that may run, in the order of a lane."""
    rows = await fetch(database, "SELECT id FROM tasks WHERE state = 'pending' AND run_at IS NULL ORDER BY tag, seq")
    return [row["id"] for row in rows]


async def phases(database: Database) -> dict[str, int]:
    async with database.transaction() as connection:
        counts, truth = await counters.read(connection), await counters.count_tasks(connection)
    assert sorted(map(str, counts)) == sorted(map(str, truth))
    return {count.phase: count.tasks for count in counts}


async def recapture_tasks(database: Database) -> None:
    async with database.transaction() as connection:
        await budget_enforcement.recapture_tasks(connection)


async def enforce_budgets(database: Database) -> dict[str, Any]:
    """Enforce budgets and process all holds; return what happened to which goals."""
    async with database.transaction() as connection:
        await budget_enforcement.fold_compute(connection)
        done = await budget_enforcement.enforce_budgets(connection)
    await budget_enforcement.process_holds(database)
    return {what: goals for what, goals in done.items() if goals}
