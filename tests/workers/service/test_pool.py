"""The managed pool: requested, started, found again after a crash, replaced, drained, and left alone."""

import json
from uuid import UUID

import psutil
import pytest

from app.admin.service.access import use_to_register
from app.db.database import Database
from app.kernel.errors import Unauthenticated
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.workers.provisioners.base import Handle
from app.workers.rules.workers import Directive
from app.workers.service import directives, pool, workers
from app.workers.store import pool as store
from tests.support.factories import (
    everything,
    leased,
    order,
    ready_worker,
    registration,
    submitted,
)
from tests.support.sql import execute, fetch, value
from tests.workers.service.host_pool import Host, replacements, start_pool, tick


async def _reconcile(database: Database, host: Host) -> dict[str, int]:
    return await pool.reconcile(database, host, stop_grace_seconds=30)


async def test_a_pool_is_filled_and_then_left_alone(database: Database, host: Host) -> None:
    assert await tick(database, 3) == {"members": 0, "started": 3, "drained": 0}
    assert await pool.provision(database, host) == 3
    assert await tick(database, 3) == {"members": 3, "started": 0, "drained": 0}
    assert await pool.provision(database, host) == 0
    rows = await fetch(database, "SELECT name, slot, handle IS NOT NULL AS started FROM workers ORDER BY slot")
    assert [tuple(row) for row in rows] == [("here-1", 1, True), ("here-2", 2, True), ("here-3", 3, True)]
    assert set(host.running) == host.watched


async def test_a_launched_worker_registers_under_its_token(database: Database, host: Host) -> None:
    worker = (await start_pool(database, host, 1))[0]
    row = (await fetch(database, "SELECT * FROM workers"))[0]
    assert (row["id"], row["incarnation"], row["state"], row["slot"]) == (worker, 1, "ready", 1)


async def test_a_launched_worker_registers_once(database: Database, host: Host) -> None:
    """Whoever lost the answer ends, and is replaced: a second answer could be somebody else's."""
    worker = (await start_pool(database, host, 1))[0]
    with pytest.raises(Unauthenticated):
        async with database.transaction() as connection:
            await workers.register(connection, registration(), worker)
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id = $1", worker) == 1


async def test_each_process_gets_the_key_of_its_own_launch(database: Database, host: Host) -> None:
    await tick(database, 2)
    await pool.provision(database, host)
    launched = {}
    for worker_id, key in host.keys.items():
        async with database.transaction() as connection:
            launched[worker_id] = await use_to_register(connection, key.split("_")[1])
    assert launched == {worker_id: worker_id for worker_id in host.keys}
    assert len(launched) == 2


async def test_a_launched_worker_that_is_over_may_not_register(database: Database, host: Host) -> None:
    worker = (await start_pool(database, host, 1))[0]
    await pool.report_exit(database, worker, "killed")
    with pytest.raises(Unauthenticated):
        async with database.transaction() as connection:
            await workers.register(connection, registration(), worker)


async def test_the_last_error_of_a_process_is_kept_beside_those_that_it_reported(
    database: Database, host: Host
) -> None:
    worker = (await start_pool(database, host, 1))[0]
    await execute(database, 'UPDATE workers SET recent_errors = \'[{"message": "slow"}]\' WHERE id = $1', worker)
    await pool.report_exit(database, worker, "the process exited with code 2", error="ImportError: no y")
    text = "SELECT jsonb_path_query_array(recent_errors, '$[*].message')::text FROM workers WHERE id = $1"
    assert await value(database, text, worker) == '["slow", "ImportError: no y"]'


async def test_a_start_that_is_refused_fails_the_worker_and_no_other(database: Database, host: Host) -> None:
    await tick(database, 1)
    host.broken = True
    assert await pool.provision(database, host) == 1
    row = (await fetch(database, "SELECT state, ended_reason FROM workers"))[0]
    assert (row["state"], row["ended_reason"]) == ("failed", "could not be started: no more processes")
    assert (await tick(database, 1))["started"] == 1


