"""Two processes of the service share one database: each task goes to one worker, each worker has one task."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import ConvenerError, Locked
from app.kernel.ids import TaskId, WorkerId
from app.kernel.lanes import Lane
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.errors import WorkerBusy
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest, Lease
from tests.support.factories import GENERATION, completion, leased, ready_worker, submitted
from tests.support.sql import execute, fetch, until, until_blocked, value

_TASKS, _WORKERS = 200, 16
GENERATING = frozenset({AgentType.GENERATION})


@pytest.fixture
async def brokers(broker: Broker, replica: Database) -> AsyncIterator[list[Broker]]:
    other = Broker(replica, LeasePolicy())
    other.start()
    yield [broker, other]
    await other.stop()


def _call(
    worker_id: WorkerId, request_id: UUID | None = None, agents: frozenset[AgentType] = frozenset(AgentType)
) -> LeaseCall:
    return LeaseCall(worker_id=worker_id, request_id=request_id or uuid4(), agent_types=agents, acknowledge=True)


class _Work:
    """Sixteen workers, each of which asks either replica, and now and then both at once."""

    def __init__(self, brokers: list[Broker], desks: list[LeaseService]) -> None:
        self._brokers, self._desks = brokers, desks
        self.accepted: Counter[UUID] = Counter()
        self._last_results: dict[WorkerId, TaskId] = {}

    async def run(self, worker_id: WorkerId) -> None:
        while sum(self.accepted.values()) < _TASKS:
            for lease in await self._lease(worker_id):
                await random.choice(self._desks).complete(completion(worker_id, lease))
                self.accepted[lease.task_id] += 1
                self._last_results[worker_id] = lease.task_id

    async def _lease(self, worker_id: WorkerId) -> list[Lease]:
        """Both replicas, asked with one request id, may give one answer between them."""
        call = _call(worker_id)._replace(follows=self._last_results.get(worker_id))
        asked = random.sample(self._brokers, random.choice([1, 1, 2]))
        answers = await asyncio.gather(*(broker.lease(call, 0.05) for broker in asked), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ConvenerError):
                raise answer
        found = {answer.task_id: answer for answer in answers if isinstance(answer, Lease)}
        assert len(found) <= 1
        return list(found.values())


async def test_each_task_is_accepted_once_and_no_worker_ever_holds_two(
    database: Database, replica: Database, desk: LeaseService, brokers: list[Broker]
) -> None:
    workers = [await ready_worker(database) for _ in range(_WORKERS)]
    await submitted(database, _TASKS)
    work = _Work(brokers, [desk, LeaseService(replica, LeasePolicy(), FairQueue())])
    await asyncio.gather(*(work.run(worker_id) for worker_id in workers))
    assert set(work.accepted.values()) == {1}
    assert len(work.accepted) == _TASKS
    assert await value(database, "SELECT count(*) FROM tasks") == 0
    assert await value(database, "SELECT count(DISTINCT id) FROM task_history WHERE state = 'completed'") == _TASKS
    for worker_id in workers:
        await _never_held_two(database, worker_id)


async def _never_held_two(database: Database, worker_id: WorkerId) -> None:
    rows = await fetch(database, "SELECT kind, task_id FROM every_event WHERE worker_id = $1 ORDER BY seq", worker_id)
    held: set[UUID] = set()
    for row in rows:
        if row["kind"] == "task.completed":
            held.remove(row["task_id"])
        else:
            held.add(row["task_id"])
        assert len(held) <= 1


async def test_the_database_refuses_a_second_lease_of_a_worker(database: Database, replica: Database) -> None:
    """Both replicas see an idle worker at once; the unique index lets the first one win."""
    worker_id = await ready_worker(database)
    await submitted(database, 2)
    asks = [ClaimRequest(worker_id=worker_id, request_id=uuid4(), lane=GENERATION, acknowledge=False)]
    first, second = await database.connect(), await replica.connect()
    transaction = first.transaction()
    await transaction.start()
    assert (await claims.claim(first, asks, LeasePolicy()))[0].lease is not None
    other = asyncio.create_task(claims.claim(second, asks, LeasePolicy()))
    await until_blocked(database)
    await transaction.commit()
    with pytest.raises(asyncpg.UniqueViolationError):
        await other
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL") == 1
    await first.close()
    await second.close()


async def test_a_lease_that_another_replica_gave_meanwhile_counts(
    database: Database, brokers: list[Broker], desk: LeaseService
) -> None:
    """The first replica takes the worker's last lease for the one that it gave itself, which is over."""
    worker_id = await ready_worker(database)
    await submitted(database, 3)
    first = await brokers[0].lease(_call(worker_id), 5)
    assert first is not None
    await desk.complete(completion(worker_id, first))
    second = await brokers[1].lease(_call(worker_id), 5)
    assert second is not None
    following = _call(worker_id)._replace(follows=first.task_id)
    with pytest.raises(WorkerBusy):
        await brokers[0].lease(following)
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL") == 1
    await desk.complete(completion(worker_id, second))
    assert await brokers[0].lease(_call(worker_id)._replace(follows=second.task_id), 5) is not None
    assert await value(database, "SELECT array_agg(n ORDER BY n) FROM leases") == [1, 2, 3]


