"""Namespaces share the leases by their weights, on a real database through the broker."""

from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.namespaces import split_name, stored_name
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.service import sharing
from app.queue.service.leases import LeaseService
from tests.support.factories import completion, ready_worker, submitted
from tests.support.sql import execute
from tests.support.turns import take_turn

ALL = frozenset(AgentType)


async def _next(broker: Broker, desk: LeaseService, worker_id: WorkerId) -> str | None:
    call = LeaseCall(worker_id=worker_id, request_id=uuid4(), agent_types=ALL, acknowledge=True)
    lease = await broker.lease(call, 15)
    assert lease is not None
    await desk.complete(completion(worker_id, lease))
    return lease.goal_id


async def _turn(database: Database) -> dict[str, Any]:
    return await take_turn(database, sharing.DUTY, sharing.share_lanes)


@pytest.mark.parametrize(("weight", "expected"), [(1, 0.5), (3, 0.75)])
async def test_many_goals_get_no_more_than_one(
    database: Database, broker: Broker, desk: LeaseService, weight: float, expected: float
) -> None:
    """2,000 tasks: 20 each of 50 goals of one namespace, and 1,000 of one goal of another."""
    configured = f'{{"namespaces": {{"lab-a": {{"weight": {weight}}}}}}}'
    query = """INSERT INTO config_versions (version, mode, document, changed_by, reason, action)
               VALUES (1, 'development', $1::jsonb, 'test', '', 'initial')"""
    await execute(database, query, configured)
    for goal in range(50):
        await submitted(database, 20, goal_id=stored_name("lab-a", f"goal {goal}"))
    await submitted(database, 1000, goal_id=stored_name("lab-b", "only"))
    worker, served = await ready_worker(database), Counter[str]()
    for _ in range(20):
        await _turn(database)
        for _ in range(50):
            served[split_name(await _next(broker, desk, worker))[0]] += 1
    assert served["lab-a"] / 1000 == pytest.approx(expected, abs=0.05 * expected)


async def test_nothing_is_moved_where_nobody_shares(database: Database) -> None:
    for goal in ("one", "two"):
        await submitted(database, 5, goal_id=goal)
        await submitted(database, 5, goal_id=stored_name("lab-a", goal), agent_type=AgentType.RANKING)
    assert await _turn(database) == {"lanes": 0, "moved": 0}


async def test_a_turn_that_finds_all_in_place_moves_nothing(database: Database) -> None:
    for goal in range(5):
        await submitted(database, 10, goal_id=stored_name("lab-a", str(goal)))
    await submitted(database, 50, goal_id="only")
    assert (await _turn(database))["moved"] > 0
    assert await _turn(database) == {"lanes": 1, "moved": 0}


async def test_a_turn_that_has_moved_many_leaves_the_other_lanes_to_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 lanes took one transaction of 4 s, with all that it had moved locked."""
    monkeypatch.setattr(sharing, "_MOVED", 30)
    agents = [AgentType.GENERATION, AgentType.RANKING, AgentType.EVOLUTION]
    for agent in agents:
        for goal in range(5):
            await submitted(database, 10, goal_id=stored_name("lab-a", str(goal)), agent_type=agent)
        await submitted(database, 50, goal_id="only", agent_type=agent)
    results = [await _turn(database) for _ in range(4)]
    assert [result["lanes"] for result in results] == [1, 1, 1, 3]
    assert [result.get("looked_at") for result in results] == ["evolution/2", "generation/2", "ranking/2", None]
    assert [result.get("behind", False) for result in results] == [True, True, True, False]
    assert all(result["moved"] >= 30 for result in results[:3])
    assert results[3]["moved"] == 0