async def test_a_process_that_cannot_be_looked_at_keeps_no_other_from_its_start(
    database: Database, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = host.start

    async def start_or_lose(worker_id: UUID, name: str, key: str) -> Handle:
        if name == "here-1":
            raise psutil.NoSuchProcess(4711)
        return await start(worker_id, name, key)

    monkeypatch.setattr(host, "start", start_or_lose)
    await tick(database, 3)
    assert await pool.provision(database, host) == 3
    rows = await fetch(database, "SELECT state, handle IS NOT NULL AS started FROM workers ORDER BY slot")
    assert [tuple(row) for row in rows] == [("failed", False), ("starting", True), ("starting", True)]


async def test_a_slot_whose_workers_die_young_rests(database: Database, host: Host) -> None:
    host.broken = True
    for _ in range(3):
        await tick(database, 2)
        await pool.provision(database, host)
    assert (await tick(database, 2))["started"] == 0
    await execute(database, "UPDATE workers SET ended_at = ended_at - interval '2 s'")
    assert (await tick(database, 2))["started"] == 2


async def _dies(database: Database, host: Host, seconds_after_start: float) -> None:
    """The worker of a pool of one ends, having lived for so long."""
    (worker,) = await start_pool(database, host, 1)
    born = "UPDATE workers SET first_beat_at = now() - make_interval(secs => $1) WHERE id = $2"
    await execute(database, born, seconds_after_start, worker)
    await pool.report_exit(database, worker, "killed")


async def _pass(database: Database, seconds: float) -> None:
    """So much time goes by."""
    earlier = "{0} = {0} - make_interval(secs => $1)"
    await execute(
        database, f"UPDATE workers SET {earlier.format('ended_at')}, {earlier.format('first_beat_at')}", seconds
    )


async def test_a_crash_loop_stays_slow_for_longer_than_a_minute(database: Database, host: Host) -> None:
    for _ in range(10):
        await _dies(database, host, 1)
        await _pass(database, 31)
    await _dies(database, host, 1)
    await _pass(database, 20)
    assert (await tick(database, 1))["started"] == 0
    assert (await _status(database)).resting[0].deaths == 11


async def test_a_worker_that_was_ready_for_a_while_clears_its_place(database: Database, host: Host) -> None:
    for _ in range(3):
        await _dies(database, host, 1)
        await _pass(database, 3)
    await _dies(database, host, 6)
    await _dies(database, host, 1)
    assert (await tick(database, 1))["started"] == 1


async def test_whoever_is_killed_again_and_again_is_replaced_at_once(database: Database, host: Host) -> None:
    """They were ready, so it is no crash at the start, for which a place rests."""
    for _ in range(6):
        await _dies(database, host, 6)
    assert (await tick(database, 1))["started"] == 1


async def _status(database: Database) -> pool.Status:
    async with database.transaction() as connection:
        return await pool.status(connection)


async def test_the_status_tells_who_is_there_and_which_places_rest(database: Database, host: Host) -> None:
    first, _ = await start_pool(database, host, 2)
    await submitted(database)
    await leased(database, WorkerId(first))
    await tick(database, 3, host="there")
    found = await _status(database)
    assert (found.states, found.resting) == ({"busy": 1, "ready": 1, "starting": 3}, [])
    host.broken = True
    for _ in range(3):
        await tick(database, 3)
        await pool.provision(database, host)
    (place,) = (await _status(database)).resting
    assert (place.host, place.slot, place.deaths) == ("here", 3, 3)


@pytest.mark.parametrize("directive", [Directive.STOP, Directive.RESTART])
async def test_a_worker_that_was_to_end_and_was_killed_after_its_grace_is_neither_lost_nor_crashed(
    database: Database, host: Host, directive: Directive
) -> None:
    (worker,) = await start_pool(database, host, 1)
    task_id = (await submitted(database))[0]
    await leased(database, WorkerId(worker))
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(directive, "so it is"))
    await pool.report_exit(database, worker, "the process was killed by SIGKILL")
    assert await value(database, "SELECT state FROM workers") == "stopped"
    task = await everything(database, task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("pending", 0, 0)
    assert await replacements(database) == []
    for _ in range(3):
        assert (await tick(database, 1))["started"] == 1
        row = (await fetch(database, "SELECT id, name, slot FROM workers WHERE state = 'starting'"))[0]
        assert (row["name"], row["slot"]) == ("here-1", 1)
        async with database.transaction() as connection:
            await directives.direct(connection, row["id"], order(directive))
        await pool.report_exit(database, row["id"], "the process was killed by SIGKILL")


async def test_a_restarted_worker_is_followed_by_another_in_its_slot_and_not_before_it_is_gone(
    database: Database, host: Host
) -> None:
    first, second, _ = await start_pool(database, host, 3)
    for worker, directive in ((second, Directive.RESTART), (first, Directive.DRAIN)):
        async with database.transaction() as connection:
            await directives.direct(connection, worker, order(directive))
    assert (await tick(database, 3))["started"] == 1, "one drains, and there is room for another meanwhile"
    assert (await tick(database, 3))["started"] == 0
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, first, "drained")
        await workers.say_goodbye(connection, second, "restart")
    assert (await tick(database, 3))["started"] == 1
    rows = await fetch(database, "SELECT slot FROM workers WHERE state = 'starting' ORDER BY slot")
    assert [row["slot"] for row in rows] == [2, 4]


async def test_a_worker_that_died_while_it_was_to_drain_is_lost(database: Database, host: Host) -> None:
    (worker,) = await start_pool(database, host, 1)
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(Directive.DRAIN))
    await pool.report_exit(database, worker, "the process was killed by SIGKILL")
    assert await value(database, "SELECT state FROM workers") == "lost"
    assert len(await replacements(database)) == 1


async def test_what_runs_already_is_adopted_after_a_restart(database: Database, host: Host) -> None:
    pool = await start_pool(database, host, 2)
    host.watched.clear()
    assert await _reconcile(database, host) == {"adopted": 0, "gone": 0, "ended": 0, "foreign": 0}
    assert host.watched == set(pool)