async def test_the_number_of_a_lease_that_a_failover_has_lost_counts_no_more(
    database: Database, brokers: list[Broker], desk: LeaseService
) -> None:
    """The first replica gave the worker a second lease by it, past the line of the one from the other replica."""
    worker_id = await ready_worker(database)
    await submitted(database, 4)
    lease = await _next_lease(brokers[0], worker_id)
    for _ in range(2):
        await desk.complete(completion(worker_id, lease))
        lease = await _next_lease(brokers[0], worker_id, lease)
    # As a standby has it that knows nothing of them.
    await execute(database, "DELETE FROM leases")
    await execute(database, "UPDATE tasks SET state = 'pending', worker_id = NULL WHERE worker_id IS NOT NULL")
    again = await _next_lease(brokers[1], worker_id)
    assert again.task_id == lease.task_id
    await desk.complete(completion(worker_id, again))
    assert await brokers[1].lease(_call(worker_id)._replace(follows=again.task_id), 5) is not None
    former = database.announcer.backend
    await execute(database, "SELECT pg_terminate_backend($1)", former)

    async def is_connected_anew() -> bool:
        return database.announcer.backend not in (None, former)

    await until(is_connected_anew)
    with pytest.raises(WorkerBusy):
        await brokers[0].lease(_call(worker_id)._replace(follows=again.task_id))
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL") == 1


async def _next_lease(broker: Broker, worker_id: WorkerId, last: Lease | None = None) -> Lease:
    lease = await broker.lease(_call(worker_id)._replace(follows=last and last.task_id), 5)
    assert lease is not None
    return lease


async def test_a_request_repeated_at_the_other_replica_gets_the_same_lease(
    database: Database, brokers: list[Broker]
) -> None:
    call = _call(await ready_worker(database))
    await submitted(database, 3)
    first, second = [await broker.lease(call, 5) for broker in brokers]
    assert first is not None
    assert second is not None
    assert second._replace(expires_at=first.expires_at) == first


