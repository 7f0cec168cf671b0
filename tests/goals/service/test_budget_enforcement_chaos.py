"""Goals are paused and resumed at random while two replicas lease, and workers complete, fail and give back."""

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from uuid import uuid4

import pytest

from app.db.database import Database
from app.goals.service import budget_enforcement, goals
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.memory.store import invariants
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import expiry, leases
from app.queue.service.leases import Failure, LeaseService
from app.queue.store import counters
from tests.support.factories import completion, fence, goal_request, ready_worker, submitted
from tests.support.sql import fetch, until, value

_GOALS = ("red", "green", "blue")
_CLOCK = "SELECT clock_timestamp()"
_SUBMITTED = "SELECT count(*) FROM every_event WHERE kind = 'task.submitted'"
# A goal, and two moments between which nothing of it may have been leased.
Closed = tuple[str, datetime, datetime]
_AGENTS = (AgentType.GENERATION, AgentType.RANKING)


async def _work(
    database: Database, broker: Broker, desk: LeaseService, chance: random.Random, over: asyncio.Event
) -> None:
    worker = await ready_worker(database)
    while not over.is_set():
        call = LeaseCall(worker_id=worker, request_id=uuid4(), agent_types=frozenset(_AGENTS), acknowledge=True)
        lease = await broker.lease(call, 0.1)
        if lease is None:
            continue
        what = chance.random()
        if what < 0.7:
            await desk.complete(completion(WorkerId(worker), lease))
            continue
        async with database.transaction() as connection:
            if what < 0.85:
                await leases.release(connection, fence(worker, lease), "another time")
            else:
                await leases.fail(connection, fence(worker, lease), Failure(code="c", message="m", retryable=True))


async def _pause_and_resume(database: Database, goal_id: str, chance: random.Random, closed: list[Closed]) -> None:
    """Record between which moments, by the clock of the database, no task of the goal may be leased."""
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0, 0.15))
        async with database.transaction() as connection:
            await goals.pause(connection, goal_id, "chaos", "me")
        since = await value(database, _CLOCK)
        await submitted(database, chance.randrange(6), goal_id=goal_id, agent_type=chance.choice(_AGENTS))
        await asyncio.sleep(chance.uniform(0, 0.15))
        closed.append((goal_id, since, await value(database, _CLOCK)))
        async with database.transaction() as connection:
            await goals.resume(connection, goal_id, "chaos", "me")


async def _run_duties(databases: Sequence[Database], over: asyncio.Event) -> None:
    """Run the duties of two replicas, much more often than the loops do."""
    while not over.is_set():
        await asyncio.gather(*map(budget_enforcement.process_holds, databases))
        async with databases[0].transaction() as connection:
            await budget_enforcement.recapture_tasks(connection)
            await expiry.promote_delayed(connection)
        await asyncio.sleep(0.02)


async def _run_goals(database: Database, replica: Database, seed: int) -> list[Closed]:
    """Run until all tasks have ended; return when which goal was closed."""
    over, closed, desk = asyncio.Event(), list[Closed](), LeaseService(database, LeasePolicy(), FairQueue())
    brokers = [Broker(source, LeasePolicy()) for source in (database, replica)]
    for broker in brokers:
        broker.start()
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            chance = random.Random(f"{seed}/{number}")
            group.create_task(_work(database, brokers[number % 2], desk, chance, over))
        group.create_task(_run_duties((database, replica), over))
        pauses = [_pause_and_resume(database, goal, random.Random(f"{seed}/{goal}"), closed) for goal in _GOALS]
        await asyncio.gather(*pauses)
        await until(partial(_is_empty, database))
        over.set()
    for broker in brokers:
        await broker.stop()
    await desk.stop()
    return closed


async def _is_empty(database: Database) -> bool:
    return not await value(database, "SELECT count(*) FROM tasks")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_leased_while_its_goal_is_paused_and_nothing_is_lost(
    database: Database, replica: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_enforcement, "BATCH", 7)
    for goal_id in _GOALS:
        async with database.transaction() as connection:
            await goals.create(connection, goal_request(goal_id))
        for agent in _AGENTS:
            await submitted(database, 60, goal_id=goal_id, agent_type=agent)
    leased = """
        SELECT at - $2 AS after_the_pause, $3 - at AS before_the_end, transaction, * FROM every_event
        WHERE kind = 'task.assigned' AND goal_id = $1 AND at BETWEEN $2 AND $3
    """
    for interval in await _run_goals(database, replica, seed):
        assert await fetch(database, leased, *interval) == []
    assert await value(database, "SELECT count(*) FROM holds") == 0
    ended = "SELECT count(*) = count(DISTINCT id) AND count(*) = $1 FROM task_history"
    assert await value(database, ended, await value(database, _SUBMITTED))
    async with database.transaction() as connection:
        assert await counters.read(connection) == []
        for check in invariants.CHECKS:
            assert (await invariants.run_check(connection, check)).examples == [], check.description
