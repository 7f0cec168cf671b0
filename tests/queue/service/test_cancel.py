"""Many tasks are cancelled by what they have in common: all of them, once, with all that wait for them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.errors import TaskCancelled
from app.queue.service import cancel, tasks
from app.queue.service.leases import LeaseService
from app.queue.store import completions
from app.queue.store.listing import Selection
from app.workers.service.workers import Heartbeats
from tests.support.factories import beat, completion, everything, holding, submission, submitted
from tests.support.sql import execute, fetch, until, until_blocked, value

_ALL = Selection()
_BLOCKED_BY = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))"


async def _cancel(database: Database, selection: Selection = _ALL, limit: int = 10_000) -> cancel.CancelResult:
    return await cancel.cancel(database, selection, limit=limit, reason="wrong data")


async def _chain(database: Database, length: int, **changes: object) -> list[UUID]:
    """Tasks that each wait for the one before."""
    ids = [uuid4() for _ in range(length)]
    wanted = [
        submission(id=task_id, depends_on=ids[place - 1 : place] if place else [], **changes)
        for place, task_id in enumerate(ids)
    ]
    async with database.transaction() as connection:
        await tasks.submit(connection, wanted)
    return ids


async def test_waiting_tasks_are_cancelled_with_the_reason(database: Database) -> None:
    (task_id,) = await submitted(database)
    outcome = await _cancel(database)
    assert (outcome.matching_count, outcome.cancelled_count, outcome.dependent_count, outcome.remaining) == (1, 1, 0, 0)
    task = await everything(database, task_id)
    assert (task["state"], task["error"]) == ("cancelled", {"code": "cancelled", "message": "wrong data"})
    assert task["attempts"] == []
    (event,) = await fetch(database, "SELECT * FROM every_event WHERE kind = 'task.cancelled'")
    assert (event["task_id"], event["priority"], json.loads(event["detail"])) == (task_id, 2, {"reason": "wrong data"})


async def test_a_running_task_is_taken_from_its_worker_and_its_attempt_kept(
    database: Database, desk: LeaseService, heartbeats: Heartbeats
) -> None:
    worker, lease = await holding(database)
    assert (await _cancel(database, Selection(states=[TaskState.EXECUTING]))).cancelled_count == 1
    (attempt,) = (await everything(database, lease.task_id))["attempts"]
    assert (attempt["outcome"], attempt["token"], attempt["worker_id"]) == ("cancelled", lease.token, worker)
    assert (attempt["attempt"], attempt["error"]["message"]) == (1, "wrong data")
    pulse = await heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token))
    assert pulse.lease_expires_at is None
    with pytest.raises(TaskCancelled):
        await desk.complete(completion(worker, lease))
    (event,) = await fetch(database, "SELECT * FROM every_event WHERE kind = 'task.cancelled'")
    assert (event["worker_id"], event["token"]) == (worker, lease.token)


async def test_all_that_wait_for_a_cancelled_task_go_with_it(database: Database) -> None:
    """A thousand deep, and each once however many it waits for."""
    chain = await _chain(database, 1000, goal_id="chain")
    (other,) = await submitted(database, goal_id="other")
    both, free = uuid4(), uuid4()
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(id=both, depends_on=[chain[1], chain[500], other], goal_id="other")])
        await tasks.submit(connection, [submission(id=free, depends_on=[other], goal_id="other")])
    selection = Selection(goal_id="chain", states=[TaskState.PENDING])
    outcome = await _cancel(database, selection)
    assert (outcome.matching_count, outcome.cancelled_count, outcome.dependent_count) == (1, 1, 1000)
    left = await fetch(database, "SELECT id, state, blockers FROM tasks ORDER BY seq")
    assert [tuple(row) for row in left] == [(other, "pending", 0), (free, "blocked", 1)]
    assert [tuple(row) for row in await fetch(database, "SELECT task_id FROM task_dependencies")] == [(free,)]
    second = await everything(database, chain[1])
    assert (second["state"], second["error"]["code"]) == ("cancelled", "dependency_failed")
    assert (second["error"]["dependency"], str(chain[0]) in second["error"]["message"]) == (str(chain[0]), True)
    assert (await everything(database, both))["error"]["dependency"] in {str(chain[1]), str(chain[500])}
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.cancelled'") == 1001


async def test_dependents_that_are_selected_too_have_been_cancelled_for_the_reason_given(database: Database) -> None:
    chain = await _chain(database, 2500, goal_id="chain")
    outcome = await _cancel(database, Selection(goal_id="chain"))
    assert (outcome.matching_count, outcome.cancelled_count, outcome.dependent_count, outcome.remaining) == (
        2500,
        2500,
        0,
        0,
    )
    codes = await fetch(database, "SELECT error ->> 'code' AS code, count(*) FROM task_history GROUP BY 1")
    assert [tuple(row) for row in codes] == [("cancelled", len(chain))]
    assert await value(database, "SELECT count(*) FROM tasks") == 0
    assert await value(database, "SELECT count(*) FROM task_dependencies") == 0


async def test_a_filter_cancels_what_it_names_and_nothing_else(database: Database) -> None:
    await submitted(database, 2, goal_id="a", priority=Priority.LOW, labels='{"team": "blue"}')
    await submitted(database, 3, goal_id="b", agent_type=AgentType.RANKING)
    await submitted(database, 1, goal_id=None)
    await _chain(database, 2, goal_id="c")
    now = datetime.now(UTC)
    for selection, count in (
        (Selection(agent_type=AgentType.RANKING), 3),
        (Selection(goal_id="a"), 2),
        (Selection(priority=Priority.LOW), 2),
        (Selection(states=[TaskState.BLOCKED]), 1),
        (Selection(labels=[("team", "blue")]), 2),
        (Selection(labels=[("team", "red")]), 0),
        (Selection(created_before=now + timedelta(hours=1)), 8),
        (Selection(created_before=now - timedelta(hours=1)), 0),
        (Selection(goal_id="a", agent_type=AgentType.RANKING), 0),
    ):
        preview = await cancel.cancel(database, selection, limit=1, reason="", dry_run=True)
        assert preview.matching_count == count, selection
    assert (await _cancel(database, Selection(goal_id="b"))).cancelled_count == 3
    assert await value(database, "SELECT count(*) FROM tasks") == 5


async def test_a_call_ends_at_its_limit_and_says_what_is_left(database: Database) -> None:
    ids = await submitted(database, 1500)
    outcome = await _cancel(database, limit=1200)
    assert (outcome.matching_count, outcome.cancelled_count, outcome.remaining) == (1500, 1200, 300)
    left = await fetch(database, "SELECT id FROM tasks ORDER BY seq")
    assert [row["id"] for row in left] == ids[1200:]


async def test_a_task_that_completes_first_stays_completed(database: Database) -> None:
    worker, lease = await holding(database)
    connection = await database.connect()
    async with connection.transaction():
        assert await completions.complete(connection, [completion(worker, lease)])
        cancelled = asyncio.create_task(_cancel(database))
        await until_blocked(database)
    assert ((await cancelled).matching_count, (await cancelled).cancelled_count) == (1, 0)
    assert (await everything(database, lease.task_id))["state"] == "completed"
    await connection.close()


async def test_a_task_that_starts_meanwhile_is_no_longer_a_waiting_one(database: Database) -> None:
    """The filter is asked again under the lock."""
    (task_id,) = await submitted(database)
    connection = await database.connect()
    async with connection.transaction():
        await connection.execute("UPDATE tasks SET priority = 4")
        cancelled = asyncio.create_task(_cancel(database, Selection(priority=Priority.MEDIUM)))
        await until_blocked(database)
    assert ((await cancelled).matching_count, (await cancelled).cancelled_count) == (1, 0)
    assert (await everything(database, task_id))["state"] == "pending"
    await connection.close()


async def test_a_submit_that_depends_on_a_task_that_is_being_cancelled(database: Database) -> None:
    """Whichever comes first, the new task does not wait for ever."""
    (root,) = await submitted(database, goal_id="a")
    dependent = uuid4()
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(id=dependent, depends_on=[root], goal_id="b")])
        cancelled = asyncio.create_task(_cancel(database, Selection(goal_id="a")))
        await until_blocked(database)
    assert ((await cancelled).cancelled_count, (await cancelled).dependent_count) == (1, 1)
    assert (await everything(database, dependent))["state"] == "cancelled"


async def test_a_task_that_comes_to_wait_while_others_are_locked_is_cancelled_too(database: Database) -> None:
    """It waits for one that came after the first look at who waits; nothing would ever end it."""
    root, late, later = uuid4(), uuid4(), uuid4()
    first, second = sorted((uuid4(), uuid4()))
    async with database.transaction() as connection:
        waiting = [submission(id=task_id, depends_on=[root], goal_id="b") for task_id in (first, second)]
        await tasks.submit(connection, [submission(id=root, goal_id="a"), *waiting])
    other = await database.connect()
    async with other.transaction():
        await other.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", second)
        async with database.transaction() as connection:
            await tasks.submit(connection, [submission(id=late, depends_on=[first], goal_id="b")])
            cancelled = asyncio.create_task(_cancel(database, Selection(goal_id="a")))
            await until_blocked(database)
        # The first of those that wait is locked now, and the second is waited for.
        await until(lambda: value(database, _BLOCKED_BY, other.get_server_pid()))
        late_submit = await database.engine.connect()
        transaction = await late_submit.begin()
        await tasks.submit(late_submit, [submission(id=later, depends_on=[late], goal_id="b")])
    await until_blocked(database)
    await transaction.commit()
    await late_submit.close()
    await other.close()
    assert ((await cancelled).cancelled_count, (await cancelled).dependent_count) == (1, 4)
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_overlapping_calls_end_every_task_once_and_never_deadlock(database: Database) -> None:
    """Chains whose ids are in no order, cancelled by four calls at once: by goal, by agent, by state, and all."""
    for goal in ("a", "b"):
        for agent_type in (AgentType.GENERATION, AgentType.RANKING):
            await _chain(database, 150, goal_id=goal, agent_type=agent_type)
    before = await value(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    selections = (
        Selection(goal_id="a"),
        Selection(agent_type=AgentType.RANKING),
        Selection(states=[TaskState.BLOCKED]),
        _ALL,
    )
    await asyncio.gather(*(_cancel(database, selection) for selection in selections))
    assert await value(database, "SELECT count(*) FROM tasks") == 0
    assert await value(database, "SELECT count(*) FROM task_history") == 600
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.cancelled'") == 600
    await execute(database, "SELECT pg_stat_force_next_flush()")
    assert await value(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


async def test_the_counters_of_the_queue_agree(database: Database) -> None:
    await submitted(database, 30)
    await _chain(database, 5)
    await _cancel(database)
    rows = "SELECT tasks FROM queue_counts UNION ALL SELECT tasks FROM queue_changes"
    assert await value(database, f"SELECT sum(tasks) FROM ({rows}) c") == 0
