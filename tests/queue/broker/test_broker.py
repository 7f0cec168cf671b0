"""The broker: waits, repeats, refusals, order, and what happens when a caller gives up."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db import hot_path, notify
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, ShuttingDown, WorkerGone
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.kernel.states import WorkerState
from app.queue.broker import lane_view
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall, Waiter
from app.queue.broker.dispatch import IdleTimes
from app.queue.broker.waits import Waits
from app.queue.errors import WorkerBusy, WorkerNotFound, WorkerNotReady
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import tasks
from app.queue.service.leases import LeaseService
from app.queue.store import claims as store
from app.queue.store import releases
from app.workers.rules.workers import Directive
from app.workers.service import directives, workers
from tests.support.factories import completion, leased, order, ready_worker, registration, submitted
from tests.support.sql import execute, until, value
from tests.support.waiting import until_waiting


def _call(worker_id: WorkerId, *agents: AgentType, request_id: UUID | None = None) -> LeaseCall:
    return LeaseCall(
        worker_id=worker_id,
        request_id=request_id or uuid4(),
        agent_types=frozenset(agents or AgentType),
    )


async def test_a_call_without_a_wait_is_answered_at_once_when_there_is_no_work(
    database: Database, broker: Broker
) -> None:
    assert await broker.lease(_call(await ready_worker(database))) is None


async def test_a_wait_without_work_ends_with_no_lease(database: Database, broker: Broker) -> None:
    assert await broker.lease(_call(await ready_worker(database)), 0.2) is None
    assert broker.waiting_count == 0


async def test_a_task_that_is_there_is_leased_at_once(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    task_id = (await submitted(database, agent_type=AgentType.RANKING, trace_context="00-a-b-01"))[0]
    lease = await broker.lease(_call(worker_id))
    assert lease is not None
    assert (lease.task_id, lease.token, lease.attempt, lease.trace_context) == (task_id, 1, 1, "00-a-b-01")
    assert round(lease.expires_at - lease.leased_at, 6) == LeasePolicy().acknowledge_within_seconds
    assert round(lease.deadline_at - lease.leased_at, 6) == 60


async def test_a_waiting_worker_gets_the_task_that_is_submitted(database: Database, broker: Broker) -> None:
    waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await until_waiting(broker)
    task_id = (await submitted(database))[0]
    lease = await waiting
    assert lease is not None
    assert lease.task_id == task_id


async def test_a_waiting_worker_gets_unannounced_work(database: Database, broker: Broker) -> None:
    """The jittered poll stands behind every announcement."""
    await submitted(database)
    await execute(database, "UPDATE tasks SET run_at = 'infinity'")
    waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await until_waiting(broker)
    await execute(database, "UPDATE tasks SET run_at = NULL")
    assert await waiting is not None


async def test_a_waiting_worker_gets_a_task_that_was_locked_while_a_claim_went_by(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had locked it announces nothing, as after a rollback; nor is it new."""
    monkeypatch.setattr(lane_view, "_SCAN_EVERY", 1)
    worker, idle = await ready_worker(database), await ready_worker(database)
    assert await broker.lease(_call(idle)) is None

    async def scanned() -> bool:
        return broker._scanner._scan_count > 0

    # The first scan sees everything.
    await until(scanned)
    passed_id, next_id = await submitted(database, 2)
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '1 min'")
    async with database.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM tasks WHERE id = $1 FOR UPDATE", (passed_id,))
        lease = await broker.lease(_call(worker), 30)
        assert lease is not None
        assert lease.task_id == next_id
    lease = await broker.lease(_call(idle), 30)
    assert lease is not None
    assert lease.task_id == passed_id


