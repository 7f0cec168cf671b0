"""While somebody keeps an old snapshot open nothing dead is cleaned up; no hot statement may walk over it.

Measured in pages that a statement touches, as PostgreSQL counts them: time would say the same, less reliably.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.aging import AgingPolicy
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.aging import AGE_TASKS, age_tasks
from app.queue.service.counters import FIND_OLDEST, find_oldest, oldest_since
from app.queue.service.leases import LeaseService
from app.queue.store import attempts, claims, counters, waits
from app.workers.store import workers
from tests.support.factories import GENERATION, completion, ready_worker, submitted
from tests.support.plans import explained, explaining
from tests.support.sql import execute
from tests.support.turns import take_turn

_ROUNDS = 400


async def _pages(database: Database, statement: str, *values: Any) -> int:
    """How many pages a statement touches; what it changes is undone."""
    connection = await database.connect()
    try:
        transaction = connection.transaction()
        await transaction.start()
        row = await connection.fetchrow(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *values)
        await transaction.rollback()
    finally:
        await connection.close()
    assert row is not None
    plan = json.loads(row[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def _claim_pages(database: Database, worker: WorkerId, floor: float) -> int:
    lane = [[GENERATION.agent_type.value], [GENERATION.priority.value], [floor]]
    policy = LeasePolicy()
    return await _pages(
        database,
        claims._CLAIMS[False, False, False],
        [worker],
        [uuid4()],
        *lane,
        [True],
        [None],
        policy.lease_seconds,
        policy.acknowledge_within_seconds,
        policy.avoid_seconds,
        policy.task_timeout_seconds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shop:
    """A queue at work, while another session keeps a snapshot open that is older than all of it."""

    database: Database
    broker: Broker
    desk: LeaseService
    worker: WorkerId


@pytest.fixture
async def shop(own_database: Database) -> AsyncIterator[_Shop]:
    database, broker = own_database, Broker(own_database, LeasePolicy())
    desk = LeaseService(database, LeasePolicy(), broker.fairness)
    broker.start()
    worker = await ready_worker(database)
    await submitted(database, 1000)
    old = await database.connect()
    await old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await old.fetch("SELECT count(*) FROM tasks")
    yield _Shop(database=database, broker=broker, desk=desk, worker=worker)
    await broker.stop()
    await desk.stop()
    await old.execute("ROLLBACK")
    await old.close()


async def _work_off(broker: Broker, desk: LeaseService, worker: WorkerId, count: int) -> None:
    for _ in range(count):
        call = LeaseCall(worker_id=worker, request_id=uuid4(), agent_types=frozenset(AgentType), acknowledge=True)
        lease = await broker.lease(call, 5)
        assert lease is not None
        await desk.complete(completion(worker, lease))


@pytest.mark.slow
async def test_a_claim_costs_the_same_after_many_were_finished_under_an_old_snapshot(shop: _Shop) -> None:
    database, broker, desk, worker = shop.database, shop.broker, shop.desk, shop.worker
    await _work_off(broker, desk, worker, 10)
    before = await _claim_pages(database, worker, broker._lanes.floor(GENERATION))
    await _work_off(broker, desk, worker, _ROUNDS)
    after = await _claim_pages(database, worker, broker._lanes.floor(GENERATION))
    blind = await _claim_pages(database, worker, claims.BOTTOM)
    assert after <= before + 20
    assert blind >= after + _ROUNDS // 40, "without a floor it would have walked over every dead entry"


@pytest.mark.slow
async def test_a_claim_costs_the_same_after_many_heartbeats_under_an_old_snapshot(shop: _Shop) -> None:
    """Each leaves a version of its worker's row behind, and in time an entry in the index."""
    database = shop.database
    members = [shop.worker, *[await ready_worker(database) for _ in range(7)]]
    before = await _claim_pages(database, shop.worker, claims.BOTTOM)
    connection = await database.connect()
    for number in range(_ROUNDS // 4):
        beats = [
            workers.Heartbeat(
                worker_id=member, draining=False, task_id=None, token=None, cpu_percent=number, memory_mb=1, errors=None
            )
            for member in members
        ]
        await workers.record_heartbeats(connection, beats, 15.0)
    await connection.close()
    assert await _claim_pages(database, shop.worker, claims.BOTTOM) <= before + 5


@pytest.mark.slow
async def test_the_sweep_and_the_counters_cost_the_same_too(shop: _Shop) -> None:
    database, broker, desk, worker = shop.database, shop.broker, shop.desk, shop.worker
    sweep = attempts._COUNT.text.replace(":grace", "$1::float8").replace(":since", "$2::float8")

    async def costs() -> tuple[int, int]:
        async with database.transaction() as connection:
            await counters.fold(connection)
        return await _pages(database, sweep, 10.0, 3600.0), await _pages(database, counters._READ.text)

    await _work_off(broker, desk, worker, 10)
    before = await costs()
    for _ in range(4):
        await _work_off(broker, desk, worker, _ROUNDS // 4)
        async with database.transaction() as connection:
            await counters.fold(connection)
    # What the planner knows changes whenever PostgreSQL finds the time: that tasks are few, nothing of workers.
    await execute(database, "ANALYZE tasks")
    after = await costs()
    assert after[0] <= before[0] + 20
    assert after[1] <= before[1] + 20


@pytest.mark.slow
async def test_the_oldest_task_is_found_at_the_same_cost_too(shop: _Shop) -> None:
    """Ten tasks a second were leased: of those of the last minutes no look may walk over all."""
    database, find = shop.database, waits._OLDEST.text.replace(":priorities", "$1").replace(":floors", "$2")
    await execute(database, "UPDATE tasks SET waiting_since = now() - (2000 - seq) * interval '100 ms'")

    async def cost_after(count: int) -> int:
        await _work_off(shop.broker, shop.desk, shop.worker, count)
        await take_turn(database, FIND_OLDEST, find_oldest)
        async with database.transaction() as connection:
            floors = await oldest_since(connection)
        return await _pages(database, find, [priority.value for priority in floors], list(floors.values()))

    before = await cost_after(10)
    assert await cost_after(_ROUNDS) <= before + 20


@pytest.mark.slow
async def test_aging_costs_the_same_too(shop: _Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks were leased that had waited for long, each before its deadline: no turn may walk over all of them."""
    await explaining(shop.database, "auto")
    # Connections are explained from their beginning on.
    database = Database(shop.database.url)
    change = "UPDATE loop_ticks SET result = jsonb_set(result, $2, $3) WHERE duty = $1"

    async def turn_pages() -> int:
        await take_turn(database, FIND_OLDEST, find_oldest)
        log.take()
        result = await take_turn(database, AGE_TASKS, lambda connection: age_tasks(connection, AgingPolicy()))
        assert (result["aged"], result["urgent"]) == (0, 0)
        return log.take().pages

    with explained(monkeypatch) as log:
        before = [await turn_pages() for _ in range(2)][-1]
        await execute(
            database,
            "UPDATE tasks SET deadline = now() + interval '1 min', waiting_since = now() - interval '1 h' "
            "WHERE seq IN (SELECT seq FROM tasks ORDER BY seq LIMIT $1)",
            _ROUNDS,
        )
        await _work_off(shop.broker, shop.desk, shop.worker, _ROUNDS)
        # A look at all deadlines was short until now.
        all_deadlines = await turn_pages()
        assert all_deadlines >= before + _ROUNDS // 40
        await execute(database, change, AGE_TASKS, ["deadlines", "seconds"], "1")
        # Those of the minute have come near since the last turn.
        await execute(database, "UPDATE loop_ticks SET last_run_at = now() WHERE duty = $1", AGE_TASKS)
        assert await turn_pages() <= before + 20
        await execute(database, change, AGE_TASKS, ["deadlines", "seconds_ago"], "60")
        assert await turn_pages() >= all_deadlines - 20
    await database.close()
