"""Replacements of lost workers: each step is timed, and its record closed with a reason."""

import pytest

from app.db.database import Database, now
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.workers.service import pool, workers
from app.workers.store import pool as store
from tests.support.factories import (
    holding,
    leased,
    ready_worker,
    report,
    submitted,
)
from tests.support.sql import execute, fetch, value
from tests.workers.service.host_pool import Host, replacements, start_pool, tick


async def test_a_lost_worker_is_replaced_and_every_step_is_timed(database: Database, host: Host) -> None:
    lost = (await start_pool(database, host, 2))[0]
    await pool.report_exit(database, lost, "killed by SIGKILL")
    await pool.report_exit(database, lost, "killed by SIGKILL")
    assert (await tick(database, 2))["started"] == 1
    successor = (await start_pool(database, host, 2))[0]
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    (row,) = await replacements(database)
    assert (row["lost_worker_id"], row["worker_id"]) == (lost, successor)
    assert (row["worker_name"], row["cause"]) == ("here-1", "killed by SIGKILL")
    steps = [row[f"{step}_at"] for step in ("detected", "requested", "started", "registered", "first_lease")]
    assert steps == sorted(steps)


async def test_steps_are_in_order_though_the_transactions_of_two_loops_are_not(database: Database, host: Host) -> None:
    """One waits for the other, which finds the loss, and has begun before it."""
    lost, other = await start_pool(database, host, 2)
    async with database.transaction() as connection:
        await now(connection)
        await pool.report_exit(database, lost, "killed")
        await store.fill_replacement(connection, other, slot=1, name="here-1")
        await store.record_registration(connection, other)
    (row,) = await replacements(database)
    assert row["detected_at"] <= row["requested_at"] <= row["registered_at"]


async def test_the_first_lease_of_a_replacement_is_timed_once(database: Database, host: Host) -> None:
    await pool.report_exit(database, (await start_pool(database, host, 1))[0], "killed")
    successor = (await start_pool(database, host, 1))[0]
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
        first = (await replacements(database))[0]["first_lease_at"]
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    assert (await replacements(database))[0]["first_lease_at"] == first


async def test_the_first_lease_counts_from_when_it_was_given_whoever_records_it_and_when(
    database: Database, host: Host
) -> None:
    """The process that gave it was killed before it could record it."""
    await pool.report_exit(database, (await start_pool(database, host, 1))[0], "killed")
    successor = (await start_pool(database, host, 1))[0]
    await submitted(database)
    await leased(database, WorkerId(successor))
    await execute(database, "UPDATE leases SET leased_at = leased_at - interval '10 s'")
    leased_at = await value(database, "SELECT leased_at FROM leases")
    await tick(database, 1)
    assert (await replacements(database))[0]["first_lease_at"] == leased_at
    await execute(database, "UPDATE replacements SET first_lease_at = NULL")
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    assert (await replacements(database))[0]["first_lease_at"] == leased_at
    await execute(database, "UPDATE replacements SET first_lease_at = NULL")
    await pool.report_exit(database, successor, "killed as well")
    first, second = await replacements(database)
    assert (first["first_lease_at"], first["closed_at"]) == (leased_at, None)
    assert (second["lost_worker_id"], second["worker_id"]) == (successor, None)


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_replacement_that_ends_before_its_first_lease_is_closed_with_the_reason(
    database: Database, host: Host, in_order: bool
) -> None:
    await pool.report_exit(database, (await start_pool(database, host, 1))[0], "killed")
    successor = (await start_pool(database, host, 1))[0]
    if in_order:
        async with database.transaction() as connection:
            await workers.say_goodbye(connection, successor, "drained")
    else:
        await pool.report_exit(database, successor, "killed as well")
    record = (await replacements(database))[0]
    assert (record["first_lease_at"], record["closed_at"] is not None) == (None, True)
    reason = "drained" if in_order else "killed as well"
    assert record["closed_reason"] == f"it ended before its first lease: {reason}"


async def test_a_worker_of_another_host_answers_no_replacement_of_this_one(database: Database, host: Host) -> None:
    await pool.report_exit(database, (await start_pool(database, host, 1))[0], "killed")
    await tick(database, 1, host="there")
    assert (await replacements(database))[0]["worker_id"] is None
    await tick(database, 1)
    successor = await value(database, "SELECT id FROM workers WHERE state = 'starting' AND host = 'here'")
    assert (await replacements(database))[0]["worker_id"] == successor


