"""A service that has nothing to do hardly asks its database for anything, and sees soon when there is something."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from app.db import duties, hot_path
from app.db.database import Database
from app.loops.schedule import DUTIES, JOBS, Duty
from app.scaling.rules.target import ScalingPolicy
from tests.support.factories import holding, submitted
from tests.support.plans import explained, explained_database, explaining
from tests.support.runner import context, running
from tests.support.service import make_keys, serving
from tests.support.sql import execute, until, value

# Statements a second, those within functions and triggers included: a third above what they are.
_LOOPS, _API = 35, 7
_SECONDS = 10
_EXPIRED_PERMIT = """
INSERT INTO llm_permits (id, key_id, request_id, token, model, agent_type, priority, estimated_tokens, is_probe,
                         granted_at, expires_at)
VALUES (gen_random_uuid(), 'key', gen_random_uuid(), 'token', 'm', 'ranking', 2, 1, false, now(), now())
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
