"""Nothing waits for ever: priorities rise, near deadlines are urgent."""

import json
from uuid import UUID, uuid4

import pytest

from app.db import duties, notify
from app.db.database import Database, now
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.aging import AgingPolicy, DeadlineLook
from app.queue.service import aging, counters
from app.queue.store import aging as store
from app.queue.store.claims import Lease
from tests.support.factories import ready_worker, submitted
from tests.support.sql import execute, fetch, value
from tests.support.turns import take_turn

_AGE = "UPDATE tasks SET waiting_since = now() - make_interval(mins => $1)"


async def _tick(database: Database) -> dict[str, int]:
    """A turn of the duty, with its record."""
    async with database.transaction() as connection:
        await duties.ensure(connection, aging.AGE_TASKS)
        result = await aging.age_tasks(connection, AgingPolicy())
        await duties.record(connection, aging.AGE_TASKS, result, held_back=False)
    return {name: result[name] for name in ("aged", "urgent")}


async def _forget(database: Database) -> None:
    """Where the duty stood: the tests turn back the clock, which time does not."""
    await execute(database, "DELETE FROM loop_ticks")


async def _priorities(database: Database) -> dict[UUID, int]:
    return {row["id"]: row["priority"] for row in await fetch(database, "SELECT id, priority FROM tasks")}


async def test_low_rises_after_ten_twenty_and_thirty_minutes(
    database: Database,
) -> None:
    (task_id,) = await submitted(database, priority=Priority.LOW)
    (medium,) = await submitted(database, priority=Priority.MEDIUM)
    await execute(database, _AGE, 9)
    assert await _tick(database) == {"aged": 0, "urgent": 0}
    await execute(database, _AGE, 11)
    assert await _tick(database) == {"aged": 1, "urgent": 0}
    assert await _priorities(database) == {task_id: Priority.MEDIUM, medium: Priority.MEDIUM}
    await _forget(database)
    await execute(database, _AGE, 21)
    assert (await _tick(database))["aged"] == 2
    assert await _priorities(database) == {task_id: Priority.HIGH, medium: Priority.HIGH}
    await _forget(database)
    await execute(database, _AGE, 31)
    assert (await _tick(database))["aged"] == 2
    assert await _priorities(database) == {task_id: Priority.CRITICAL, medium: Priority.CRITICAL}
    await execute(database, _AGE, 600)
    assert (await _tick(database))["aged"] == 0
    kept = await fetch(database, "SELECT submitted_priority FROM tasks ORDER BY seq")
    assert [row["submitted_priority"] for row in kept] == [Priority.LOW, Priority.MEDIUM]


async def test_each_rise_is_an_event_with_its_reason(database: Database) -> None:
    (old,) = await submitted(database, priority=Priority.LOW)
    await execute(database, _AGE, 11)
    (near,) = await submitted(database, priority=Priority.HIGH)
    await execute(database, "UPDATE tasks SET deadline = now() WHERE id = $1", near)
    await _tick(database)
    rows = await fetch(
        database, "SELECT task_id, detail, priority FROM every_event WHERE kind = 'task.aged' ORDER BY seq"
    )
    assert [(row["task_id"], json.loads(row["detail"]), row["priority"]) for row in rows] == [
        (old, {"from": "low", "to": "medium", "reason": "waited"}, Priority.MEDIUM),
        (near, {"from": "high", "to": "critical", "reason": "deadline"}, Priority.CRITICAL),
    ]


async def test_a_low_task_climbs_one_step_a_turn(database: Database) -> None:
    (task_id,) = await submitted(database, priority=Priority.LOW)
    await execute(database, _AGE, 25)
    await _tick(database)
    assert await _priorities(database) == {task_id: Priority.MEDIUM}
    await _tick(database)
    assert await _priorities(database) == {task_id: Priority.HIGH}


