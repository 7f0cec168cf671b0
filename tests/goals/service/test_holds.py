"""The tasks of a goal that is paused, stopped or out of time: held out of the way, and brought back in their order."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.db.database import Database
from app.goals.service import budget_enforcement, goals
from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.errors import GoalStopped
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import leases, tasks
from app.queue.service.leases import LeaseService
from app.queue.store import claims, holds
from app.queue.store import tasks as task_store
from app.queue.store.claims import ClaimRequest, Lease
from tests.goals.service.budgeted_goals import (
    claim_lease,
    create_goal,
    enforce_budgets,
    pause,
    phases,
    ready_tasks,
    recapture_tasks,
    resume,
    stop,
)
from tests.support.factories import (
    GENERATION,
    completion,
    everything,
    fence,
    leased,
    ready_worker,
    submission,
    submitted,
)
from tests.support.plans import explained_database
from tests.support.sql import execute, until_blocked, value

ALL = frozenset(AgentType)


async def test_from_the_commit_on_nothing_is_leased_though_nothing_was_swept_yet(database: Database) -> None:
    await create_goal(database)
    await submitted(database, 3)
    (other,) = await submitted(database, goal_id="other")
    await pause(database)
    lease = await claim_lease(database)
    assert lease is not None
    assert lease.task_id == other
    assert await claim_lease(database) is None


async def test_what_is_held_is_out_of_the_way_and_comes_back_in_its_order(database: Database) -> None:
    await create_goal(database)
    ids = await submitted(database, 5)
    later = datetime.now(UTC) + timedelta(hours=1)
    (timed,) = await submitted(database, run_at=later)
    await pause(database)
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {"held": 6}
    assert await ready_tasks(database) == []
    task = await everything(database, ids[0])
    assert (task["held"], task["run_at"], task["state"]) == (True, None, "pending")
    await submitted(database, 2)
    assert await phases(database) == {"held": 8}, "what is submitted meanwhile goes there at once"
    await resume(database)
    assert (await ready_tasks(database))[:5] == ids
    assert await phases(database) == {"pending": 7, "delayed": 1}
    assert (await everything(database, timed))["run_at"] == later
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def test_a_goal_takes_its_turn_where_the_lane_is_when_it_comes_back(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    """Ten tasks wait through a pause while the lane goes on: then they share it, and displace no other goal."""
    await create_goal(database)
    ours = await submitted(database, 20)
    await pause(database)
    await budget_enforcement.process_holds(database)
    await submitted(database, 40, goal_id="other")
    worker = await ready_worker(database)

    async def next_lease() -> Lease:
        call = LeaseCall(worker_id=worker, request_id=uuid4(), agent_types=ALL, acknowledge=True)
        lease = await broker.lease(call, 15)
        assert lease is not None
        await desk.complete(completion(worker, lease))
        return lease

    assert {(await next_lease()).goal_id for _ in range(20)} == {"other"}
    await asyncio.sleep(1.3)  # until the database knows how far the lane has gone
    await resume(database)
    served = [await next_lease() for _ in range(20)]
    mine = [lease.task_id for lease in served if lease.goal_id == "goal"]
    assert 8 <= len(mine) <= 12
    assert mine == ours[: len(mine)]


async def test_batches_keep_the_order(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_enforcement, "BATCH", 3)
    await create_goal(database)
    ids = await submitted(database, 10)
    await pause(database)
    assert await budget_enforcement.process_holds(database) == 4
    assert await phases(database) == {"held": 10}
    await resume(database)
    assert await ready_tasks(database) == ids


async def test_a_pause_in_the_middle_of_coming_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_enforcement, "BATCH", 4)
    await create_goal(database)
    ids = await submitted(database, 10)
    await pause(database)
    await budget_enforcement.process_holds(database)
    async with database.transaction() as connection:
        await goals.resume(connection, "goal", "", "me")
    assert await budget_enforcement.process_batch(database)
    assert await phases(database) == {"held": 6, "pending": 4}
    more = await submitted(database, 2)
    assert await phases(database) == {"held": 8, "pending": 4}, "or it would overtake those that wait for longer"
    await pause(database)
    assert await claim_lease(database) is None
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {"held": 12}
    await resume(database)
    assert await ready_tasks(database) == [*ids, *more]


async def test_what_comes_back_from_a_worker_is_found(database: Database) -> None:
    await create_goal(database)
    task_id = await _come_back(database)
    assert await ready_tasks(database) == [task_id]
    assert await claim_lease(database) is None, "not leased, although it was not taken out of the way yet"
    await recapture_tasks(database)
    assert await phases(database) == {"held": 1}
    await resume(database)
    assert await ready_tasks(database) == [task_id]


async def _come_back(database: Database, delay_seconds: float = 0.0) -> UUID:
    """Give a task of a held goal back, so that it is ready again, after the delay if there is one."""
    (task_id,) = await submitted(database)
    worker = await ready_worker(database)
    lease = await leased(database, worker)
    await pause(database)
    await budget_enforcement.process_holds(database)
    async with database.transaction() as connection:
        await leases.release(connection, fence(worker, lease), "going home", delay_seconds)
    return task_id


@pytest.mark.parametrize("way", ["given back", "delayed", "submitted", "submitted behind another"])
async def test_what_gets_past_the_sweep_is_leased_once_its_goal_goes_on(
    database: Database, replica: Database, desk: LeaseService, way: str
) -> None:
    """The claims' connection has made its plan while no goal was held."""
    await create_goal(database)
    assert await claim_lease(replica) is None
    if way == "given back":
        task_id = await _come_back(database)
    elif way == "delayed":
        task_id = await _come_back(database, delay_seconds=0.001)
        async with database.transaction() as connection:
            assert await task_store.promote(connection, 10) == 1
    else:
        first = await submitted(database, goal_id="other") if way == "submitted behind another" else []
        async with replica.transaction() as connection:
            (task,) = await tasks.submit(connection, [submission(depends_on=first)])
            await pause(database)
            await budget_enforcement.process_holds(database)
        task_id = task.id
        if first:
            worker = await ready_worker(database)
            await desk.complete(completion(worker, await leased(database, worker)))
    assert await value(database, "SELECT is_swept FROM holds")
    assert await ready_tasks(database) == [task_id]
    assert await claim_lease(replica) is None
    await resume(database)
    lease = await claim_lease(replica)
    assert lease is not None
    assert lease.task_id == task_id


