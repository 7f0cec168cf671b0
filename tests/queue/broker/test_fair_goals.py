"""Goals, priorities and agent types share the leases, on a real database through the broker."""

import asyncio
from collections import Counter
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Priority
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.errors import TaskConflict
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import tasks
from app.queue.service.leases import LeaseService
from app.queue.service.tasks import Submission
from app.queue.store.claims import Lease
from tests.support.factories import completion, ready_worker, submission, submitted
from tests.support.sql import execute, value

ALL = frozenset(AgentType)


async def _next(broker: Broker, desk: LeaseService, worker_id: WorkerId) -> Lease:
    lease = await broker.lease(
        LeaseCall(worker_id=worker_id, request_id=uuid4(), agent_types=ALL, acknowledge=True), 15
    )
    assert lease is not None
    await desk.complete(completion(worker_id, lease))
    return lease


async def _submit(database: Database, submissions: list[Submission]) -> None:
    async with database.transaction() as connection:
        await tasks.submit(connection, submissions)


async def _serve(broker: Broker, desk: LeaseService, workers: list[WorkerId], each: int) -> list[Lease]:
    async def work(worker_id: WorkerId) -> list[Lease]:
        return [await _next(broker, desk, worker_id) for _ in range(each)]

    return [lease for leases in await asyncio.gather(*map(work, workers)) for lease in leases]


@pytest.mark.slow
async def test_a_small_goal_is_served_at_once_while_another_floods_the_queue(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    """50,000 tasks of one goal wait, some are leased, then ten of another come."""
    for _ in range(50):
        await submitted(database, 1000, goal_id="flood")
    workers = [await ready_worker(database) for _ in range(8)]
    await _serve(broker, desk, workers, 25)
    await submitted(database, 10, goal_id="small")
    served = await _serve(broker, desk, workers, 5)
    assert sum(lease.goal_id == "small" for lease in served) == 10


async def test_goals_with_weights_share_by_them(database: Database, broker: Broker, desk: LeaseService) -> None:
    await execute(database, "INSERT INTO goals (id, weight) VALUES ('large', 3), ('small', 1)")
    for goal in ("large", "small"):
        await submitted(database, 400, goal_id=goal)
    served = Counter(lease.goal_id for lease in await _serve(broker, desk, [await ready_worker(database)], 200))
    assert abs(served["large"] - 150) <= 2


async def test_two_processes_take_turns_for_one_goal(database: Database, replica: Database) -> None:
    """Each asks the database where the goal stands, so that submitting to both is no advantage."""
    for source in (database, replica):
        await submitted(source, 50, goal_id="both")
    await asyncio.sleep(1.1)
    await submitted(database, 50, goal_id="both")
    assert await value(database, "SELECT max(tag) FROM tasks") >= 150


async def test_a_submit_that_fails_does_not_set_its_goal_back(database: Database) -> None:
    chosen = uuid4()
    await submitted(database, id=chosen, goal_id="goal", payload="{}")
    for _ in range(3):
        with pytest.raises(TaskConflict):
            await _submit(database, [submission(goal_id="goal") for _ in range(500)] + [submission(id=chosen)])
    await submitted(database, goal_id="goal")
    assert await value(database, "SELECT max(tag) FROM tasks") == 2.0


async def test_urgent_work_goes_first_whatever_its_type(database: Database, broker: Broker, desk: LeaseService) -> None:
    await submitted(database, 5, agent_type=AgentType.GENERATION, priority=Priority.LOW)
    await submitted(database, 5, agent_type=AgentType.EVOLUTION, priority=Priority.HIGH)
    await submitted(database, 5, agent_type=AgentType.RANKING, priority=Priority.CRITICAL)
    served = await _serve(broker, desk, [await ready_worker(database)], 15)
    assert [lease.priority for lease in served] == [4] * 5 + [3] * 5 + [1] * 5


@pytest.mark.slow
async def test_types_share_by_weight_and_none_starves(database: Database, desk: LeaseService) -> None:
    """2,000 leases while all have work; then one runs dry and the others take all there is."""
    weights = dict.fromkeys(AgentType, 0.02) | {
        AgentType.GENERATION: 0.42,
        AgentType.RANKING: 0.3,
        AgentType.EVOLUTION: 0.2,
    }
    broker = Broker(database, LeasePolicy(), FairQueue(weights=weights))
    broker.start()
    for agent in AgentType:
        await submitted(database, 1000, agent_type=agent)
    workers = [await ready_worker(database) for _ in range(8)]
    served = Counter(lease.agent_type for lease in await _serve(broker, desk, workers, 250))
    for agent, weight in weights.items():
        assert abs(served[agent] / 2000 - weight) <= 0.05
        assert served[agent] >= 2000 / 20 / 6 * 0.9
    await execute(database, "DELETE FROM tasks WHERE agent_type = 'generation'")
    rest = Counter(lease.agent_type for lease in await _serve(broker, desk, workers, 50))
    assert sum(rest.values()) == 400
    await broker.stop()


@pytest.mark.slow
async def test_waiting_workers_get_equal_shares_of_equal_work(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    """Jain's index: (sum x)^2 / (n sum x^2), 1 when all are equal."""
    workers = [await ready_worker(database) for _ in range(8)]
    await submitted(database, 2000)
    counts: Counter[UUID] = Counter()

    async def work(worker_id: WorkerId) -> None:
        while sum(counts.values()) < 2000 - len(workers):
            await _next(broker, desk, worker_id)
            counts[worker_id] += 1

    await asyncio.gather(*map(work, workers))
    numbers = list(counts.values())
    assert sum(numbers) ** 2 / (len(workers) * sum(n * n for n in numbers)) >= 0.98


async def test_a_task_that_a_claim_skipped_while_locked_is_claimed_later(
    database: Database, broker: Broker, desk: LeaseService
) -> None:
    """Submitting a dependent locks it for a moment; the claim takes the next, and must come back for this one."""
    first, second = await submitted(database, 2)
    worker = await ready_worker(database)
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(depends_on=(first,))])
        assert (await _next(broker, desk, worker)).task_id == second
    started = asyncio.get_running_loop().time()
    assert (await _next(broker, desk, worker)).task_id == first
    assert asyncio.get_running_loop().time() - started < 4, "it was found by the look at everything only"


async def test_unannounced_work_is_found_by_a_scan(database: Database, broker: Broker, desk: LeaseService) -> None:
    worker = await ready_worker(database)
    ids = await submitted(database, 3)
    for _ in ids:
        await _next(broker, desk, worker)
    await submitted(database, 2)
    await execute(database, "UPDATE tasks SET tag = 0.5 WHERE seq = (SELECT max(seq) FROM tasks)")
    assert (await _next(broker, desk, worker)).tag > 0.5
    assert (await _next(broker, desk, worker)).tag == 0.5