async def test_what_has_aged_is_served_although_more_important_work_floods_in(
    database: Database, broker: Broker
) -> None:
    """It enters the higher lane at its head, in turns with the goal that floods it."""
    (old,) = await submitted(database, priority=Priority.LOW, goal_id="patient")
    await execute(database, _AGE, 11)
    await submitted(database, 500, goal_id="flood")
    await _tick(database)
    served = [await _lease(database, broker) for _ in range(3)]
    assert old in [lease.task_id for lease in served]


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize(
    ("goals", "within"), [(["patient"], 4), (["flood"], 4), ([f"goal-{n}" for n in range(20)], 24)]
)
async def test_no_flood_keeps_an_old_task_waiting(
    database: Database, broker: Broker, priority: Priority, goals: list[str], within: int
) -> None:
    """Of whatever priority it is, and whether it comes from its own goal, from another one or from many."""
    (old,) = await submitted(database, priority=Priority.LOW, goal_id="patient")
    await execute(database, _AGE, 180)
    for goal in goals:
        await submitted(database, 60 // len(goals), priority=priority, goal_id=goal)
    for _ in range(3):
        await _tick(database)
    served = [(await _lease(database, broker)).task_id for _ in range(within)]
    assert old in served


async def test_what_has_risen_does_not_keep_what_was_submitted_from_its_turn(
    database: Database, broker: Broker
) -> None:
    """A flood of low work that has become critical, and then critical work of the same goal."""
    await submitted(database, 40, priority=Priority.LOW, goal_id="goal")
    await execute(database, _AGE, 180)
    for _ in range(3):
        await _tick(database)
    urgent = await submitted(database, 5, priority=Priority.CRITICAL, goal_id="goal")
    served = [(await _lease(database, broker)).task_id for _ in range(12)]
    assert set(urgent) <= set(served)


async def test_a_task_that_runs_or_waits_for_its_time_does_not_age(database: Database) -> None:
    await submitted(database, 2, priority=Priority.LOW)
    await execute(
        database,
        "UPDATE tasks SET run_at = now() + interval '1 h' WHERE id = (SELECT id FROM tasks ORDER BY seq LIMIT 1)",
    )
    await execute(
        database,
        "UPDATE tasks SET state = 'executing', worker_id = $1, token = 1 WHERE run_at IS NULL",
        await ready_worker(database),
    )
    await execute(database, _AGE, 30)
    assert (await _tick(database))["aged"] == 0


async def test_a_near_deadline_makes_a_task_critical(database: Database, broker: Broker) -> None:
    await submitted(database, 50, priority=Priority.HIGH)
    async with database.transaction() as connection:
        moment = await now(connection)
    (far,) = await submitted(database, priority=Priority.LOW, deadline=moment.replace(year=moment.year + 1))
    (near,) = await submitted(database, priority=Priority.LOW, deadline=moment)
    assert (await _priorities(database))[near] == Priority.CRITICAL
    assert (await _lease(database, broker)).task_id == near
    await execute(database, "UPDATE tasks SET deadline = now() + interval '100 s' WHERE id = $1", far)
    assert await _tick(database) == {"aged": 0, "urgent": 1}
    assert (await _lease(database, broker)).task_id == far


async def test_a_task_that_is_blocked_hurries_too_and_announces_no_work(database: Database) -> None:
    (first,) = await submitted(database)
    (second,) = await submitted(database, depends_on=(first,), priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET deadline = now() WHERE id = $1", second)
    heard: set[str] = set()
    database.announcer.subscribe(heard.update)
    assert (await _tick(database))["urgent"] == 1
    assert heard <= {notify.EVENTS}
    assert await value(database, "SELECT state FROM tasks WHERE id = $1", second) == "blocked"


async def _lease(database: Database, broker: Broker) -> Lease:
    call = LeaseCall(worker_id=await ready_worker(database), request_id=uuid4(), agent_types=frozenset(AgentType))
    lease = await broker.lease(call, 5)
    assert lease is not None
    return lease


async def test_many_that_age_at_once_are_moved_by_and_by_and_go_on_where_it_stopped(database: Database) -> None:
    await submitted(database, 500, priority=Priority.LOW)
    await execute(
        database, "UPDATE tasks SET waiting_since = now() - interval '11 min' + seq * interval '1 microsecond'"
    )
    assert [(await _tick(database))["aged"] for _ in range(4)] == [200, 200, 100, 0]
    tags = [row["tag"] for row in await fetch(database, "SELECT tag FROM tasks ORDER BY seq")]
    assert tags == sorted(set(tags))


async def test_what_comes_back_with_a_near_deadline_hurries_within_a_minute(database: Database) -> None:
    """Where a look at all deadlines takes long, others meet those alone that have come near since."""
    (back, near) = await submitted(database, 2, priority=Priority.LOW)
    await _tick(database)
    dear = "UPDATE loop_ticks SET result = jsonb_set(result, '{deadlines}', $1)"
    await execute(database, dear, '{"seconds": 1, "seconds_ago": 0, "is_cut": false}')
    await execute(database, "UPDATE tasks SET deadline = now() + interval '1 min' WHERE id = $1", back)
    await execute(database, "UPDATE tasks SET deadline = now() + interval '2 min' WHERE id = $1", near)
    assert await _tick(database) == {"aged": 0, "urgent": 1}
    assert (await _priorities(database)) == {back: Priority.LOW, near: Priority.CRITICAL}
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() - interval '1 min'")
    await execute(database, "UPDATE tasks SET deadline = now() + interval '30 s' WHERE id = $1", back)
    assert await _tick(database) == {"aged": 0, "urgent": 1}


async def test_after_as_many_deadlines_as_fit_a_look_all_of_them_are_looked_at_again(database: Database) -> None:
    await submitted(database, 3, priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET deadline = now()")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "MAX_EXPEDITED", 2)
        assert await _tick(database) == {"aged": 0, "urgent": 2}
    last = "UPDATE loop_ticks SET result = jsonb_set(result, '{deadlines,seconds}', '1')"
    await execute(database, last)
    await execute(database, "UPDATE tasks SET deadline = now() - interval '1 h'")
    assert await _tick(database) == {"aged": 0, "urgent": 1}


def test_all_deadlines_are_looked_at_as_often_as_that_is_cheap() -> None:
    assert DeadlineLook().is_due
    assert DeadlineLook(seconds=0.01, seconds_ago=1).is_due
    assert not DeadlineLook(seconds=0.5, seconds_ago=30).is_due
    assert DeadlineLook(seconds=0.5, seconds_ago=60).is_due
    assert DeadlineLook(seconds=0.5, seconds_ago=1, is_cut=True).is_due


async def test_what_is_due_twice_rises_twice_while_the_oldest_is_looked_for(database: Database) -> None:
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
    tasks = await submitted(database, 300, priority=Priority.LOW)
    await execute(database, _AGE, 25)
    # As found by a look that has met them.
    await execute(database, "UPDATE loop_ticks SET result = NULL")
    for _ in range(3):
        await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
        await _tick(database)
    priorities = await _priorities(database)
    assert [priorities[task] for task in tasks] == [Priority.HIGH] * 300


async def test_what_an_operator_has_raised_goes_on_rising_within_a_minute(database: Database) -> None:
    (task,) = await submitted(database, priority=Priority.LOW)
    await execute(database, _AGE, 25)
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
    await execute(database, "UPDATE tasks SET priority = $1", Priority.MEDIUM)
    await _tick(database)
    assert await _priorities(database) == {task: Priority.MEDIUM}
    minute_ago = "jsonb_set(result, '{looked_back,looked_at}', to_jsonb(now() - interval '1 min'))"
    await execute(database, f"UPDATE loop_ticks SET result = {minute_ago} WHERE duty = $1", counters.FIND_OLDEST)
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
    await _tick(database)
    assert await _priorities(database) == {task: Priority.HIGH}


async def test_what_another_version_has_stored_stops_no_turn(database: Database) -> None:
    await submitted(database, priority=Priority.LOW)
    await _tick(database)
    newer = '{"seconds": 0, "more": 1}'
    await execute(database, "UPDATE loop_ticks SET result = jsonb_set(result, '{deadlines}', $1)", newer)
    await execute(database, _AGE, 11)
    assert await _tick(database) == {"aged": 1, "urgent": 0}
