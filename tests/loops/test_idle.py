"""A service that has nothing to do hardly asks its database for anything, and sees soon when there is something."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from app.db import duties, hot_path
from app.db.database import Database
from app.loops.schedule import DUTIES, JOBS, Duty
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import counters
from app.scaling.rules.target import ScalingPolicy
from tests.support.factories import holding, leased, ready_worker, submitted, turn
from tests.support.plans import explained, explained_database, explaining
from tests.support.runner import context, running
from tests.support.service import make_keys, serving
from tests.support.sql import execute, until, value
from tests.support.turns import take_turn

# Statements a second, those within functions and triggers included: a third above what they are.
_LOOPS, _API = 35, 7
_SECONDS = 10
_EXPIRED_PERMIT = """
INSERT INTO llm_permits (id, key_id, request_id, token, model, agent_type, priority, estimated_tokens, is_probe,
                         granted_at, expires_at)
VALUES (gen_random_uuid(), 'key', gen_random_uuid(), 'token', 'm', 'ranking', 2, 1, false, now(), now())
"""
_SWEEPS = {"sweep workers", "sweep leases"}
# Each has just sent a heartbeat, and holds a task.
_WORKERS = """
WITH worker AS (
    INSERT INTO workers (id, name, incarnation, state, capabilities, labels, first_beat_at, last_seen_at)
    SELECT gen_random_uuid(), 'w-' || n, 1, 'ready', '{generation}', '{}', now(), now()
    FROM generate_series(1, $1::int) AS n RETURNING id
), task AS (
    INSERT INTO tasks (id, state, agent_type, priority, payload, labels, max_attempts, retry_delays, request_hash,
                       created_at, token, worker_id, leased_at, lease_expires_at, deadline_at)
    SELECT gen_random_uuid(), 'executing', 'generation', 2, '{}', '{}', 3, '{}', '', now(), 1, id, now(),
           now() + interval '15 s', now() + interval '5 min' FROM worker RETURNING id, worker_id
)
INSERT INTO leases (worker_id, n, task_id, token, request_id) SELECT worker_id, 1, id, 1, id FROM task
"""


async def _due(database: Database) -> set[str]:
    conditions = {item.name: item.due(context(database)) for item in (*DUTIES, *JOBS) if item.due is not None}
    return set(await hot_path.run(database, lambda c: duties.look(c, conditions)))


async def test_what_is_to_be_done_is_seen(database: Database) -> None:
    never_run = {"scaling", "sweep workers"}
    assert await _due(database) == never_run
    await submitted(database, goal_id=None)
    submits = {"fold counts", "fold events", "fold performance", "fold goals", "age tasks"}
    assert await _due(database) == never_run | submits
    await holding(database)
    await submitted(database, run_at=datetime(2100, 1, 1, tzinfo=UTC), goal_id="@lab/kepler")
    assert await _due(database) == never_run | submits | {"sweep leases", "share lanes"}
    await execute(database, "UPDATE tasks SET run_at = now() WHERE run_at IS NOT NULL")
    await execute(database, "INSERT INTO parked_tasks (task_id, model) VALUES ($1, 'm')", uuid4())
    await execute(database, _EXPIRED_PERMIT)
    await execute(database, "INSERT INTO holds (goal_id, reason, is_closed) VALUES ('goal', 'paused', true)")
    await execute(
        database, "INSERT INTO llm_budgets (scope, name, money_budget, period) VALUES ('agent', 'ranking', 1, 'day')"
    )
    others = {"promote delayed tasks", "wake parked tasks", "hold tasks back", "look for strays of held goals"}
    assert await _due(database) >= others | {"tell of low budgets", "sweep permits"}


async def _sweep(database: Database) -> None:
    for duty in (duty for duty in DUTIES if duty.name in _SWEEPS):
        await _take_turn(database, duty)


async def _take_turn(database: Database, duty: Duty) -> None:
    await take_turn(database, duty.name, lambda db: duty.run(context(database), db, turn(duty.name)))


@pytest.mark.slow
async def test_a_look_reads_no_worker_and_no_lease(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """By reading all, two looks and a sweep each second went through 100,000 pages for 10,000 workers."""
    conditions = {duty.name: duty.due(context(own_database)) for duty in DUTIES if duty.due and duty.name in _SWEEPS}
    pages = {}
    async with explained_database(own_database, monkeypatch) as (database, log):
        for count in (20, 2000):
            await execute(database, "DELETE FROM tasks")
            await execute(database, "DELETE FROM workers")
            await execute(database, _WORKERS, count)
            await take_turn(database, "fold counts", counters.fold_counts)
            await execute(database, "ANALYZE")
            for _ in range(2):  # with its first one a connection also asks for the types of values
                await _sweep(database)
                log.take()
                due = await hot_path.run(database, lambda c: duties.look(c, conditions))
                pages[count] = log.take().pages
            assert due == set()
    assert 0 < pages[2000] <= pages[20] + 5


@pytest.mark.parametrize(("late_by", "is_due"), [(-1.0, False), (0.1, True)])
@pytest.mark.parametrize("column", ["lease_expires_at", "deadline_at"])
async def test_leases_are_looked_at_when_one_of_them_may_be_overdue(
    database: Database, column: str, late_by: float, is_due: bool
) -> None:
    """A deadline counts from its grace on."""
    await holding(database)
    worker, grace = await ready_worker(database), LeasePolicy().deadline_grace_seconds
    await submitted(database)
    lease = await leased(database, worker)
    left_seconds = 2 - (grace if column == "deadline_at" else 0)
    late = f"UPDATE tasks SET {column} = now() + make_interval(secs => $2) WHERE id = $1"
    await execute(database, late, lease.task_id, left_seconds)
    await _sweep(database)
    assert "sweep leases" not in await _due(database)
    # So much time goes by.
    await execute(
        database,
        """UPDATE loop_ticks SET last_run_at = last_run_at - make_interval(secs => $1), result = result
           || jsonb_build_object('none_before', (result ->> 'none_before')::timestamptz - make_interval(secs => $1))""",
        2 + late_by,
    )
    assert ("sweep leases" in await _due(database)) is is_due


async def test_a_lease_that_began_after_a_sweep_is_looked_at_before_it_can_be_overdue(database: Database) -> None:
    await holding(database)
    await _sweep(database)
    longest = LeasePolicy().acknowledge_within_seconds
    within = "SELECT (result ->> 'none_before')::timestamptz - last_run_at FROM loop_ticks WHERE duty = 'sweep leases'"
    assert await value(database, within) == timedelta(seconds=longest)


async def test_a_worker_is_looked_at_when_it_may_be_lost(database: Database) -> None:
    worker, _ = await ready_worker(database), await ready_worker(database)
    await execute(database, "UPDATE workers SET last_seen_at = now() - interval '14.5 s' WHERE id = $1", worker)
    await _sweep(database)
    assert "sweep workers" not in await _due(database)

    async def is_due() -> bool:
        return "sweep workers" in await _due(database)

    await until(is_due, within=2)
    silent = await value(database, "SELECT max(now() - last_seen_at) FROM workers")
    assert silent > timedelta(seconds=15)


@pytest.mark.parametrize("change", ["last_run_at = now() + interval '1 h'", "result = '{\"held_back\": true}'"])
async def test_sweeps_are_due_after_one_that_held_back_and_when_the_clock_was_set_back(
    database: Database, change: str
) -> None:
    await holding(database)
    await _sweep(database)
    assert not _SWEEPS & await _due(database)
    await execute(database, f"UPDATE loop_ticks SET {change}")
    assert await _due(database) >= _SWEEPS


async def test_a_decision_is_due_by_its_time_and_after_a_change_of_the_configuration(database: Database) -> None:
    content = '{"again_after_seconds": 60, "brief": {"config_version": 0}}'
    await execute(database, "INSERT INTO scaling_state (decided_at, content) VALUES (now(), $1)", content)
    assert "scaling" not in await _due(database)
    seconds = ScalingPolicy().tick_seconds
    await execute(database, f"UPDATE scaling_state SET decided_at = now() - interval '{seconds} s'")
    assert "scaling" in await _due(database)
    await execute(database, "UPDATE scaling_state SET decided_at = now()")
    await execute(
        database,
        "INSERT INTO config_versions (version, mode, document, changed_by, reason, action)"
        " VALUES (1, 'production', '{}', 'test', '', 'set')",
    )
    assert "scaling" in await _due(database)


async def test_a_duty_is_left_out_until_there_is_something_to_do(database: Database) -> None:
    turns = 0

    async def note(*_: object) -> dict[str, int]:
        nonlocal turns
        turns += 1
        return {}

    duty = Duty(
        name="idle", seconds=0.05, run=note, due=lambda _: "EXISTS (SELECT FROM parked_tasks)", idle_seconds=600
    )
    async with running(database, duty):

        async def has_run() -> bool:
            return bool(await value(database, "SELECT runs FROM loop_ticks WHERE duty = 'idle'"))

        await until(has_run)
        await asyncio.sleep(1.5)
        assert turns == 1
        await execute(database, "INSERT INTO parked_tasks (task_id, model) VALUES ($1, 'm')", uuid4())

        async def runs_again() -> bool:
            return turns > 2

        await until(runs_again)
    assert await value(database, "SELECT every_seconds FROM loop_ticks WHERE duty = 'idle'") == 600


@pytest.mark.slow
async def test_quiet_loops(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with explained_database(own_database, monkeypatch) as (database, log), running(database, *DUTIES, *JOBS):
        await asyncio.sleep(4)  # the first turn of each
        log.take()
        await asyncio.sleep(_SECONDS)
        cost = log.take()
    assert 0 < cost.statements <= _LOOPS * _SECONDS


@pytest.mark.slow
async def test_a_hundred_workers_that_wait(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await explaining(own_database, "auto")
    with explained(monkeypatch) as log:
        async with serving(own_database.url, await make_keys(own_database)) as service:
            workers = [await service.worker() for _ in range(100)]
            leases = [asyncio.create_task(worker.lease(wait_seconds=30)) for worker in workers]
            await asyncio.sleep(3)
            log.take()
            await asyncio.sleep(_SECONDS)
            cost = log.take()
            for lease in leases:
                lease.cancel()
            await asyncio.gather(*leases, return_exceptions=True)
    assert 0 < cost.statements <= _API * _SECONDS
