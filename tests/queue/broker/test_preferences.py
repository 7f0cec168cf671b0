"""Assigned agents as preferences of the broker: who hears of them, what they move, and what they must not."""

from collections import Counter
from uuid import uuid4

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Priority
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.broker.dispatch import _MAX_WORKERS, WorkerPreferences
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.workers.service.workers import Heartbeats
from tests.support.factories import beat, completion, ready_worker, submitted
from tests.support.sql import execute

SOME = (AgentType.GENERATION, AgentType.RANKING, AgentType.EVOLUTION)


async def _assigned(database: Database, agent: AgentType) -> WorkerId:
    worker_id = await ready_worker(database)
    await execute(database, "UPDATE workers SET assigned_agent = $1 WHERE id = $2", agent, worker_id)
    return worker_id


async def _next(broker: Broker, desk: LeaseService, worker_id: WorkerId) -> AgentType | None:
    """The agent type of the task that the worker is given, and completes."""
    call = LeaseCall(worker_id=worker_id, request_id=uuid4(), agent_types=frozenset(AgentType), acknowledge=True)
    lease = await broker.lease(call)
    if lease is None:
        return None
    await desk.complete(completion(worker_id, lease))
    return AgentType(lease.agent_type)


async def test_a_heartbeat_brings_the_preference_of_a_new_worker_to_the_broker(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    heartbeats = Heartbeats(database, LeasePolicy(), broker.preferences)
    for agent in SOME:
        await submitted(database, agent_type=agent)
    for agent in reversed(SOME):
        worker_id = await _assigned(database, agent)
        await heartbeats.report(beat(worker_id))
        assert await _next(broker, desk, worker_id) is agent
    await heartbeats.stop()


async def test_a_claim_tells_the_broker_of_a_new_assignment(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    worker_id = await _assigned(database, AgentType.RANKING)
    assert await _next(broker, desk, worker_id) is None
    assert broker.preferences.of(worker_id) is AgentType.RANKING
    await execute(database, "UPDATE workers SET assigned_agent = 'evolution'")
    assert await _next(broker, desk, worker_id) is None
    assert broker.preferences.of(worker_id) is AgentType.EVOLUTION
    await execute(database, "UPDATE workers SET assigned_agent = NULL")
    assert await _next(broker, desk, worker_id) is None
    assert broker.preferences.of(worker_id) is None


async def test_no_worker_idles_while_another_type_has_work(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    worker_id = await _assigned(database, AgentType.RANKING)
    assert await _next(broker, desk, worker_id) is None
    await submitted(database, 3, agent_type=AgentType.PROXIMITY)
    assert [await _next(broker, desk, worker_id) for _ in range(4)] == [AgentType.PROXIMITY] * 3 + [None]


async def test_what_is_urgent_goes_first_whatever_a_worker_prefers(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    worker_id = await _assigned(database, AgentType.RANKING)
    assert await _next(broker, desk, worker_id) is None
    await submitted(database, agent_type=AgentType.RANKING)
    await submitted(database, agent_type=AgentType.EVOLUTION, priority=Priority.CRITICAL)
    assert [await _next(broker, desk, worker_id) for _ in range(2)] == [AgentType.EVOLUTION, AgentType.RANKING]


async def test_types_without_assigned_workers_keep_their_shares(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    crew = [await _assigned(database, AgentType.GENERATION) for _ in range(3)]
    for agent in SOME:
        await submitted(database, 60, agent_type=agent)
    served: Counter[AgentType | None] = Counter()
    for turn in range(120):
        served[await _next(broker, desk, crew[turn % len(crew)])] += 1
    assert all(abs(served[agent] - 40) <= 2 for agent in SOME)


def test_only_so_many_workers_are_remembered() -> None:
    preferences = WorkerPreferences()
    first, last = WorkerId(uuid4()), WorkerId(uuid4())
    for worker_id in (first, *(WorkerId(uuid4()) for _ in range(_MAX_WORKERS - 1)), last):
        preferences.record(worker_id, AgentType.RANKING)
    assert (preferences.of(first), preferences.of(last)) == (None, AgentType.RANKING)