async def test_what_comes_back_as_its_goal_is_resumed_is_left_alone(
    database: Database, replica: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set aside after the hold has ended, it would never come back."""
    await create_goal(database)
    task_id, look = await _come_back(database), holds.ready_in_closed_goals

    async def look_and_wait(connection: AsyncConnection, since: datetime) -> tuple[list[Any], datetime | None]:
        strays, unseen_since = await look(connection, since)
        assert [stray.id for stray in strays] == [task_id]
        await resume(replica)
        return strays, unseen_since

    monkeypatch.setattr(holds, "ready_in_closed_goals", look_and_wait)
    await recapture_tasks(database)
    assert await ready_tasks(database) == [task_id]
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def test_what_is_set_aside_keeps_its_hold_until_the_commit(database: Database, replica: Database) -> None:
    await create_goal(database)
    task_id = await _come_back(database)
    async with database.transaction() as connection:
        await budget_enforcement.recapture_tasks(connection)
        resuming = asyncio.create_task(resume(replica))
        await until_blocked(database)
    await resuming
    assert await ready_tasks(database) == [task_id]


_READY_SINCE = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, max_attempts, retry_delays, request_hash,
                   created_at, goal_id, waiting_since)
SELECT gen_random_uuid(), 'pending', 'generation', 2, '{}', '{}', 3, '{}', '', now(), $1,
       now() - interval '1 h' + n * interval '1 ms'
FROM generate_series(1, $2) AS n
"""


async def _turn(database: Database) -> dict[str, Any]:
    async with database.transaction() as connection:
        await duties.ensure(connection, budget_enforcement.RECAPTURE_DUTY)
        result = await budget_enforcement.recapture_tasks(connection)
        await duties.record(connection, budget_enforcement.RECAPTURE_DUTY, result, held_back=False)
        return result


async def test_a_look_reads_a_bounded_part_of_what_became_ready_and_the_next_one_goes_on(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long absence, or a storm of submits, it read all tasks that wait: 219,000 pages of a million."""
    monkeypatch.setattr(holds, "_WINDOW", 100)
    await create_goal(own_database)
    await pause(own_database)
    await execute(own_database, _READY_SINCE, "other", 950)
    await execute(own_database, _READY_SINCE, "goal", 960)
    await execute(own_database, "DELETE FROM tasks WHERE goal_id = 'goal' AND seq < (SELECT max(seq) FROM tasks)")
    strays, is_behind, rows = 0, True, []
    async with explained_database(own_database, monkeypatch) as (database, log):
        while is_behind:
            log.take()
            result = await _turn(database)
            rows.append(log.take().rows)
            strays, is_behind = strays + result["strays"], result.get("behind", False)
    assert strays == 1
    assert len(rows) == 10, "the last one of each hundred is where the next look begins"
    assert max(rows) < 900
    assert len(await ready_tasks(own_database)) == 950
    assert "unseen_since" not in result


async def test_more_strays_than_one_turn_takes_are_left_to_the_next(database: Database) -> None:
    """The rest stayed in the way of claims for good, as the next turn began where this one had ended."""
    await create_goal(database)
    await pause(database)
    await execute(database, _READY_SINCE, "goal", 1500)
    results = [await _turn(database) for _ in range(2)]
    assert [(result["strays"], result.get("behind", False)) for result in results] == [(1000, True), (500, False)]
    assert await ready_tasks(database) == []


async def test_what_is_set_aside_without_a_hold_comes_back(database: Database) -> None:
    """As it was lost by former versions; one goal is looked at in each turn here, and then the next."""
    ids = [(await submitted(database, goal_id=goal_id))[0] for goal_id in ("a", "b", "c")]
    await create_goal(database, "b")
    await pause(database, "b")
    await budget_enforcement.process_holds(database)
    await execute(database, "UPDATE tasks SET run_at = 'infinity' WHERE goal_id <> 'b'")
    await execute(database, "DELETE FROM holds WHERE goal_id <> 'b'")
    after, found = "", []
    for _ in range(4):
        async with database.transaction() as connection:
            count, after = await holds.reopen_lost(connection, after, limit=1)
        found.append((count, after))
        await budget_enforcement.process_holds(database)
    assert found == [(1, "a"), (0, "b"), (1, "c"), (0, "")]
    assert await ready_tasks(database) == [ids[0], ids[2]]
    assert await value(database, "SELECT count(*) FROM holds") == 1


async def test_a_duty_looks_for_what_is_lost_where_no_goal_is_held(database: Database) -> None:
    looks = f"SELECT {holds.HAS_HELD}"
    (task_id,) = await submitted(database)
    assert not await value(database, looks)
    await execute(database, "UPDATE tasks SET run_at = 'infinity'")
    assert await value(database, looks)
    await recapture_tasks(database)
    await budget_enforcement.process_holds(database)
    assert await ready_tasks(database) == [task_id]
    assert not await value(database, looks)


async def test_what_waits_for_another_task_is_held_too(database: Database) -> None:
    await create_goal(database)
    (first,) = await submitted(database, goal_id="other")
    (second,) = await submitted(database, depends_on=(first,))
    await pause(database)
    await budget_enforcement.process_holds(database)
    worker = await ready_worker(database)
    lease = await leased(database, worker)
    desk = LeaseService(database, LeasePolicy(), Broker(database, LeasePolicy()).fairness)
    await desk.complete(completion(worker, lease))
    await desk.stop()
    assert await phases(database) == {"held": 1}
    assert await claim_lease(database) is None
    await resume(database)
    assert await ready_tasks(database) == [second]


async def test_a_claim_that_is_under_way_wins_or_loses_whole(database: Database) -> None:
    """By who locks the task first: either it is leased and the sweep leaves it alone, or no worker gets it."""
    await create_goal(database)
    await submitted(database)
    worker = await ready_worker(database)
    async with (await database.pool()).acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        ask = ClaimRequest(worker_id=worker, request_id=uuid4(), lane=GENERATION, acknowledge=True)
        assert (await claims.claim(other, [ask], LeasePolicy()))[0].lease is not None  # type: ignore[arg-type]
        await pause(database)
        sweeping = asyncio.create_task(budget_enforcement.process_holds(database))
        await until_blocked(database)
        await transaction.commit()
    await sweeping
    assert await phases(database) == {"executing": 1}


async def test_a_submit_and_the_end_of_a_hold_wait_for_each_other(database: Database) -> None:
    """Nothing may be held for good because it was submitted while the last batch came back."""
    await create_goal(database)
    await submitted(database, 2)
    await pause(database)
    await budget_enforcement.process_holds(database)
    async with database.transaction() as connection:
        await goals.resume(connection, "goal", "", "me")
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission()])
        ending = asyncio.create_task(budget_enforcement.process_holds(database))
        await until_blocked(database)
    await ending
    assert await phases(database) == {"pending": 3}


async def test_a_stop_cancels_everything_and_what_slips_in(database: Database) -> None:
    await create_goal(database)
    await submitted(database, 3)
    worker = await ready_worker(database)
    lease = await leased(database, worker)
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission()])
        await stop(database)
        await budget_enforcement.process_holds(database)
    assert await phases(database) == {"pending": 1}, "submitted before the stop, and seen only now"
    assert await claim_lease(database) is None
    await recapture_tasks(database)
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {}
    assert (await everything(database, lease.task_id))["state"] == TaskState.CANCELLED
    assert await value(database, "SELECT outcome FROM task_attempts WHERE task_id = $1", lease.task_id) == "cancelled"
    with pytest.raises(GoalStopped):
        await submitted(database)


async def test_a_stop_goes_on_from_the_last_batch_and_looks_for_what_slipped_in_at_the_end(
    database: Database, replica: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch would walk over all that were cancelled before it, while somebody keeps an old snapshot."""
    monkeypatch.setattr(budget_enforcement, "BATCH", 2)
    await create_goal(database)
    cursors = []
    async with replica.transaction() as connection:
        await tasks.submit(connection, [submission()])
        await submitted(database, 5)
        await stop(database)
        while await value(database, "SELECT count(*) FROM tasks"):
            await budget_enforcement.process_batch(database)
            cursors.append(await value(database, "SELECT swept_seq FROM holds"))
        last = await value(database, "SELECT max(seq) FROM task_history")
        assert cursors == [last - 3, last - 1, 0]
    assert await phases(database) == {"pending": 1}
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {}
    assert await value(database, "SELECT is_swept FROM holds")


async def test_the_hold_of_a_stopped_goal_is_forgotten_in_the_end(database: Database) -> None:
    await create_goal(database)
    await stop(database)
    await budget_enforcement.process_holds(database)
    await recapture_tasks(database)
    assert await value(database, "SELECT count(*) FROM holds") == 1
    await execute(database, "UPDATE holds SET since = now() - interval '1 h'")
    await recapture_tasks(database)
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def test_time_that_is_up_stops_a_goal_without_its_client(database: Database) -> None:
    await create_goal(database, time_limit_seconds=60)
    await create_goal(database, "other", time_limit_seconds=6000)
    await submitted(database)
    assert await enforce_budgets(database) == {}
    await execute(database, "UPDATE goals SET started_at = now() - interval '61 s'")
    assert await enforce_budgets(database) == {"stopped": ["goal"]}
    assert await claim_lease(database) is None
    assert (await value(database, "SELECT reason FROM goals WHERE id = 'goal'")).startswith("the limit of 60 s of time")


async def test_tasks_that_wait_for_others_are_locked_after_these(database: Database) -> None:
    """As by whoever ends a task; by id alone the two would deadlock."""
    waiting, free = sorted((uuid4(), uuid4()))
    await create_goal(database)
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(id=free), submission(id=waiting, depends_on=[free])])
    lock = "SELECT FROM tasks WHERE id = $1 FOR UPDATE NOWAIT"
    other = await database.connect()
    for change in (pause, resume):
        async with other.transaction():
            await other.execute(lock, free)
            changing = asyncio.create_task(_change_and_process(database, change))
            await until_blocked(database)
            await other.execute(lock, waiting)
        await changing
    await other.close()
    assert await phases(database) == {"pending": 1, "blocked": 1}


async def _change_and_process(database: Database, change: Callable[[Database], Awaitable[None]]) -> None:
    await change(database)
    await budget_enforcement.process_holds(database)