async def test_a_request_repeated_at_both_replicas_at_once_gets_the_same_lease_from_each(
    database: Database, brokers: list[Broker]
) -> None:
    call = _call(await ready_worker(database))
    await submitted(database)
    first = await brokers[0].lease(call)
    assert first is not None
    again = await asyncio.gather(*(broker.lease(call) for broker in brokers))
    assert {(lease.task_id, lease.token) for lease in again if lease} == {(first.task_id, first.token)}


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_a_lease_is_not_released_by_one_replica_once_the_other_has_repeated_it(
    database: Database,
    desk: LeaseService,
    brokers: list[Broker],
    monkeypatch: pytest.MonkeyPatch,
    acknowledge: bool,
) -> None:
    worker_id, claim = await ready_worker(database), claims.claim
    is_claimed, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> Any:
        outcomes = await claim(*given)
        if not is_claimed.is_set():
            is_claimed.set()
            await may_go_on.wait()
        return outcomes

    monkeypatch.setattr(claims, "claim", slow)
    await submitted(database)
    call = _call(worker_id)._replace(acknowledge=acknowledge)
    caller = asyncio.create_task(brokers[0].lease(call, 30))
    await is_claimed.wait()
    caller.cancel()
    await asyncio.wait([caller])
    lease = await brokers[1].lease(call, 30)
    assert lease is not None
    may_go_on.set()
    await brokers[0].stop()  # which finishes releases
    await desk.complete(completion(worker_id, lease))
    assert await value(database, "SELECT count(*) FROM task_history WHERE state = 'completed'") == 1


async def test_another_request_at_the_other_replica_is_refused(database: Database, brokers: list[Broker]) -> None:
    worker_id = await ready_worker(database)
    await submitted(database, 3)
    await brokers[0].lease(_call(worker_id), 5)
    with pytest.raises(WorkerBusy):
        await brokers[1].lease(_call(worker_id), 5)


async def test_a_violation_for_one_worker_keeps_no_other_from_its_lease(
    database: Database, brokers: list[Broker]
) -> None:
    """The claim of a batch in which another replica has just served one worker is repeated for the others."""
    served, waiting = await ready_worker(database), await ready_worker(database)
    await submitted(database, 2)
    await leased(database, served)
    outcomes = await asyncio.gather(
        brokers[0].lease(_call(served)), brokers[0].lease(_call(waiting)), return_exceptions=True
    )
    assert isinstance(outcomes[0], WorkerBusy)
    assert isinstance(outcomes[1], Lease)


async def test_a_task_submitted_at_one_replica_wakes_a_worker_that_waits_at_the_other(
    database: Database, brokers: list[Broker], replica: Database
) -> None:
    waiting = asyncio.create_task(brokers[1].lease(_call(await ready_worker(database)), 30))
    while brokers[1].waiting_count == 0:
        await asyncio.sleep(0)
    task_id = (await submitted(database))[0]
    lease = await waiting
    assert lease is not None
    assert lease.task_id == task_id


@pytest.mark.parametrize("is_slow", [False, True])
async def test_tasks_that_a_failed_claim_had_locked_are_announced_to_brokers_that_skipped_them(
    database: Database, replica: Database, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    """It fails as soon as the other replica has served the same worker, or when that takes too long."""

    async def not_now(*_: object) -> None:
        """Nothing looks through the lanes."""

    monkeypatch.setattr("app.queue.broker.broker.synchronize_lanes", not_now)
    served, passing, later = [await ready_worker(database) for _ in range(3)]
    lower, _ = await submitted(database, 2)
    await submitted(database, agent_type=AgentType.RANKING)
    one, other = Broker(database, LeasePolicy()), Broker(replica, LeasePolicy())
    one.start()
    other.start()
    connection = await database.connect()
    transaction = connection.transaction()
    await transaction.start()
    ranking = Lane(agent_type=AgentType.RANKING, priority=GENERATION.priority)
    asks = [ClaimRequest(worker_id=served, request_id=uuid4(), lane=ranking, acknowledge=False)]
    assert (await claims.claim(connection, asks, LeasePolicy()))[0].lease is not None
    failing = asyncio.create_task(one.lease(_call(served, agents=GENERATING)))
    await until_blocked(database)
    assert (await other.lease(_call(passing, agents=GENERATING))) is not None

    if not is_slow:
        await transaction.commit()

    with pytest.raises(Locked if is_slow else WorkerBusy):
        await failing
    found = await other.lease(_call(later, agents=GENERATING), 20)
    assert found is not None
    assert found.task_id == lower
    if is_slow:
        await transaction.rollback()
    await one.stop()
    await other.stop()
    await connection.close()
