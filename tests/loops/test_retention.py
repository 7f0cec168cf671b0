"""What is forgotten when it has ended long ago, and all that has to stay."""

from typing import Any

from app.admin.rules.config import IterationConfig
from app.db.database import Database
from app.goals.rules.stopping import Quality
from app.goals.service import goals, iterations
from app.goals.service.budget_enforcement import process_holds
from app.goals.service.iterations import IterationReport
from app.goals.store import goals as goal_store
from app.loops import housekeeping
from tests.support.factories import goal_request, holding, submitted
from tests.support.sql import execute, fetch, value

_LONG_AGO = "now() - interval '31 days'"
_COMPUTE = "INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) VALUES ($1, 'ranking', 1, 1)"


async def _round(database: Database) -> dict[str, Any]:
    done = await housekeeping.run(database, history_days=30, events_days=7)
    assert done["failed"] == []
    return done


async def _pursued(database: Database, *ids: str) -> None:
    """Goals with one iteration, and what it has cost."""
    for goal_id in ids:
        async with database.transaction() as connection:
            await goals.create(connection, goal_request(goal_id))
            await iterations.record(
                connection, goal_id, IterationReport(number=1, quality=Quality(best=1200.0)), IterationConfig()
            )
        await execute(database, _COMPUTE, goal_id)


async def _stopped(database: Database, *ids: str) -> None:
    """Goals that stopped long ago, and all that follows from it."""
    await _pursued(database, *ids)
    for goal_id in ids:
        async with database.transaction() as connection:
            await goals.stop(connection, goal_id, "enough", "me")
    await process_holds(database)
    await execute(database, f"UPDATE goals SET ended_at = {_LONG_AGO} WHERE state = 'stopped'")
    await execute(database, "DELETE FROM holds")


async def _known(database: Database, table: str, column: str = "goal_id") -> list[str]:
    return [row[0] for row in await fetch(database, f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")]


async def test_a_goal_that_stopped_long_ago_is_forgotten_whole(database: Database) -> None:
    await _stopped(database, "old")
    await _pursued(database, "running", "stopped")
    async with database.transaction() as connection:
        await goals.stop(connection, "stopped", "enough", "me")
    assert (await _round(database))["goals"] == 1
    for table, column in (("goals", "id"), ("goal_iterations", "goal_id"), ("goal_compute", "goal_id")):
        assert await _known(database, table, column) == ["running", "stopped"]
    await _pursued(database, "old")


async def test_a_goal_stays_with_the_last_of_its_tasks_or_its_hold(database: Database) -> None:
    await _pursued(database, "live", "past", "held")
    await submitted(database, goal_id="live")
    await submitted(database, goal_id="past")
    async with database.transaction() as connection:
        await goals.stop(connection, "past", "enough", "me")
    await process_holds(database)
    assert await value(database, "SELECT goal_id FROM task_history") == "past"
    await execute(database, f"UPDATE goals SET state = 'stopped', ended_at = {_LONG_AGO}")
    await execute(database, "DELETE FROM holds")
    await execute(database, "INSERT INTO holds (goal_id, reason) VALUES ('held', 'stopped')")
    assert (await _round(database))["goals"] == 0
    await execute(database, "DELETE FROM task_history")
    await execute(database, "DELETE FROM tasks")
    await execute(database, "DELETE FROM holds")
    assert (await _round(database))["goals"] == 3
    assert await _known(database, "goal_iterations") == []


async def test_a_goal_that_somebody_is_at_stays(database: Database) -> None:
    await _stopped(database, "old")
    async with database.transaction() as connection:
        await goals.lock(connection, "old")
        assert (await _round(database))["goals"] == 0
    assert await _known(database, "goal_iterations") == ["old"]


async def test_what_goals_cost_that_are_merely_named(database: Database) -> None:
    """It stays as long as any of their tasks, and that of goals that were weighed."""
    await holding(database, goal_id="named")
    async with database.transaction() as connection:
        await goal_store.set_weight(connection, "weighed", 2.0)
    for goal_id in ("named", "weighed", "gone"):
        await execute(database, _COMPUTE, goal_id)
    assert (await _round(database))["goal_compute"] == 1
    assert await _known(database, "goal_compute") == ["named", "weighed"]
    assert await _known(database, "goals", "id") == ["weighed"]


async def test_hosts_that_never_come_back(database: Database) -> None:
    await execute(
        database,
        f"""INSERT INTO hosts (provisioner, host, size, usual_size, memory_gb, memory_used_gb, cpu_cores, seen_at)
        VALUES ('local', 'new', 1, 1, 1, 1, 1, now()), ('local', 'old', 1, 1, 1, 1, 1, {_LONG_AGO})""",
    )
    assert (await _round(database))["hosts"] == 1
    assert await value(database, "SELECT host FROM hosts") == "new"


async def test_duties_that_nobody_misses(database: Database) -> None:
    await execute(
        database,
        f"""INSERT INTO loop_ticks (duty, last_run_at, every_seconds)
        VALUES ('fleet new', now(), NULL), ('fleet old', {_LONG_AGO}, NULL), ('late', {_LONG_AGO}, 5),
            ('never', NULL, NULL)""",
    )
    assert (await _round(database))["duties"] == 1
    rows = await fetch(database, "SELECT duty FROM loop_ticks ORDER BY duty")
    assert [row["duty"] for row in rows] == ["fleet new", "late", "never"]


async def test_a_worker_is_remembered_for_as_long_as_anything_names_it(database: Database) -> None:
    for days in (7, 8, 9):
        worker, _ = await holding(database)
        ended = "UPDATE workers SET state = 'lost', name = $2, ended_at = now() - make_interval(days => $3, hours => 1)"
        await execute(database, f"{ended} WHERE id = $1", worker, f"{days} days ago", days)
    await housekeeping.run(database, history_days=3, events_days=7)
    assert await _known(database, "workers", "name") == ["7 days ago"]
