"""Pausing and resuming agent types, and looking at the queue without touching what grows with it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import hot_path, notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.status import QueueSnapshot
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import counters, status
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest
from tests.support.factories import GENERATION, leased, ready_worker, submitted
from tests.support.plans import plans_of
from tests.support.sql import execute, fetch, until_blocked
from tests.support.turns import take_turn
from tests.support.waiting import until_waiting

_GENERATION = (AgentType.GENERATION,)


def _call(worker_id: WorkerId, *agents: AgentType) -> LeaseCall:
    return LeaseCall(worker_id=worker_id, request_id=uuid4(), agent_types=frozenset(agents or AgentType))


async def _pause(database: Database, *agents: AgentType, reason: str = "upkeep", by: str = "operator") -> None:
    async with database.transaction() as connection:
        await status.pause(connection, agents or tuple(AgentType), reason, by)


async def _resume(database: Database, *agents: AgentType) -> None:
    async with database.transaction() as connection:
        await status.resume(connection, agents or tuple(AgentType), "", "somebody")


async def _look(database: Database) -> QueueSnapshot:
    async with database.transaction() as connection:
        return await status.read_snapshot(connection)


async def _oldest(database: Database) -> dict[Priority, timedelta | None]:
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
    queue = await _look(database)
    return {priority: queue.oldest_wait(priority) for priority in Priority}


@pytest.fixture
async def waiting(database: Database, broker: Broker) -> AsyncIterator["asyncio.Task[Any]"]:
    """A worker waits for a task of any kind."""
    waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await until_waiting(broker)
    yield waiting
    waiting.cancel()


async def test_a_paused_type_is_not_leased_and_others_are(database: Database, broker: Broker) -> None:
    await submitted(database)
    (ranking,) = await submitted(database, agent_type=AgentType.RANKING)
    await _pause(database, AgentType.GENERATION)
    lease = await broker.lease(_call(await ready_worker(database)))
    assert lease is not None
    assert lease.task_id == ranking
    assert await broker.lease(_call(await ready_worker(database))) is None
    await _resume(database, AgentType.GENERATION)
    assert await broker.lease(_call(await ready_worker(database))) is not None


async def test_what_runs_goes_on(database: Database) -> None:
    await submitted(database)
    lease = await leased(database, await ready_worker(database))
    await _pause(database)
    states = await fetch(database, "SELECT state, token FROM tasks WHERE id = $1", lease.task_id)
    assert [tuple(row) for row in states] == [("executing", lease.token)]


async def test_a_wait_ends_soon_after_the_resume(
    database: Database, broker: Broker, waiting: "asyncio.Task[Any]"
) -> None:
    await _pause(database)
    (task_id,) = await submitted(database, agent_type=AgentType.PROXIMITY, priority=Priority.LOW)
    await until_waiting(broker)
    assert not waiting.done()
    await _resume(database, AgentType.PROXIMITY)
    lease = await asyncio.wait_for(waiting, 10)
    assert lease.task_id == task_id


async def test_a_resume_announces_also_what_is_submitted_meanwhile(
    database: Database, broker: Broker, waiting: "asyncio.Task[Any]"
) -> None:
    """The submit rings while the pause still holds, so its ring is in vain."""
    await _pause(database)
    async with database.transaction() as connection:
        await status.resume(connection, _GENERATION, "", "somebody")
        await submitted(database)
        await until_waiting(broker)
        assert not waiting.done()
    assert await asyncio.wait_for(waiting, 10) is not None


async def test_a_resume_announces_every_lane_of_the_types(connection: AsyncConnection) -> None:
    notify.pop_news(connection)
    await status.resume(connection, [AgentType.RANKING], "", "somebody")
    lanes = [Lane(agent_type=AgentType.RANKING, priority=priority) for priority in Priority]
    assert notify.pop_news(connection) == {notify.work(lane): 0.0 for lane in lanes}


async def test_a_resume_is_announced_to_other_processes(database: Database, replica: Database) -> None:
    broker = Broker(replica, LeasePolicy())
    broker.start()
    try:
        await _pause(database)
        await submitted(database)
        waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
        await until_waiting(broker)
        await _resume(database)
        assert await asyncio.wait_for(waiting, 10) is not None
    finally:
        await broker.stop()


async def test_pausing_twice_keeps_the_first(database: Database) -> None:
    await _pause(database, AgentType.RANKING, reason="first", by="one")
    await _pause(database, reason="second", by="other")
    found = {pause.agent_type: (pause.reason, pause.paused_by) for pause in (await _look(database)).pauses}
    assert set(found) == set(AgentType)
    assert found[AgentType.RANKING] == ("first", "one")
    assert found[AgentType.EVOLUTION] == ("second", "other")
    for _ in range(2):
        await _resume(database)
        assert (await _look(database)).pauses == []


async def test_two_that_pause_at_once_do_not_deadlock(database: Database) -> None:
    async with database.transaction() as connection:
        await status.pause(connection, [AgentType.RANKING], "first", "one")
        other = asyncio.create_task(_pause(database, reason="second"))
        await until_blocked(database)
    await other
    reasons = {pause.agent_type: pause.reason for pause in (await _look(database)).pauses}
    assert reasons == {agent: "first" if agent is AgentType.RANKING else "second" for agent in AgentType}


async def _claim(database: Database, worker_id: WorkerId) -> bool:
    ask = ClaimRequest(worker_id=worker_id, request_id=uuid4(), lane=GENERATION, acknowledge=True)
    (claim,) = await hot_path.run(database, lambda c: claims.claim(c, [ask], LeasePolicy()))
    return claim.lease is not None


@asynccontextmanager
async def _held_back(database: Database, worker_id: WorkerId) -> AsyncIterator[None]:
    """A claim of this worker has looked at the pauses, and waits to write its line into the ledger."""
    async with database.engine.connect() as connection:
        line = "INSERT INTO leases (worker_id, n, task_id, token, request_id) VALUES ('{0}', 1, '{0}', 1, '{0}')"
        await connection.exec_driver_sql(line.format(worker_id))
        yield
        await connection.rollback()


async def test_a_pause_waits_for_no_claim_and_stops_the_next(database: Database) -> None:
    """The claim that was under way keeps its task; nothing is lost and nothing leased twice."""
    await submitted(database, 2)
    early, late = await ready_worker(database), await ready_worker(database)
    async with _held_back(database, early):
        under_way = asyncio.create_task(_claim(database, early))
        await until_blocked(database)
        await _pause(database)
        assert not await _claim(database, late)
    assert await under_way
    assert not await _claim(database, late)
    states = sorted(row["state"] for row in await fetch(database, "SELECT state FROM tasks"))
    assert states == ["executing", "pending"]
    await _resume(database)
    assert await _claim(database, late)


async def test_the_oldest_of_each_priority(database: Database) -> None:
    assert set((await _oldest(database)).values()) == {None}
    await submitted(database, 2)
    await submitted(database, priority=Priority.CRITICAL, agent_type=AgentType.RANKING)
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '20 min' WHERE priority = 2")
    await execute(database, "UPDATE loop_ticks SET result = NULL")
    found = await _oldest(database)
    assert found[Priority.LOW] is found[Priority.HIGH] is None
    assert timedelta(minutes=19) < (found[Priority.MEDIUM] or timedelta(0)) < timedelta(minutes=22)
    assert (found[Priority.CRITICAL] or timedelta(hours=1)) < timedelta(minutes=1)
    # One that has grown old comes with its age from below, and is found by the next look that goes back.
    await execute(database, "UPDATE tasks SET priority = 3 WHERE priority = 2")
    assert (await _oldest(database))[Priority.HIGH] is None
    # It comes after a minute, and later where the last one took longer than 1 % of that.
    minute_ago = "jsonb_set(result, '{looked_back,looked_at}', to_jsonb(now() - interval '1 min'))"
    change = "UPDATE loop_ticks SET result = jsonb_set({}, '{{looked_back,seconds}}', '{}')"
    await execute(database, change.format(minute_ago, 2))
    assert (await _oldest(database))[Priority.HIGH] is None
    await execute(database, change.format("result", 0.5))
    found = await _oldest(database)
    assert found[Priority.MEDIUM] is None
    assert timedelta(minutes=19) < (found[Priority.HIGH] or timedelta(0))
    await execute(database, "DELETE FROM tasks")
    assert set((await _oldest(database)).values()) == {None}


async def test_tasks_that_may_not_run_yet_do_not_wait(database: Database) -> None:
    await submitted(database)
    await execute(database, "UPDATE tasks SET run_at = 'infinity'")
    assert set((await _oldest(database)).values()) == {None}


async def test_a_snapshot_contains_workers_and_turns(database: Database) -> None:
    queue = await _look(database)
    assert (queue.count_age, queue.count_error, queue.served_agents) == (None, 0, frozenset())
    await ready_worker(database)
    await take_turn(database, counters.FOLD_EVENTS, counters.fold_events)
    await submitted(database)
    await execute(
        database,
        "INSERT INTO queue_changes (agent_type, priority, phase, tasks) VALUES ('ranking', 1, 'pending', 2)",
    )
    await take_turn(database, counters.CHECK_COUNTERS, counters.check_counters)
    queue = await _look(database)
    assert queue.served_agents == set(AgentType)
    assert (queue.count(), queue.count_error) == (1, 2)
    assert queue.count_age is not None
    assert queue.count_age < timedelta(minutes=1)


async def test_a_worker_that_has_yet_to_say_may_serve_anything(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO workers (id, name, incarnation, state, capabilities, labels)"
        " VALUES (gen_random_uuid(), 'new', 1, 'starting', '{}', '{}')",
    )
    assert (await _look(database)).served_agents == set(AgentType)
    await execute(database, "UPDATE workers SET state = 'draining', capabilities = '{ranking}'")
    assert (await _look(database)).served_agents == frozenset()


async def test_a_long_break_is_caught_up_with_in_several_turns(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO events (transaction, kind, task_id, agent_type, priority)"
        " SELECT n / 1000, 'task.submitted', gen_random_uuid(), 'ranking', 1 FROM generate_series(1, 130000) AS n",
    )
    first = await take_turn(database, counters.FOLD_EVENTS, counters.fold_events)
    assert first["behind"]
    assert 90_000 <= first["events"] <= 100_000
    second = await take_turn(database, counters.FOLD_EVENTS, counters.fold_events)
    assert second == {"events": 130_000 - first["events"]}
    assert (await _look(database)).per_second("submitted", timedelta(minutes=5)) == 130_000 / 300


async def test_the_cost_of_a_snapshot_does_not_grow_with_the_tasks(own_database: Database) -> None:
    """Whatever the planner has been told of the tables: not a task, an event or a finished task is read."""
    await submitted(own_database, 500)
    await leased(own_database, await ready_worker(own_database))
    for preparation in ("SELECT 1", "ANALYZE"):
        await execute(own_database, preparation)
        plans = await plans_of(own_database, lambda: _look(own_database))
        assert len(plans) >= 7
        for plan in plans:
            assert not re.search(r" on (tasks|task_history|events|task_attempts|leases)\w*", plan), plan


async def test_the_oldest_task_is_found_after_the_clock_was_set_back(database: Database) -> None:
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)
    ahead = "UPDATE loop_ticks SET result = jsonb_set(result, '{looked_at}', to_jsonb(now() + interval '1 h'))"
    await execute(database, ahead)
    await submitted(database, priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '5 s'")
    wait = (await _oldest(database))[Priority.LOW]
    assert wait is not None
    assert wait >= timedelta(seconds=5)
