"""The pool between its bounds whatever happens: decisions and hosts at once, crashes between two steps, deaths."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from app.db import duties
from app.db.database import Database
from app.kernel.modes import Mode
from app.scaling.service import tick
from app.workers.rules.workers import Directive
from app.workers.service import pool
from app.workers.store import directives, hosts, roster
from app.workers.store.directives import WorkerSelector
from tests.support.factories import ready_worker, report, submitted
from tests.support.pools import arrive, bounds, crew, decided, drain, keep_up, living, passed
from tests.support.sql import execute, fetch, until_blocked, value


async def test_a_decision_and_a_host_never_fill_the_same_room(database: Database) -> None:
    """The host is about to replace two workers while a decision, not yet committed, has filled the pool up."""
    await bounds(database, 2, 8)
    workers = await crew(database, 6, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 500)
    for lost in workers[:2]:
        await pool.report_exit(database, lost, "killed")
    await passed(database, 5.0)
    async with database.transaction() as connection:
        assert await tick.tick(connection, database, Mode.PRODUCTION)
        host = asyncio.create_task(keep_up(database))
        await until_blocked(database)
    assert (await host)["started"] == 2
    assert await living(database) == 8
    slots = [row["slot"] for row in await fetch(database, "SELECT slot FROM workers WHERE state <> 'lost'")]
    assert sorted(slots) == list(range(1, 9))


async def test_a_decision_waits_for_a_host_that_replaces(database: Database) -> None:
    await bounds(database, 2, 8)
    workers = await crew(database, 6, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 500)
    for lost in workers[:2]:
        await pool.report_exit(database, lost, "killed")
    await passed(database, 5.0)
    async with database.transaction() as connection:
        done = await pool.tick(connection, Mode.PRODUCTION, report(6))
        decision = asyncio.create_task(decided(database, seconds=0.0))
        await until_blocked(database)
    assert (done["started"], (await decision)["target_workers"]) == (2, 8)
    assert await living(database) == 8


async def test_a_start_that_ends_while_a_decision_waits_for_the_pool_is_learned_once(database: Database) -> None:
    await bounds(database, 2, 8)
    await keep_up(database, 2)
    await decided(database)
    await bounds(database, 2, 9)
    async with database.transaction() as connection:
        await hosts.lock_pool(connection)
        decision = asyncio.create_task(decided(database, seconds=0.0))
        await until_blocked(database)
        await arrive(database)
    await decision
    await bounds(database, 2, 10)
    await decided(database, seconds=0.0)
    assert await value(database, "SELECT jsonb_array_length(content -> 'starts') FROM scaling_state") == 2


async def test_a_decision_and_heartbeats_never_wait_for_each_other_in_a_circle(database: Database) -> None:
    """A worker that leaves and one that stays and is assigned anew: heartbeats come in the order of their ids."""
    await bounds(database, 1, 2)
    low, high = sorted(await crew(database, 2))
    await decided(database)
    await bounds(database, 1, 1)
    # The one in the last slot leaves first.
    await execute(database, "UPDATE workers SET slot = 9 WHERE id = $1", low)
    await execute(database, "UPDATE workers SET assigned_agent = NULL WHERE id = $1", high)
    async with database.transaction() as connection:
        await roster.count(connection)
        await roster.lock(connection, [low])
        decision = asyncio.create_task(decided(database, seconds=0.0))
        await until_blocked(database)
        await roster.lock(connection, [high])
    assert (await decision)["target_workers"] == 1
    assert await value(database, "SELECT directive FROM workers WHERE id = $1", low) == "drain"


async def test_who_was_told_to_go_is_replaced_only_where_there_is_room(database: Database) -> None:
    await bounds(database, 2, 6)
    workers = await crew(database, 6)
    await decided(database)
    await drain(database, workers[:3])
    assert (await keep_up(database))["started"] == 0
    await execute(database, "UPDATE workers SET state = 'stopped', ended_at = now() WHERE id = $1", workers[0])
    assert (await keep_up(database))["started"] == 1
    assert await living(database) == 6


async def test_a_pool_at_its_maximum_is_as_large_after_a_restart_of_its_workers(database: Database) -> None:
    await bounds(database, 6, 6)
    workers = await crew(database, 6)
    await decided(database)
    async with database.transaction() as connection:
        await directives.direct(connection, WorkerSelector(ids=workers[:4]), Directive.RESTART, "a new version")
    decision = await decided(database)
    assert (decision["current_workers"], decision["target_workers"], decision["start"]) == (6, 6, 0)
    assert (await keep_up(database))["started"] == 0, "those that restart still count"
    for gone in workers[:4]:
        await pool.report_exit(database, gone, "restarts")
    assert (await keep_up(database))["started"] == 4
    assert await living(database) == 6


async def test_two_replicas_make_one_decision(database: Database, replica: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 2)
    async with database.transaction() as connection:
        await duties.ensure(connection, "scaling")
    async with database.transaction() as one, replica.transaction() as other:
        assert await duties.claim(one, "scaling", 0) is not None
        assert await tick.tick(one, database, Mode.PRODUCTION)
        assert await duties.claim(other, "scaling", 0) is None
    async with replica.transaction() as other:
        assert await duties.claim(other, "scaling", 0) is not None
        assert await tick.tick(other, replica, Mode.PRODUCTION) == {}
    assert await value(database, "SELECT count(*) FROM decisions") == 1


@pytest.mark.parametrize("step", ["decisions.write", "apply.apply_decision", "state.write"])
async def test_a_crash_at_any_step_leaves_nothing_behind(
    database: Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await bounds(database, 2, 100)
    await crew(database, 4, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 500)
    await passed(database, 5.0)
    before = await _everything(database)

    async def after(original: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        await original(*arguments, **options)
        raise KeyboardInterrupt("killed right after this step")

    module, name = step.split(".")
    original = getattr(getattr(tick, module), name)
    with monkeypatch.context() as patched:
        patched.setattr(getattr(tick, module), name, partial(after, original))
        with pytest.raises(KeyboardInterrupt):
            await _tick(database)
    assert await _everything(database) == before
    assert (await decided(database, seconds=0.0))["target_workers"] == 8


async def _tick(database: Database) -> None:
    async with database.transaction() as connection:
        await tick.tick(connection, database, Mode.PRODUCTION)


async def _everything(database: Database) -> list[Any]:
    queries = (
        "SELECT id, state, slot, assigned_agent, directive FROM workers ORDER BY id",
        "SELECT id FROM decisions ORDER BY id",
        "SELECT id FROM rosters ORDER BY id",
        "SELECT size FROM hosts",
        "SELECT decided_at FROM scaling_state",
    )
    return [[tuple(row) for row in await fetch(database, query)] for query in queries]


async def test_a_mass_death_does_not_make_the_pool_larger(database: Database) -> None:
    await bounds(database, 10, 100)
    workers = await crew(database, 10)
    await decided(database)
    for lost in workers[:8]:
        await pool.report_exit(database, lost, "killed")
    decision = await decided(database)
    assert (decision["current_workers"], decision["target_workers"], decision["start"]) == (10, 10, 0)
    assert (await keep_up(database))["started"] == 8
    assert (await decided(database))["target_workers"] == 10
    assert await living(database) == 10


async def test_slots_that_rest_are_owed_and_told_of(database: Database) -> None:
    """Their workers die young again and again: nobody else is started in their stead."""
    await bounds(database, 2, 100)
    await crew(database, 5)
    for _ in range(4):
        for row in await fetch(database, "SELECT id FROM workers WHERE state <> 'lost' AND slot > 2"):
            await pool.report_exit(database, row["id"], "crashed")
        await keep_up(database)
        await arrive(database)
    for row in await fetch(database, "SELECT id FROM workers WHERE state <> 'lost' AND slot > 2"):
        await pool.report_exit(database, row["id"], "crashed")
    assert (await keep_up(database))["started"] == 0
    decision = await decided(database)
    assert (decision["current_workers"], decision["start"]) == (5, 0)
    assert any(
        "here owes 3 workers, counted as if there; 3 slots there rest" in reason for reason in decision["reasons"]
    )
    assert await living(database) == 2


async def test_the_pool_of_a_host_that_went_away_is_refilled_elsewhere(database: Database) -> None:
    await bounds(database, 4, 100)
    await crew(database, 4)
    await keep_up(database, 1, host="there", memory_gb=100.0)
    await decided(database)
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '1 min' WHERE host = 'here'")
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now() WHERE host = 'here'")
    decision = await decided(database)
    assert (decision["current_workers"], decision["target_workers"]) == (1, 4)
    assert await value(database, "SELECT count(*) FROM workers WHERE host = 'there' AND state = 'starting'") == 4


async def test_new_workers_are_spread_over_the_hosts_by_room(database: Database) -> None:
    await bounds(database, 9, 100)
    await keep_up(database, 1, host="large", memory_gb=30.0, memory_used_gb=0.0)
    await keep_up(database, 1, host="small", memory_gb=5.0, memory_used_gb=0.0)
    await decided(database)
    rows = await fetch(database, "SELECT host, count(*) AS n FROM workers GROUP BY host")
    assert {row["host"]: row["n"] for row in rows} == {"large": 8, "small": 1}
    sizes = await fetch(database, "SELECT host, size FROM hosts")
    assert {row["host"]: row["size"] for row in sizes} == {"large": 8, "small": 1}


async def test_workers_of_others_go_where_there_are_more_than_allowed_and_for_no_other_reason(
    database: Database,
) -> None:
    """Whoever started them ends them; only the maximum holds for all, ours going first."""
    await bounds(database, 1, 100)
    ours = await crew(database, 2)
    others = [await ready_worker(database, f"lab-{number}") for number in range(4)]
    await decided(database)
    decision = await decided(database, seconds=60.0)
    assert (decision["current_workers"], decision["remove_idle"]) == (6, 2), "only ours"
    assert (await decided(database, seconds=60.0))["decision_type"] in ("maintain", "rebalance")
    await bounds(database, 1, 3)
    assert (await decided(database))["target_workers"] == 3
    leaving = await fetch(database, "SELECT id FROM workers WHERE directive = 'drain'")
    assert {row["id"] for row in leaving} >= set(ours)
    assert len({row["id"] for row in leaving} & set(others)) == 1