async def test_a_name_that_a_stranger_took_does_not_keep_the_pool_small(database: Database, host: Host) -> None:
    stranger = await ready_worker(database, "here-1")
    assert (await tick(database, 2))["started"] == 2
    assert await value(database, "SELECT state FROM workers WHERE id = $1", stranger) == "lost"


async def test_a_worker_that_said_goodbye_needs_no_replacement_record(database: Database, host: Host) -> None:
    worker = (await start_pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, worker, "drained")
    await pool.report_exit(database, worker, "the process exited with code 0")
    assert await value(database, "SELECT state FROM workers") == "stopped"
    assert await replacements(database) == []
    assert (await tick(database, 1))["started"] == 1


async def test_a_smaller_pool_drains_the_idle_first_and_counts_who_leaves(database: Database, host: Host) -> None:
    first, *_ = await start_pool(database, host, 3)
    _, lease = await holding(database)
    await execute(database, "UPDATE tasks SET worker_id = $1 WHERE id = $2", first, lease.task_id)
    assert (await tick(database, 1))["drained"] == 2
    assert await value(database, "SELECT state FROM workers WHERE id = $1", first) == "ready"
    assert await tick(database, 1) == {"members": 3, "started": 0, "drained": 0}


async def test_the_times_of_replacements_are_summed_up(database: Database) -> None:
    async with database.transaction() as connection:
        nothing = await store.replacement_times(connection, (0.5, 0.99))
    assert (nothing.replacements, nothing.since, nothing.steps["requested"]) == (0, None, None)
    await execute(
        database,
        """INSERT INTO replacements
            (lost_worker_id, slot, worker_name, cause, detected_at, requested_at, first_lease_at)
        SELECT gen_random_uuid(), n, 'w', 'killed', now(), now() + make_interval(secs => n),
               CASE WHEN n <= 50 THEN now() + make_interval(secs => 10 * n) END
        FROM generate_series(1, 101) AS n""",
    )
    async with database.transaction() as connection:
        found = await store.replacement_times(connection, (0.5, 0.99))
        latest = await store.replacement_times(connection, (0.5,), newest=11)
    assert (found.replacements, found.working, found.steps["requested"]) == (101, 50, [51, 100])
    assert found.steps["started"] is None
    assert found.steps["first_lease"] == pytest.approx([255, 495.1])
    assert (latest.replacements, latest.steps["requested"]) == (11, [96])


async def test_a_host_that_is_gone_is_told_of_and_its_replacements_are_given_up(database: Database) -> None:
    """Its workers fall silent with it; nobody else can start what was to be started there."""
    for name in ("here", "there"):
        async with database.transaction() as connection:
            await pool.tick(connection, Mode.PRODUCTION, report(2, host=name))
    for row in await fetch(database, "SELECT id, name FROM workers WHERE host = 'there'"):
        async with database.transaction() as connection:
            await workers.lose(connection, row["id"], WorkerState.LOST, "silent for 15 s")
    await execute(database, "UPDATE replacements SET detected_at = now() - interval '61 s'")
    async with database.transaction() as connection:
        assert await store.close_replacements_on_gone_hosts(connection) == 0, "the host reports"
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '61 s' WHERE host = 'there'")
    async with database.transaction() as connection:
        assert await store.close_replacements_on_gone_hosts(connection) == 2
        state = await pool.status(connection)
    assert (state.recovery.is_reduced, state.recovery.silent_hosts, state.recovery.lost_share) == (True, ["there"], 0.5)
    assert "there has not reported for 61 s, and was to keep 2 workers" in state.recovery.reason
    assert {row["closed_reason"] for row in await replacements(database)} == {"its host does not report any more"}
    # It comes back, and starts its workers without the former losses.
    async with database.transaction() as connection:
        assert (await pool.tick(connection, Mode.PRODUCTION, report(2, host="there")))["started"] == 2
        assert not (await pool.status(connection)).recovery.is_reduced
    assert [row["worker_id"] for row in await replacements(database)] == [None, None]


async def test_a_replacement_that_a_smaller_pool_does_not_need_is_closed(database: Database) -> None:
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(2))
    (lost, _) = await fetch(database, "SELECT id FROM workers ORDER BY slot DESC")
    async with database.transaction() as connection:
        await workers.lose(connection, lost["id"], WorkerState.LOST, "killed")
    await execute(database, "UPDATE hosts SET size = 1")
    async with database.transaction() as connection:
        assert (await pool.tick(connection, Mode.PRODUCTION, report(2)))["started"] == 0
    (row,) = await replacements(database)
    assert (row["worker_id"], row["closed_reason"]) == (None, "the pool has as many workers as it is to have")
