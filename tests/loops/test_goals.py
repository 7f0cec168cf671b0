"""Goals under the real schedule: limits hold, and pauses pass, without anybody calling."""

from typing import Any

from app.db.database import Database
from app.goals.service import goals
from app.loops.schedule import DUTIES, JOBS
from tests.support.factories import goal_request, leased, ready_worker, submitted
from tests.support.runner import running
from tests.support.sql import until, value


async def _create_goal(database: Database, **constraints: Any) -> None:
    async with database.transaction() as connection:
        await goals.create(connection, goal_request(**constraints))


async def _count(database: Database, phase: str) -> int:
    return int(await value(database, "SELECT count(*) FROM tasks WHERE convener_phase(state, run_at) = $1", phase))


async def test_a_goal_whose_time_is_up_ends_with_all_its_tasks(database: Database) -> None:
    await _create_goal(database, time_limit_seconds=0.5)
    await submitted(database, 5)
    await leased(database, await ready_worker(database))

    async def over() -> bool:
        return not await value(database, "SELECT count(*) FROM tasks")

    async with running(database, *DUTIES, *JOBS):
        await until(over)
    assert await value(database, "SELECT state FROM goals") == "stopped"
    assert await value(database, "SELECT count(*) FROM task_history WHERE state = 'cancelled'") == 5
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'goal.stopped'") == 1


async def test_a_pause_comes_and_goes(database: Database) -> None:
    await _create_goal(database)
    await submitted(database, 5)

    async def held() -> bool:
        return await _count(database, "held") == 5

    async def back() -> bool:
        return await _count(database, "pending") == 5

    async with running(database, *DUTIES, *JOBS):
        async with database.transaction() as connection:
            await goals.pause(connection, "goal", "lunch", "me")
        await until(held)
        async with database.transaction() as connection:
            await goals.resume(connection, "goal", "after lunch", "me")
        await until(back)
