"""A row of a large batch costs a statement no more than one of a small batch, whatever the planner knows."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.broker.lane_view import LANES
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.holds import Hold
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import direct_submits
from app.queue.service.admission import Admission
from app.queue.service.submits import SubmitService
from app.queue.service.tasks import Intake
from app.queue.store import (
    aging,
    cancel,
    claims,
    completions,
    counters,
    dead_letters,
    dependencies,
    holds,
    parking,
    ready_lanes,
    sharing,
    tasks,
)
from app.queue.store.claims import ClaimRequest
from app.queue.store.completions import Renewal
from app.queue.store.dependencies import Edge
from app.queue.store.listing import Selection
from app.workers.store import workers as worker_store
from tests.conftest import new_database, run_on
from tests.support.factories import GENERATION, beat, completion, submission, submitted
from tests.support.plans import Cost, Costs, PlanLog, explained, explaining
from tests.support.sql import execute, fetch

pytestmark = pytest.mark.slow
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_BATCHES = (8, 64, 512)
_TASKS, _WORKERS = 20_000, 512
_FILL = f"""
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at, tag)
SELECT gen_random_uuid(), 'pending', (ARRAY['generation', 'ranking', 'evolution'])[1 + n % 3], 2, '{{}}', '{{}}',
       60, 3, '{{}}', '', now(), n
FROM generate_series(1, {_TASKS}) AS n
"""
_ENLIST = f"""
INSERT INTO workers (id, name, incarnation, state, host, pid, capabilities, labels, version, memory_gb, cpu_cores,
                     started_at, registered_at)
SELECT id, 'w-' || id, 1, 'ready', 'test', n, ARRAY['generation'], '{{}}', '0', 1, 1, now(), now()
FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, {_WORKERS}) AS n) each
RETURNING id
"""
_FOR_GOAL = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at, tag, goal_id, deadline)
SELECT gen_random_uuid(), 'pending', 'ranking', 1, '{}', '{}', 60, 3, '{}', '', now(), n, 'goal', now()
FROM generate_series(1, $1) AS n
"""
_FOR_GOALS = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at, tag, goal_id)
SELECT gen_random_uuid(), 'pending', 'reflection', 2, '{}', '{}', 60, 3, '{}', '', now(), $1, $3 || n % 50
FROM generate_series(1, $2) AS n
"""
_PAUSED = """
INSERT INTO holds (goal_id, reason, is_swept) SELECT 'paused' || n, 'paused', true FROM generate_series(1, $1) AS n
ON CONFLICT DO NOTHING
"""
_CLOSED = "INSERT INTO holds (goal_id, reason) SELECT 'closed' || n, 'paused' FROM generate_series(0, 49) AS n"
_FAILED = """
INSERT INTO task_history (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                          request_hash, created_at, seq, token, failures, rescues, error, finished_at)
SELECT gen_random_uuid(), 'failed', 'ranking', 1, '{}', '{}', 60, 3, '{}', '', now(), n, 3, 3, 0,
       '{"code": "bug", "message": ""}', now()