async def test_a_start_that_was_not_recorded_is_found(database: Database, host: Host) -> None:
    """The control plane died between the start of the process and the note of its handle."""
    await tick(database, 1)
    async with database.transaction() as connection:
        (launch,) = await store.claim_launches(connection, "local", "here")
    handle = await host.start(launch.worker_id, launch.name, "a key")
    assert await _reconcile(database, host) == {"adopted": 1, "gone": 0, "ended": 0, "foreign": 0}
    (managed,) = await _managed(database)
    assert managed.handle == handle


async def _managed(database: Database) -> list[store.ManagedWorker]:
    async with database.transaction() as connection:
        return await store.managed_workers(connection, "local", "here")


async def test_a_process_that_ended_while_nobody_looked_is_lost(database: Database, host: Host) -> None:
    worker = (await start_pool(database, host, 1))[0]
    host.running.clear()
    assert (await _reconcile(database, host))["gone"] == 1
    assert await value(database, "SELECT state FROM workers WHERE id = $1", worker) == "lost"
    assert len(await replacements(database)) == 1


async def test_two_machines_of_one_name_leave_the_workers_of_each_other_alone(database: Database, host: Host) -> None:
    """Neither sees the processes of the other, so it can tell nothing of them."""
    twin = Host("theirs")
    pool_of_host = await start_pool(database, host, 3)
    async with database.transaction() as connection:
        await directives.direct(connection, pool_of_host[0], order(Directive.STOP))
    for _ in range(2):
        assert await _reconcile(database, twin) == {"adopted": 0, "gone": 0, "ended": 0, "foreign": 3}
        assert await _reconcile(database, host) == {"adopted": 0, "gone": 0, "ended": 0, "foreign": 0}
    assert await value(database, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == 3
    assert (set(host.stopped), twin.stopped, twin.watched) == ({pool_of_host[0]}, {}, set())
    assert (len(twin.heard_seconds_ago), host.heard_seconds_ago) == (6, [])
    assert all(seconds is not None and seconds < 60 for seconds in twin.heard_seconds_ago)


async def test_several_machines_of_one_name_are_told_of(database: Database, host: Host) -> None:
    """Once their workers have been there beside each other; those of before a restart have not."""
    await start_pool(database, host, 1)
    await start_pool(database, host, 2)
    former, new = "ours", "theirs"
    for slot, table in ((1, former), (2, new)):
        await execute(
            database, "UPDATE workers SET handle = handle || $1 WHERE slot = $2", json.dumps({"table": table}), slot
        )
    await execute(database, "UPDATE workers SET registered_at = now() - interval '1 min' * (3 - slot)")
    told = []
    for minutes in (2, 1, 0):
        await execute(
            database, "UPDATE workers SET last_seen_at = now() - make_interval(mins => $1) WHERE slot = 1", minutes
        )
        async with database.transaction() as connection:
            told.append((await pool.recovery(connection)).reason)
    assert told == ["", "", "several machines keep the pool of host here as if they were one"]


async def test_silence_counts_once_it_is_longer_than_it_may_be(database: Database, host: Host) -> None:
    (worker,) = await start_pool(database, host, 1)
    silences = []
    for seconds in (10, 3600):
        await execute(
            database,
            "UPDATE workers SET lost_after_seconds = 15, last_seen_at = now() - make_interval(secs => $1)",
            float(seconds),
        )
        silences.append((await _managed(database))[0].silent_seconds)
    assert silences == [0, pytest.approx(3600, abs=60)]
    await execute(database, "UPDATE workers SET lost_after_seconds = NULL WHERE id = $1", worker)
    assert (await _managed(database))[0].silent_seconds == 0


async def test_a_process_that_nobody_wants_any_more_is_ended(database: Database, host: Host) -> None:
    worker = (await start_pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await workers.lose(connection, WorkerId(worker), WorkerState.LOST, "silent")
    assert (await _reconcile(database, host))["ended"] == 1
    assert set(host.stopped) == {worker}


@pytest.mark.parametrize(("directive", "ended"), [(Directive.STOP, True), (Directive.DRAIN, False)])
async def test_a_worker_told_to_stop_is_ended_after_its_grace(
    database: Database, host: Host, directive: Directive, *, ended: bool
) -> None:
    worker = (await start_pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(directive, "so it is"))
    await _reconcile(database, host)
    assert host.stopped == ({worker: 30} if ended else {})


async def test_a_launch_is_claimed_once(database: Database) -> None:
    await tick(database, 2)
    async with database.transaction() as connection, database.transaction() as other:
        assert len(await store.claim_launches(connection, "local", "here")) == 2
        assert await store.claim_launches(other, "local", "here") == []


async def test_workers_of_others_are_not_of_the_pool(database: Database, host: Host) -> None:
    await ready_worker(database)
    await tick(database, 1, host="there")
    assert (await tick(database, 1))["members"] == 0
    assert len(await _managed(database)) == 1