async def test_only_the_types_that_were_asked_for(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    await submitted(database, agent_type=AgentType.RANKING)
    assert await broker.lease(_call(worker_id, AgentType.GENERATION, AgentType.PROXIMITY)) is None
    assert await broker.lease(_call(worker_id, AgentType.RANKING)) is not None


async def test_the_same_request_again_gets_the_same_lease(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    await submitted(database, 2)
    call = _call(worker_id)
    first = await broker.lease(call)
    assert first is not None
    again = await broker.lease(call, 5)
    assert again is not None
    assert again._replace(expires_at=first.expires_at) == first
    assert again.expires_at > first.expires_at, "it has as long to begin as if this were its first answer"
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'assigned'") == 1


async def test_a_request_whose_lease_ends_while_it_is_repeated_gets_another(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_id = await ready_worker(database)
    await submitted(database)
    call, lease_of_request = _call(worker_id), store.lease_of_request
    first = await broker.lease(call)
    assert first is not None

    async def late(*given: Any) -> Any:
        await hot_path.run(database, lambda c: releases.release(c, {worker_id: first}, "test"))
        return await lease_of_request(*given)

    monkeypatch.setattr(store, "lease_of_request", late)
    again = await broker.lease(call, 10)
    assert again is not None
    assert (again.task_id, again.token) == (first.task_id, 2)


async def test_another_request_of_a_busy_worker_is_refused(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    await submitted(database, 2)
    await broker.lease(_call(worker_id))
    with pytest.raises(WorkerBusy):
        await broker.lease(_call(worker_id), 5)


async def test_a_newer_call_of_a_worker_ends_its_older_one(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    older = asyncio.create_task(broker.lease(_call(worker_id), 30))
    await until_waiting(broker)
    newer = asyncio.create_task(broker.lease(_call(worker_id), 30))
    assert await older is None
    await submitted(database)
    assert await newer is not None


async def test_an_unknown_worker_gets_nothing(broker: Broker) -> None:
    with pytest.raises(WorkerNotFound):
        await broker.lease(_call(WorkerId(uuid4())), 5)


async def test_a_worker_without_a_first_heartbeat_gets_nothing(database: Database, broker: Broker) -> None:
    async with database.transaction() as connection:
        registered = await workers.register(connection, registration(), None)
    await submitted(database)
    with pytest.raises(WorkerNotReady):
        await broker.lease(_call(registered.worker_id), 5)


async def test_a_draining_worker_gets_nothing(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    await submitted(database)
    async with database.transaction() as connection:
        await directives.direct(connection, worker_id, order(Directive.DRAIN, "enough"))
    assert await broker.lease(_call(worker_id), 0.2) is None
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'pending'") == 1


@pytest.mark.parametrize("state", [WorkerState.LOST, WorkerState.STOPPED])
async def test_a_worker_that_is_over_learns_why(database: Database, broker: Broker, state: WorkerState) -> None:
    worker_id = await ready_worker(database)
    async with database.transaction() as connection:
        await workers.lose(connection, worker_id, state, "so it is")
    await submitted(database)
    with pytest.raises(WorkerGone) as refused:
        await broker.lease(_call(worker_id), 5)
    assert refused.value.reason == state


async def test_a_superseded_worker_learns_that_it_is(database: Database, broker: Broker) -> None:
    """Were it told that it is lost, it would register again and supersede its successor, and so on."""
    worker_id = await ready_worker(database, "twin")
    await ready_worker(database, "twin")
    with pytest.raises(WorkerGone) as refused:
        await broker.lease(_call(worker_id))
    assert refused.value.reason == "superseded"


async def test_priority_first_then_first_come_first_served(database: Database, broker: Broker) -> None:
    submissions = [Priority.LOW, Priority.MEDIUM, Priority.CRITICAL, Priority.MEDIUM, Priority.HIGH, Priority.LOW]
    ids = [(await submitted(database, priority=priority))[0] for priority in submissions]
    served = [await broker.lease(_call(await ready_worker(database))) for _ in ids]
    assert [lease.task_id for lease in served if lease] == [ids[i] for i in (2, 4, 1, 3, 0, 5)]


async def test_the_longest_idle_worker_is_served_first(database: Database, broker: Broker, desk: LeaseService) -> None:
    """After 5 rounds in which 8 workers wait for one task at a time, each has had 5."""
    workers = [await ready_worker(database) for _ in range(8)]
    served: Counter[WorkerId] = Counter()
    waiting = {asyncio.create_task(broker.lease(_call(worker), 30)): worker for worker in workers}
    await until_waiting(broker, len(workers))
    for _ in range(40):
        await submitted(database)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            worker, lease = waiting.pop(task), task.result()
            assert lease is not None
            served[worker] += 1
            await desk.complete(completion(worker, lease))
            waiting[asyncio.create_task(broker.lease(_call(worker), 30))] = worker
        await until_waiting(broker, len(workers))
    assert set(served.values()) == {5}
    for task in waiting:
        task.cancel()


async def test_idle_is_since_the_last_task_was_over(database: Database, broker: Broker, desk: LeaseService) -> None:
    """One that had a long task for longer, and came back a moment ago, waits behind one that has idled meanwhile."""
    busy, idle = [await ready_worker(database) for _ in range(2)]
    await submitted(database, 2)
    long_lease, short_lease = [await broker.lease(_call(worker)) for worker in (busy, idle)]
    assert long_lease is not None
    assert short_lease is not None
    await desk.complete(completion(idle, short_lease))
    assert await broker.lease(_call(idle), 0.1) is None
    await desk.complete(completion(busy, long_lease))
    latecomer = asyncio.create_task(broker.lease(_call(busy), 30))
    await until_waiting(broker)
    # Its wait has been over once, so this is the later call of the two.
    waiting = asyncio.create_task(broker.lease(_call(idle), 30))
    await until_waiting(broker, 2)
    await submitted(database)
    done, _ = await asyncio.wait([latecomer, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert done == {waiting}
    latecomer.cancel()


def test_a_wait_goes_on_over_calls_that_follow_each_other_and_ends_with_a_task() -> None:
    worker, times = WorkerId(uuid4()), IdleTimes()
    assert times.begin_call(worker, 10) == 10
    times.end_call(worker, 40)
    assert times.begin_call(worker, 41) == 10
    times.end_call(worker, 50)
    assert times.begin_call(worker, 70) == 70, "it may have had a task of another process"
    times.end_idling([worker])
    times.end_call(worker, 75)
    assert times.begin_call(worker, 76) == 76


async def test_agent_types_are_served_by_weight(database: Database) -> None:
    weights = dict.fromkeys(AgentType, 0.05) | {AgentType.GENERATION: 0.5, AgentType.RANKING: 0.25}
    broker = Broker(database, LeasePolicy(), FairQueue(weights=weights))
    broker.start()
    for agent in (AgentType.GENERATION, AgentType.RANKING):
        await submitted(database, 40, agent_type=agent)
    leases = [await broker.lease(_call(await ready_worker(database))) for _ in range(30)]
    await broker.stop()
    served = Counter(lease.agent_type for lease in leases if lease)
    assert served[AgentType.GENERATION] == pytest.approx(20, abs=2)
    assert served[AgentType.RANKING] == pytest.approx(10, abs=2)


async def test_a_caller_that_hangs_up_leaves_the_queue(database: Database, broker: Broker) -> None:
    waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await until_waiting(broker)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert broker.waiting_count == 0


async def test_a_caller_that_hangs_up_during_its_claim_takes_no_later_task(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_id = await ready_worker(database)
    looking, go_on = asyncio.Event(), asyncio.Event()
    claim = store.claim

    async def slow(*given: object) -> object:
        looking.set()
        await go_on.wait()
        return await claim(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "claim", slow)
    caller = asyncio.create_task(broker.lease(_call(worker_id), 30))
    await looking.wait()
    caller.cancel()
    await asyncio.wait([caller])
    go_on.set()
    await submitted(database)
    assert await broker.lease(_call(await ready_worker(database)), 5) is not None
    assert broker.waiting_count == 0


async def test_a_claim_whose_answer_was_lost_is_answered_all_the_same(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, calls = store.claim, 0

    async def cut_off(*given: object) -> object:
        nonlocal calls
        calls += 1
        claims = await claim(*given)  # type: ignore[arg-type]
        if calls == 1:
            raise ConnectionResetError
        return claims

    monkeypatch.setattr(store, "claim", cut_off)
    task_id = (await submitted(database))[0]
    lease = await broker.lease(_call(await ready_worker(database)), 30)
    assert lease is not None
    assert (lease.task_id, lease.token) == (task_id, 1)


async def test_without_a_database_calls_without_a_wait_fail_at_once(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_id = await ready_worker(database)
    await submitted(database)
    patient = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    assert await patient is not None
    open_pool = database.hot.open
    monkeypatch.setattr(database.hot, "open", _refuse)
    with pytest.raises(DatabaseUnavailable):
        await broker.lease(_call(worker_id))
    patient = asyncio.create_task(broker.lease(_call(worker_id), 30))
    await asyncio.sleep(0)
    monkeypatch.setattr(database.hot, "open", open_pool)
    await submitted(database)
    assert await patient is not None


async def _refuse() -> None:
    raise ConnectionRefusedError


async def test_stopping_answers_waiting_calls_and_refuses_new_ones(database: Database) -> None:
    broker = Broker(database, LeasePolicy())
    broker.start()
    waiting = [asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30)) for _ in range(3)]
    await until_waiting(broker, 3)
    await broker.stop()
    assert await asyncio.gather(*waiting) == [None] * 3
    with pytest.raises(ShuttingDown):
        await broker.lease(_call(await ready_worker(database)))


async def test_a_lost_workers_lease_is_no_obstacle_to_others(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker_id)
    waiting = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await until_waiting(broker)
    async with database.transaction() as connection:
        await workers.lose(connection, worker_id, WorkerState.LOST, "silent")
    again = await waiting
    assert again is not None
    assert (again.task_id, again.token, again.attempt) == (lease.task_id, 2, 1)


async def test_a_wait_that_ends_during_its_claim_does_not_lose_the_lease(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, has_ended = store.claim, asyncio.Event()

    async def slow(*given: Any) -> Any:
        claims = await claim(*given)
        await asyncio.sleep(0.3)
        has_ended.set()
        return claims

    monkeypatch.setattr(store, "claim", slow)
    worker_id = await ready_worker(database)
    await submitted(database)
    assert await broker.lease(_call(worker_id), 0.1) is not None
    assert has_ended.is_set(), "the wait ended meanwhile"


async def test_first_leases_are_recorded_beside_the_claims_until_it_succeeds(database: Database) -> None:
    """Whatever that waits for holds up no lease."""
    tries: list[WorkerId] = []
    go_on = asyncio.Event()

    async def slow_and_away(_: HotConnection, worker_ids: Sequence[WorkerId]) -> None:
        tries.extend(worker_ids)
        await go_on.wait()
        if len(tries) == 1:
            raise OSError

    broker = Broker(database, LeasePolicy(), on_first_leases=slow_and_away)
    broker.start()
    worker_id = await ready_worker(database)
    await submitted(database)
    assert await broker.lease(_call(worker_id), 10) is not None
    go_on.set()
    await until(lambda: _holds(tries == [worker_id] * 2))
    await broker.stop()


async def _holds(condition: bool) -> bool:
    return condition


async def test_a_lease_of_a_caller_that_hung_up_is_released_at_once(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    leasing, go_on = asyncio.Event(), asyncio.Event()
    claim = store.claim

    async def slow(*given: Any) -> Any:
        claims = await claim(*given)
        leasing.set()
        await go_on.wait()
        return claims

    monkeypatch.setattr(store, "claim", slow)
    task_id = (await submitted(database))[0]
    caller = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await leasing.wait()
    caller.cancel()
    await asyncio.wait([caller])
    go_on.set()
    lease = await broker.lease(_call(await ready_worker(database)), 30)
    assert lease is not None
    assert (lease.task_id, lease.token, lease.attempt) == (task_id, 2, 1)
    assert await value(database, "SELECT rescues FROM tasks") == 0


class _Gate:
    """Where the first claim waits, once it is committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_reached, self._opening = asyncio.Event(), asyncio.Event()
        self._claim = store.claim
        monkeypatch.setattr(store, "claim", self._pass)

    def open(self) -> None:
        self._opening.set()

    async def _pass(self, *given: Any) -> Any:
        outcomes = await self._claim(*given)
        self.is_reached.set()
        await self._opening.wait()
        return outcomes


async def _until_released(database: Database) -> None:
    async def is_released() -> bool:
        return bool(await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.released'"))

    await until(is_released)


async def _gone(caller: "asyncio.Task[Any]") -> None:
    caller.cancel()
    await asyncio.wait([caller])


@pytest.mark.parametrize("acknowledge", [False, True])
@pytest.mark.parametrize("is_same", [False, True])
async def test_a_lease_of_a_worker_that_called_twice_and_hung_up_is_released(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch, acknowledge: bool, is_same: bool
) -> None:
    worker_id, gate = await ready_worker(database), _Gate(monkeypatch)
    await submitted(database)
    calls = [_call(worker_id)._replace(acknowledge=acknowledge) for _ in range(2)]
    older = asyncio.create_task(broker.lease(calls[0], 30))
    await gate.is_reached.wait()
    newer = asyncio.create_task(broker.lease(calls[not is_same], 30))
    assert await older is None
    await _gone(newer)
    gate.open()
    lease = await broker.lease(_call(await ready_worker(database)), 10)
    assert lease is not None
    assert lease.token == 2


async def test_a_lease_of_a_worker_that_makes_another_request_is_released(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of the lease, so this must not keep it busy until that expires."""
    worker_id, gate = await ready_worker(database), _Gate(monkeypatch)
    await submitted(database)
    older = asyncio.create_task(broker.lease(_call(worker_id), 30))
    await gate.is_reached.wait()
    newer = asyncio.create_task(broker.lease(_call(worker_id), 30))
    assert await older is None
    gate.open()
    await _until_released(database)
    # It is refused where its claim was sooner than the release.
    await asyncio.wait([newer])


async def test_a_lease_goes_to_the_repetition_that_came_during_its_claim(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_id, gate = await ready_worker(database), _Gate(monkeypatch)
    await submitted(database)
    call = _call(worker_id)
    older = asyncio.create_task(broker.lease(call, 30))
    await gate.is_reached.wait()
    newer = asyncio.create_task(broker.lease(call, 30))
    assert await older is None
    gate.open()
    lease = await newer
    assert lease is not None
    assert lease.token == 1
    assert broker.waiting_count == 0


async def test_a_lease_is_released_where_its_caller_hangs_up_before_it_takes_the_answer(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, calls = broker._settle, [_call(await ready_worker(database)) for _ in range(2)]
    await submitted(database)
    caller = asyncio.create_task(broker.lease(calls[0], 30))

    def hang_up(waiter: Waiter, outcome: store.Lease | Exception | None) -> None:
        settle(waiter, outcome)
        caller.cancel()

    monkeypatch.setattr(broker, "_settle", hang_up)
    await asyncio.wait([caller])
    assert caller.cancelled()
    await _until_released(database)
    lease = await broker.lease(calls[1], 10)
    assert lease is not None
    assert lease.token == 2


async def test_a_lease_is_released_where_the_call_is_cancelled_at_its_very_end(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may have its lease before the caller had a turn to leave."""
    gate = _Gate(monkeypatch)
    await submitted(database)
    answer: asyncio.Future[store.Lease | None] = asyncio.get_running_loop().create_future()
    broker.join(_call(await ready_worker(database)), answer, may_wait=True)
    await gate.is_reached.wait()
    answer.cancel()
    gate.open()
    await _until_released(database)
    assert broker.waiting_count == 0


async def test_a_release_needs_none_of_the_connections_that_others_use(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of these in use, workers are served as ever, and leases of callers that hung up are released."""
    gone, other = await ready_worker(database), await ready_worker(database)
    gate = _Gate(monkeypatch)
    await submitted(database)
    caller = asyncio.create_task(broker.lease(_call(gone), 30))
    await gate.is_reached.wait()
    await _gone(caller)
    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(database.transaction())
        gate.open()
        lease = await broker.lease(_call(other), 10)
    assert lease is not None
    assert lease.token == 2


async def test_a_release_that_fails_is_nothing_to_others_and_is_tried_again(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, tries = releases.release, 0

    async def fail_once(*given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("as if the database had refused it")
        return await release(*given)

    monkeypatch.setattr(releases, "release", fail_once)
    gone, other = await ready_worker(database), await ready_worker(database)
    gate = _Gate(monkeypatch)
    await submitted(database, 2)
    callers = [asyncio.create_task(broker.lease(_call(worker), 30)) for worker in (gone, other)]
    await gate.is_reached.wait()
    await _gone(callers[0])
    gate.open()
    assert await callers[1] is not None
    await _until_released(database)
    assert tries == 2


async def test_what_becomes_of_a_hung_up_callers_task_is_nothing_to_others_of_its_claim(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, other = await ready_worker(database), await ready_worker(database)
    gate = _Gate(monkeypatch)
    await submitted(database, 2)
    caller, patient = [
        asyncio.create_task(broker.lease(_call(gone), 30)),
        asyncio.create_task(broker.lease(_call(other))),
    ]
    await gate.is_reached.wait()
    await _gone(caller)
    task_id = await value(database, "SELECT id FROM tasks WHERE worker_id = $1", gone)
    async with database.transaction() as connection:
        await tasks.cancel(connection, task_id, "not needed")
    gate.open()
    assert await patient is not None


async def test_leases_are_released_before_the_broker_has_stopped(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, gate = Broker(database, LeasePolicy()), _Gate(monkeypatch)
    broker.start()
    await submitted(database)
    caller = asyncio.create_task(broker.lease(_call(await ready_worker(database)), 30))
    await gate.is_reached.wait()
    await _gone(caller)
    stopping = asyncio.create_task(broker.stop())
    gate.open()
    await stopping
    assert await value(database, "SELECT state FROM tasks") == "pending"


async def test_withdrawn_calls_end_no_newer_call_of_their_worker(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    waits = Waits[str](broker, lambda *_: None, lambda: None)
    waits.close()
    newer = asyncio.create_task(broker.lease(_call(worker_id), 30))
    await until_waiting(broker)
    waits.add("late", _call(worker_id), 30)
    await submitted(database)
    assert await newer is not None


_CROWD = 20
_GPU = '{"gpus": 1}'


class _Crowd:
    """Workers of which another one calls during each claim, so that the broker has some to serve all the time."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch, calls: Sequence[LeaseCall]) -> None:
        self.claims = 0
        self.answers: list[asyncio.Future[store.Lease | None]] = []
        self._broker, self._claim, self._calls = broker, store.claim, iter(calls)
        monkeypatch.setattr(store, "claim", self._join_and_claim)

    def join(self) -> None:
        call = next(self._calls, None)
        if call is not None:
            self.answers.append(asyncio.get_running_loop().create_future())
            self._broker.join(call, self.answers[-1], may_wait=True)

    async def _join_and_claim(self, *given: Any) -> Any:
        self.claims += 1
        self.join()
        return await self._claim(*given)


@pytest.fixture(params=[None, _GPU], ids=["plain", "with resources"])
async def crowd(
    request: pytest.FixtureRequest, database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> _Crowd:
    offer = resources.parse(request.param) if request.param else None
    calls = [
        _call(await ready_worker(database), AgentType.GENERATION)._replace(offer=offer, acknowledge=True)
        for _ in range(_CROWD)
    ]
    await submitted(database, _CROWD, resources=request.param)
    return _Crowd(broker, monkeypatch, calls)


@pytest.mark.parametrize("is_draining", [False, True])
async def test_a_call_without_a_wait_is_answered_while_others_keep_coming(
    database: Database, broker: Broker, crowd: _Crowd, is_draining: bool
) -> None:
    worker_id = await ready_worker(database)
    if is_draining:
        async with database.transaction() as connection:
            await directives.direct(connection, worker_id, order(Directive.DRAIN, "enough"))
    crowd.join()
    assert await broker.lease(_call(worker_id, AgentType.RANKING)) is None
    assert crowd.claims < _CROWD // 2
    assert all(await asyncio.gather(*crowd.answers))


async def test_a_wait_that_ends_during_its_claim_is_answered_while_others_keep_coming(
    database: Database, broker: Broker, crowd: _Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = store.claim
    answer: asyncio.Future[store.Lease | None] = asyncio.get_running_loop().create_future()
    waiter = broker.join(_call(await ready_worker(database), AgentType.RANKING), answer, may_wait=True)

    async def slow(*given: Any) -> Any:
        outcomes = await claim(*given)
        if waiter.may_wait:
            assert waiter.in_flight
            broker.end_wait(waiter)
        return outcomes

    monkeypatch.setattr(store, "claim", slow)
    crowd.join()
    assert await answer is None
    assert crowd.claims < _CROWD // 2
    assert all(await asyncio.gather(*crowd.answers))


async def test_calls_without_a_wait_have_their_turn_where_a_claim_has_no_place_for_all(
    database: Database, broker: Broker
) -> None:
    ids = {*await submitted(database, 12)}
    calls = [_call(await ready_worker(database), AgentType.GENERATION) for _ in range(12)]
    leases = await asyncio.gather(*(broker.lease(call) for call in calls))
    assert {lease.task_id for lease in leases if lease} == ids


async def test_a_worker_whose_time_is_limited_gets_what_ends_in_it(database: Database, broker: Broker) -> None:
    worker_id = await ready_worker(database)
    (long,) = await submitted(database, timeout_seconds=300)
    (short,) = await submitted(database, timeout_seconds=20)
    call = _call(worker_id, AgentType.GENERATION)._replace(ends_at=datetime.now(UTC) + timedelta(seconds=60))
    lease = await broker.lease(call)
    assert lease is not None
    assert lease.task_id == short
    other = await ready_worker(database)
    unlimited = await broker.lease(_call(other, AgentType.GENERATION))
    assert unlimited is not None
    assert unlimited.task_id == long


@pytest.mark.parametrize("wait_seconds", [0, 5])
@pytest.mark.parametrize("high", [None, resources.Resources(gpus=1).text()])
async def test_a_worker_whose_time_is_limited_goes_on_to_less_urgent_tasks_of_the_agent_type(
    database: Database, broker: Broker, wait_seconds: float, high: str | None
) -> None:
    await submitted(database, priority=Priority.HIGH, timeout_seconds=300, resources=high)
    (short,) = await submitted(database, priority=Priority.LOW, timeout_seconds=20)
    call = _call(await ready_worker(database), AgentType.GENERATION)._replace(
        ends_at=datetime.now(UTC) + timedelta(seconds=60),
        offer=resources.Resources(gpus=1),
    )
    lease = await broker.lease(call, wait_seconds)
    assert lease is not None
    assert lease.task_id == short
    assert await broker.lease(call._replace(worker_id=await ready_worker(database), request_id=uuid4())) is None


@pytest.mark.parametrize("news_of", [Priority.HIGH, Priority.LOW])
async def test_news_during_its_claims_keep_no_worker_whose_time_is_limited_from_what_it_can_do(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch, news_of: Priority
) -> None:
    """By them it began anew each time, and never got to the lane that had something for it."""
    claim, news = store.claim, {notify.work(Lane(agent_type=AgentType.GENERATION, priority=news_of)): 1.0}
    lanes: list[Any] = []

    async def claim_amid_news(connection: Any, requests: Any, policy: Any) -> Any:
        lanes.extend(request.lane.priority for request in requests)
        # No more than these: a broker that goes round for ever would not let the call's time end.
        if len(lanes) < 40:
            broker._on_announcement(news)
        return await claim(connection, requests, policy)

    monkeypatch.setattr(store, "claim", claim_amid_news)
    for priority in (Priority.HIGH, Priority.MEDIUM):
        await submitted(database, priority=priority, timeout_seconds=300)
    (short,) = await submitted(database, priority=Priority.LOW, timeout_seconds=20)
    call = _call(await ready_worker(database), AgentType.GENERATION)
    lease = await broker.lease(call._replace(ends_at=datetime.now(UTC) + timedelta(seconds=60)), 5)
    assert (lease and lease.task_id, lanes[:3]) == (short, [Priority.HIGH, Priority.MEDIUM, Priority.LOW])


async def test_a_worker_for_which_nothing_fitted_tries_again_with_news_of_that_lane(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the poll, which tries all lanes again.
    monkeypatch.setattr("app.queue.broker.broker.random.uniform", lambda *_: 60.0)
    await submitted(database, timeout_seconds=300)
    call = _call(await ready_worker(database), AgentType.GENERATION)._replace(
        ends_at=datetime.now(UTC) + timedelta(seconds=60)
    )
    waiting = asyncio.create_task(broker.lease(call, 10))
    async with asyncio.timeout(5):
        while not any(waiter.unfit_lanes for waiter in broker._waiters.values()):
            await asyncio.sleep(0.01)
    (short,) = await submitted(database, timeout_seconds=5)
    lease = await waiting
    assert lease is not None
    assert lease.task_id == short


async def test_a_worker_for_which_nothing_fits_waits_for_news_and_holds_up_nobody(
    database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[int] = []
    claim = store.claim

    async def counted(connection: Any, requests: Any, policy: Any) -> Any:
        claimed.append(len(requests))
        return await claim(connection, requests, policy)

    monkeypatch.setattr(store, "claim", counted)
    await submitted(database, timeout_seconds=300)
    worker_id = await ready_worker(database)
    call = _call(worker_id, AgentType.GENERATION)._replace(ends_at=datetime.now(UTC) + timedelta(seconds=60))
    waiting = asyncio.create_task(broker.lease(call, 20))
    await asyncio.sleep(0.5)
    assert len(claimed) <= 3
    other = await ready_worker(database)
    assert await broker.lease(_call(other, AgentType.GENERATION)) is not None
    (short,) = await submitted(database, timeout_seconds=5)
    lease = await waiting
    assert lease is not None
    assert lease.task_id == short


@pytest.mark.parametrize("wait_seconds", [0, 5])
async def test_workers_that_end_at_different_times_get_tasks_of_one_lane_each_once(
    database: Database, broker: Broker, wait_seconds: float
) -> None:
    ids = {*await submitted(database, 6, timeout_seconds=5)}
    calls = [
        _call(await ready_worker(database), AgentType.GENERATION)._replace(
            ends_at=None if n % 3 == 0 else datetime.now(UTC) + timedelta(seconds=60 * (n % 3)),
        )
        for n in range(6)
    ]
    leases = await asyncio.gather(*(broker.lease(call, wait_seconds) for call in calls))
    assert {lease.task_id for lease in leases if lease} == ids