FROM generate_series(1, $1) AS n
"""
_PARKED = """
WITH delayed AS (
    UPDATE tasks SET run_at = now() + interval '1 hour' WHERE id IN (
        SELECT id FROM tasks WHERE state = 'pending' AND run_at IS NULL LIMIT $1) RETURNING id, token
)
INSERT INTO parked_tasks (task_id, model, token) SELECT id, 'model', token FROM delayed
"""


@pytest.fixture(scope="module", params=["never analysed", "analysed when empty", "analysed"])
def statistics(request: pytest.FixtureRequest) -> str:
    """The planner knows nothing, something that was true once, or the truth."""
    return str(request.param)


@pytest.fixture(scope="module", params=["force_custom_plan", "force_generic_plan"])
async def full(
    server_url: str, template: str, statistics: str, request: pytest.FixtureRequest
) -> AsyncIterator[Database]:
    """A full queue and many workers, on a server that explains what it does."""
    async with new_database(server_url, template) as url:
        database = Database(url)
        await execute(database, "ALTER TABLE tasks SET (autovacuum_enabled = off)")
        if statistics == "analysed when empty":
            await run_on(database.url, "ANALYZE")
        await run_on(database.url, _FILL)  # without the limit of a hot statement
        await run_on(database.url, _ENLIST)
        if statistics == "analysed":
            await run_on(database.url, "ANALYZE")
        await explaining(database, request.param)
        await database.close()
        database = Database(database.url)
        yield database
        await database.close()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlanLog]:
    with explained(monkeypatch) as log:
        yield log


@pytest.fixture
async def hot(full: Database, log: PlanLog) -> AsyncIterator[Connection]:
    connection = await full.connect()
    yield connection
    await connection.close()


async def test_a_cycle(full: Database, hot: Connection, log: PlanLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.queue.service.admission._FRESH_DEPTH_SECONDS", 60.0)
    monkeypatch.setattr("app.queue.store.lanes._FRESH_SECONDS", 60.0)
    costs, policy = Costs(log), LeasePolicy()
    capacity = CapacityPolicy(max_queue_size=1_000_000, quotas=dict.fromkeys(Priority, 1.0))
    intake = Intake(admission=Admission(capacity))
    workers = [WorkerId(row["id"]) for row in await fetch(full, "SELECT id FROM workers")]
    for batch in (min(_BATCHES), *_BATCHES):
        with costs.of("submit", batch):
            await submitted(full, batch, goal_id=None)
        wanted = [submission() for _ in range(batch)]
        await SubmitService(full, intake).submit(wanted[0])  # after which the others need no look
        with costs.of("direct submit", batch):
            assert await direct_submits.submit(full, wanted, intake)
        keyed = [submission(idempotency_key=str(uuid4())) for _ in range(batch)]
        with costs.of("direct submit of keys", batch):
            assert all(await direct_submits.submit_each(full, keyed, intake))
        asks = [ClaimRequest(worker_id=w, request_id=uuid4(), lane=GENERATION, acknowledge=True) for w in workers]
        with costs.of("claim", batch):
            outcomes = await claims.claim(hot, asks[:batch], policy)
        leases = [(ask.worker_id, outcome.lease) for ask, outcome in zip(asks, outcomes, strict=False) if outcome.lease]
        assert len(leases) == batch
        handed_in = [
            ask._replace(request_id=uuid4(), completion=completion(ask.worker_id, lease))
            for ask, (_, lease) in zip(asks, leases, strict=False)
        ]
        with costs.of("claim with results", batch):
            outcomes = await claims.claim(hot, handed_in, policy)
        assert sum(outcome.service is not None for outcome in outcomes) == batch
        leases = [(ask.worker_id, outcome.lease) for ask, outcome in zip(asks, outcomes, strict=False) if outcome.lease]
        assert len(leases) == batch
        renewals = [Renewal(task_id=lease.task_id, token=lease.token, worker_id=worker) for worker, lease in leases]
        with costs.of("renewal", batch):
            assert len(await completions.renew(hot, renewals, policy)) == batch
        beats = [beat(worker, task_id=lease.task_id, token=lease.token) for worker, lease in leases]
        with costs.of("heartbeat", batch):
            assert len(await worker_store.record_heartbeats(hot, beats, policy.lease_seconds)) == batch
        results = [completion(worker, lease) for worker, lease in leases]
        with costs.of("completion", batch):
            assert len(await completions.complete(hot, results)) == batch
        async with full.transaction() as connection:
            with costs.of("fold", batch):
                assert await counters.fold(connection)
    costs.check()


async def test_tasks_at_work_cost_a_claim_nothing(full: Database, hot: Connection, log: PlanLog) -> None:
    """They stay in the index of the claims, below the floor that the broker knows."""
    workers = [WorkerId(row["id"]) for row in await fetch(full, "SELECT id FROM workers ORDER BY id")]
    lane = Lane(agent_type=AgentType.EVOLUTION, priority=Priority.MEDIUM)
    rows, floor = [], claims.BOTTOM
    for begin, end in ((0, 8), (8, 240), (240, 248)):
        asks = [
            ClaimRequest(worker_id=worker, request_id=uuid4(), lane=lane, acknowledge=True, floor=floor)
            for worker in workers[begin:end]
        ]
        log.take()
        outcomes = await claims.claim(hot, asks, LeasePolicy())
        rows.append(log.take().rows)
        floor = max(outcome.lease.tag for outcome in outcomes if outcome.lease)
    assert rows[2] <= 1.2 * rows[0]
    await execute(full, "DELETE FROM tasks WHERE worker_id IS NOT NULL")
    await execute(full, "DELETE FROM leases")


async def test_what_became_ready_is_not_compared_with_each_lane(full: Database, hot: Connection, log: PlanLog) -> None:
    """A minute of submits may be many tasks, and there are as many lanes as types and priorities."""
    count = (await fetch(full, "SELECT count(*) AS n FROM tasks"))[0]["n"]
    for floors in ({lane: lane.ceiling for lane in LANES}, {lane: lane.bottom for lane in LANES}):
        await ready_lanes.find_below(hot, floors, datetime(2026, 1, 1, tzinfo=UTC))
        log.take()
        await ready_lanes.find_below(hot, floors, datetime(2026, 1, 1, tzinfo=UTC))
        assert log.take().rows <= 4 * count


async def test_what_happens_to_many_tasks_at_once(full: Database, log: PlanLog) -> None:
    costs, selection = Costs(log), Selection(goal_id="goal")
    for batch in (min(_BATCHES), *_BATCHES):
        async with full.transaction() as connection:
            await execute(full, _FOR_GOAL, batch)
            with costs.of("ageing", batch):
                assert (await aging.age(connection, Priority.LOW, timedelta(0), None, batch)).tasks == batch
            with costs.of("near deadlines", batch):
                assert await aging.expedite(connection, timedelta(hours=1), None, batch) == batch
            await holds.close(connection, "goal", Hold.PAUSED)
            hold = await holds.lock_next(connection)
            assert hold is not None
            with costs.of("holding a goal", batch):
                assert await holds.sweep(connection, hold, batch) == batch
            await holds.reopen(connection, "goal", Hold.PAUSED)
            hold = await holds.lock_next(connection)
            assert hold is not None
            with costs.of("reopening a goal", batch):
                assert await holds.bring_back(connection, hold, batch) == batch
            ids = await cancel.find(connection, selection, batch)
            with costs.of("cancelling", batch):
                assert (await cancel.cancel(connection, ids, selection, "test")).selected_tasks == batch
    costs.check()


async def test_what_is_waited_for(full: Database, hot: Connection, log: PlanLog) -> None:
    costs = Costs(log)
    for batch in (min(_BATCHES), *_BATCHES):
        first, second = await submitted(full, batch, goal_id=None), await submitted(full, batch, goal_id=None)
        await execute(full, "UPDATE tasks SET state = 'blocked', blockers = 1 WHERE id = ANY ($1)", second)
        async with full.transaction() as connection:
            with costs.of("marking", batch):
                assert len(await dependencies.mark(connection, first)) == batch
            with costs.of("connecting", batch):
                edges = [Edge(task_id=task, depends_on=other) for task, other in zip(second, first, strict=True)]
                await dependencies.connect(connection, edges)
        # What only reads is explained when its transaction ends.
        with costs.of("locking what waits", batch):
            async with full.transaction() as connection:
                assert await dependencies.lock_waiting(connection, first)
        async with hot.transaction():
            with costs.of("unblocking", batch):
                assert await dependencies.unblock(hot, first)
        async with full.transaction() as connection:
            await execute(full, _PARKED, batch)
            with costs.of("waking", batch):
                assert await parking.wake_all(connection, ["model"], batch) == batch
            with costs.of("promoting", batch):
                assert await tasks.promote(connection, batch) == batch
            with costs.of("sharing", batch):
                assert await sharing.move(connection, dict.fromkeys(first, 0.5)) == batch
    costs.check()


async def test_dead_letters(full: Database, log: PlanLog) -> None:
    costs, selection = Costs(log), Selection()
    for batch in (min(_BATCHES), *_BATCHES):
        async with full.transaction() as connection:
            for call in ("requeueing", "purging"):
                await execute(full, _FAILED, batch)
                letters = await dead_letters.find(connection, selection, batch)
                with costs.of(call, batch):
                    done = dead_letters.requeue if call == "requeueing" else dead_letters.purge
                    assert await done(connection, letters, "test") == batch
    costs.check()


async def test_paused_goals_cost_a_claim_no_more_the_more_they_are(
    full: Database, hot: Connection, log: PlanLog, statistics: str
) -> None:
    """A look at two pages of an index for each task that it leases, if any; none for one that is not set aside yet.

    Where none of 5000 goals is swept, it reads the pages of their holds once.
    """
    batches, rounds = (min(_BATCHES), *_BATCHES), 5
    transaction, tags = hot.transaction(), count(1.0)
    await transaction.start()
    workers = iter([row["id"] for _ in range(2 * rounds) for row in await hot.fetch(_ENLIST)])
    for tag, batch in enumerate(batches * rounds, 1):
        await hot.execute(_FOR_GOALS, float(tag), batch, "goal")

    async def claim_costs(unswept_tasks: int = 0) -> dict[int, Cost]:
        """Of workers and tasks without a past, which would count too."""
        costs, lane = {}, Lane(agent_type=AgentType.REFLECTION, priority=Priority.MEDIUM)
        for batch in batches:
            tag = next(tags)
            await hot.execute(_FOR_GOALS, tag - 0.5, unswept_tasks, "closed")
            asks = [
                ClaimRequest(worker_id=worker, request_id=uuid4(), lane=lane, acknowledge=True, floor=tag - 0.5)
                for worker in islice(workers, batch)
            ]
            log.take()
            outcomes = await claims.claim(hot, asks, LeasePolicy())
            costs[batch] = log.take()
            assert all(outcome.lease for outcome in outcomes)
        return costs

    await claim_costs()
    costs_by_goals = {}
    for goals in (0, 50, 5000):
        await hot.execute(_PAUSED, goals)
        if statistics == "analysed":
            await hot.execute("ANALYZE holds")
        costs_by_goals[goals] = await claim_costs()
    await hot.execute(_CLOSED)
    await hot.execute("UPDATE holds SET is_swept = false")
    unswept = await claim_costs(2000)
    await transaction.rollback()
    for batch, cost in costs_by_goals[0].items():
        for costs in costs_by_goals[50], costs_by_goals[5000]:
            assert costs[batch].rows <= cost.rows + 4, batch
            # One more for the ledger of leases, which has grown meanwhile.
            assert costs[batch].pages <= cost.pages + 3 * batch + 24, batch
        assert unswept[batch].pages <= costs_by_goals[5000][batch].pages + 1000, batch
