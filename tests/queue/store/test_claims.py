"""The claim: one task for each ask, the right one, and never one that somebody else holds."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.broker.lane_view import LANES
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims as store
from app.queue.store import ready_lanes
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from tests.support.factories import GENERATION, ready_worker, submitted
from tests.support.sql import execute, value

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def hot(database: Database) -> AsyncIterator[Connection]:
    connection = await database.connect()
    yield connection
    await connection.close()


def _ask(worker: WorkerId, lane: Lane | None = GENERATION, *, acknowledge: bool = False) -> ClaimRequest:
    return ClaimRequest(worker_id=worker, request_id=uuid4(), lane=lane, acknowledge=acknowledge)


def _lane(priority: Priority) -> Lane:
    return Lane(agent_type=AgentType.GENERATION, priority=priority)


async def _workers(database: Database, count: int) -> list[WorkerId]:
    return [await ready_worker(database) for _ in range(count)]


async def _claim(hot: Connection, asks: Sequence[ClaimRequest]) -> list[ClaimOutcome]:
    return await store.claim(hot, asks, LeasePolicy())


def _tasks(claims: Sequence[ClaimOutcome]) -> list[UUID | None]:
    return [claim.lease.task_id if claim.lease else None for claim in claims]


async def test_nobody_looks_for_a_last_lease_that_is_said_to_be_over(hot: Connection, database: Database) -> None:
    worker = (await _workers(database, 1))[0]
    await submitted(database, 2)
    (first,) = await _claim(hot, [_ask(worker)])
    assert (first.lease_number, first.lease is None) == (1, False)
    # A number that is not so, and neither is it over: a look would have told.
    (second,) = await _claim(hot, [_ask(worker)._replace(last_number=41)])
    assert (second.lease_number, second.lease is None) == (42, False)
    assert await value(database, "SELECT array_agg(n ORDER BY n) FROM leases") == [1, 42]


@pytest.mark.parametrize("kinds", store._CLAIMS)
async def test_fields_stand_where_they_are_read(hot: Connection, kinds: tuple[bool, bool, bool]) -> None:
    statement, of_results = store._CLAIMS[kinds], kinds[2]
    names = [attribute.name for attribute in (await hot.prepare(statement)).get_attributes()]
    of_request = ["worker_state", "not_ready_reason", "holds_another", "is_repeat", "assigned_agent"]
    of_result = ["completed_agent", "completed_seconds"] if of_results else []
    assert names == [*of_request, *Lease._fields, *of_result, "lease_number", "turn"]
    assert len(of_request) == store._LEASE_BEGINS
    # The driver prepares longer statements anew each time.
    assert len(statement) < 15 * 1024


async def test_the_answers_are_in_the_order_of_the_asks(database: Database, hot: Connection) -> None:
    """A worker that gets nothing must not receive what is meant for the next one."""
    busy, other, draining, ready = await _workers(database, 4)
    await execute(database, "UPDATE workers SET state = 'draining' WHERE id = $1", draining)
    held, first, second = await submitted(database, 3)
    assert _tasks(await _claim(hot, [_ask(busy)])) == [held]
    unknown = WorkerId(uuid4())
    claims = await _claim(hot, [_ask(worker) for worker in (busy, unknown, other, draining, ready)])
    assert _tasks(claims) == [None, None, first, None, second]
    assert [claim.worker_state for claim in claims] == ["ready", None, "ready", "draining", "ready"]
    assert [claim.holds_another for claim in claims] == [True, False, False, False, False]


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_who_asks_first_is_served_first_where_tasks_are_few(
    database: Database, hot: Connection, plan: str
) -> None:
    await hot.execute(f"SET plan_cache_mode = {plan}")
    lanes = [_lane(priority) for priority in (Priority.MEDIUM, Priority.LOW)]
    first = await submitted(database, 3)
    second = await submitted(database, 3, priority=Priority.LOW)
    asks = [_ask(worker, lanes[place % 2]) for place, worker in enumerate(await _workers(database, 40))]
    served = _tasks(await _claim(hot, asks))
    assert (served[0:6:2], served[1:6:2]) == (first, second)
    assert set(served[6:]) == {None}


async def test_each_ask_of_a_batch_gets_another_task(database: Database, hot: Connection) -> None:
    ids = await submitted(database, 10)
    claims = await _claim(hot, [_ask(worker) for worker in await _workers(database, 12)])
    assert _tasks(claims) == [*ids, None, None]
    assert all(claim.lease.token == claim.lease.attempt == 1 for claim in claims if claim.lease)


async def test_priority_goes_first_and_then_age(database: Database, hot: Connection) -> None:
    wanted = {priority: await submitted(database, 3, priority=priority) for priority in Priority}
    workers = await _workers(database, 12)
    claims = [
        claim
        for turn, priority in enumerate(sorted(Priority, reverse=True))
        for claim in await _claim(hot, [_ask(w, _lane(priority)) for w in workers[3 * turn : 3 * turn + 3]])
    ]
    order = [Priority.CRITICAL, Priority.HIGH, Priority.MEDIUM, Priority.LOW]
    assert _tasks(claims) == [task_id for priority in order for task_id in wanted[priority]]


async def test_each_ask_is_served_from_its_own_type(database: Database, hot: Connection) -> None:
    first, second = await submitted(database, 2, agent_type=AgentType.RANKING)
    third = (await submitted(database, agent_type=AgentType.EVOLUTION))[0]
    ranking, evolution, proximity = (
        Lane(agent_type=agent, priority=Priority.MEDIUM)
        for agent in (AgentType.RANKING, AgentType.EVOLUTION, AgentType.PROXIMITY)
    )
    types = [ranking, evolution, None, proximity, ranking, evolution]
    claims = await _claim(hot, [_ask(w, t) for w, t in zip(await _workers(database, 6), types, strict=True)])
    assert _tasks(claims) == [first, third, None, None, second, None]


async def test_what_another_transaction_is_claiming_is_passed_over_without_waiting(
    database: Database, hot: Connection
) -> None:
    ids = await submitted(database, 6)
    one, other = await ready_worker(database), await ready_worker(database)
    transaction = hot.transaction()
    await transaction.start()
    assert _tasks(await _claim(hot, [_ask(one)])) == [ids[0]]
    second = await database.connect()
    assert _tasks(await _claim(second, [_ask(other)])) == [ids[1]]
    await second.close()
    await transaction.rollback()
    assert _tasks(await _claim(hot, [_ask(one)])) == [ids[0]]


async def test_a_delayed_task_is_not_claimed(database: Database, hot: Connection) -> None:
    delayed, due = await submitted(database, 2)
    await execute(database, "UPDATE tasks SET run_at = now() - interval '1 s' WHERE id = $1", delayed)
    assert _tasks(await _claim(hot, [_ask(w) for w in await _workers(database, 2)])) == [due, None]


@pytest.mark.parametrize("state", ["starting", "draining", "stopped", "lost", "failed"])
async def test_only_ready_workers_are_served(database: Database, hot: Connection, state: str) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    await execute(database, "UPDATE workers SET state = $1", state)
    claim = (await _claim(hot, [_ask(worker)]))[0]
    assert (claim.worker_state, claim.lease) == (state, None)


@pytest.mark.parametrize("acknowledge", [False, True])
async def test_a_lease_that_is_not_acknowledged_lives_shorter(
    database: Database, hot: Connection, *, acknowledge: bool
) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    policy = LeasePolicy(lease_seconds=40, acknowledge_within_seconds=7)
    lease = (await store.claim(hot, [_ask(worker, acknowledge=acknowledge)], policy))[0].lease
    assert lease is not None
    assert round(lease.expires_at - lease.leased_at, 6) == (40 if acknowledge else 7)
    state = await hot.fetchval("SELECT state FROM tasks")
    assert state == ("executing" if acknowledge else "assigned")


async def test_a_worker_holds_one_lease_whatever_the_code_does(database: Database, hot: Connection) -> None:
    """The n-th lease of a worker exists once, and the claim gives it only when the one before is over."""
    worker = await ready_worker(database)
    await submitted(database, 2)
    first = (await _claim(hot, [_ask(worker)]))[0]
    second = (await _claim(hot, [_ask(worker)]))[0]
    assert first.lease is not None
    assert (second.lease, second.holds_another) == (None, True)
    with pytest.raises(asyncpg.UniqueViolationError):
        await hot.execute("INSERT INTO leases SELECT worker_id, n, task_id, token, request_id FROM leases")
    with pytest.raises(asyncpg.CheckViolationError):
        await hot.execute("UPDATE tasks SET worker_id = NULL")
    with pytest.raises(asyncpg.CheckViolationError):
        await hot.execute("UPDATE tasks SET state = 'completed'")


async def test_a_claim_begins_where_it_is_told(database: Database, hot: Connection) -> None:
    """What lies below are the dead entries of former heads; whoever frees a task there must announce it."""
    ids = await submitted(database, 3)
    tags = [row["tag"] for row in await hot.fetch("SELECT tag FROM tasks ORDER BY seq")]
    one, other = await _workers(database, 2)
    above = ClaimRequest(worker_id=one, request_id=uuid4(), lane=GENERATION, acknowledge=False, floor=tags[1])
    found = (await _claim(hot, [above]))[0].lease
    assert found is not None
    assert (found.task_id, found.tag) == (ids[1], tags[1])
    assert _tasks(await _claim(hot, [_ask(other)])) == [ids[0]]


async def test_a_look_finds_the_heads_of_lanes_that_may_run_now(database: Database, hot: Connection) -> None:
    assert await ready_lanes.find(hot, LANES) == {}
    await submitted(database, agent_type=AgentType.RANKING)
    await execute(database, "UPDATE tasks SET run_at = now() + interval '1 hour'")
    await submitted(database, 2, agent_type=AgentType.EVOLUTION, priority=Priority.HIGH)
    lane = Lane(agent_type=AgentType.EVOLUTION, priority=Priority.HIGH)
    head, second = [row["tag"] for row in await hot.fetch("SELECT tag FROM tasks WHERE run_at IS NULL ORDER BY seq")]
    assert await ready_lanes.find(hot, LANES) == {lane: head}
    assert await ready_lanes.find(hot, {lane: second}) == {lane: second}
    await execute(database, "INSERT INTO pauses (agent_type, reason, paused_by) VALUES ('evolution', 'test', 'me')")
    assert await ready_lanes.find(hot, LANES) == {}
    assert _tasks(await _claim(hot, [_ask(await ready_worker(database), lane)])) == [None]


async def test_another_worker_is_preferred_for_a_retry(database: Database, hot: Connection) -> None:
    (task_id,) = await submitted(database)
    failed, other = await _workers(database, 2)
    await execute(database, "UPDATE tasks SET avoid_worker_id = $1", failed)
    assert _tasks(await _claim(hot, [_ask(failed)])) == [None]
    assert _tasks(await _claim(hot, [_ask(failed), _ask(other)])) == [None, task_id]


async def test_a_worker_that_is_alone_gets_its_failed_task_again_after_a_while(
    database: Database, hot: Connection
) -> None:
    (task_id,) = await submitted(database)
    failed = await ready_worker(database)
    await execute(database, "UPDATE tasks SET avoid_worker_id = $1, waiting_since = now() - interval '6 s'", failed)
    assert _tasks(await _claim(hot, [_ask(failed)])) == [task_id]
