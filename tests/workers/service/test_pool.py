"""The managed pool: requested, started, found again after a crash, replaced, drained, and left alone."""

from typing import Any
from uuid import UUID

import pytest

from app.admin.service.access import use_to_register
from app.db.database import Database
from app.kernel.errors import Unauthenticated
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.kernel.states import WorkerState
from app.queue.rules.tasks import LeasePolicy
from app.workers.provisioners.base import Handle
from app.workers.rules.workers import Directive
from app.workers.service import directives, pool, workers
from app.workers.service.workers import Heartbeats
from app.workers.store import pool as store
from tests.support.factories import (
    beat,
    everything,
    holding,
    leased,
    order,
    ready_worker,
    registration,
    report,
    submitted,
)
from tests.support.sql import execute, fetch, value


class _Host:
    """A provisioner whose processes are numbers."""

    kind = "local"
    host = "here"

    def __init__(self) -> None:
        self.running: dict[UUID, Handle] = {}
        self.watched: set[UUID] = set()
        self.stopped: dict[UUID, float] = {}
        self.broken = False
        self.keys: dict[UUID, str] = {}

    async def start(self, worker_id: UUID, name: str, key: str) -> Handle:
        if self.broken:
            raise OSError("no more processes")
        handle = self.running.setdefault(worker_id, {"pid": len(self.running) + 1, "name": name})
        self.keys[worker_id] = key
        self.adopt(worker_id, handle)
        return handle

    def stop(self, worker_id: UUID, handle: Handle, grace_seconds: float) -> None:
        self.stopped[worker_id] = grace_seconds

    def is_running(self, handle: Handle) -> bool:
        return handle in self.running.values()

    async def find(self) -> dict[UUID, Handle]:
        return dict(self.running)

    def adopt(self, worker_id: UUID, handle: Handle) -> None:
        self.watched.add(worker_id)


@pytest.fixture
def host() -> _Host:
    return _Host()


async def _tick(database: Database, size: int, host: str = "here") -> dict[str, Any]:
    """As if the scaling loop had set the size; one host's first report says it."""
    await execute(database, "UPDATE hosts SET size = $1 WHERE host = $2", size, host)
    async with database.transaction() as connection:
        return await pool.tick(connection, Mode.PRODUCTION, report(size, host=host))


async def _pool(database: Database, host: _Host, size: int) -> list[UUID]:
    """A pool of so many workers that have registered and beaten; their ids by slot."""
    await _tick(database, size)
    await pool.provision(database, host)
    heartbeats = Heartbeats(database, LeasePolicy())
    rows = await fetch(database, "SELECT id, name FROM workers WHERE state = 'starting' ORDER BY slot")
    for row in rows:
        async with database.transaction() as connection:
            await workers.register(connection, registration(row["name"]), row["id"])
        await heartbeats.report(beat(row["id"]))
    return [row["id"] for row in rows]


async def _reconcile(database: Database, host: _Host) -> dict[str, int]:
    return await pool.reconcile(database, host, stop_grace_seconds=30)


async def _replacements(database: Database) -> list[Any]:
    return await fetch(database, "SELECT * FROM replacements ORDER BY id")


async def test_a_pool_is_filled_and_then_left_alone(database: Database, host: _Host) -> None:
    assert await _tick(database, 3) == {"members": 0, "started": 3, "drained": 0}
    assert await pool.provision(database, host) == 3
    assert await _tick(database, 3) == {"members": 3, "started": 0, "drained": 0}
    assert await pool.provision(database, host) == 0
    rows = await fetch(database, "SELECT name, slot, handle IS NOT NULL AS started FROM workers ORDER BY slot")
    assert [tuple(row) for row in rows] == [("here-1", 1, True), ("here-2", 2, True), ("here-3", 3, True)]
    assert set(host.running) == host.watched


async def test_a_launched_worker_registers_under_its_token(database: Database, host: _Host) -> None:
    worker = (await _pool(database, host, 1))[0]
    row = (await fetch(database, "SELECT * FROM workers"))[0]
    assert (row["id"], row["incarnation"], row["state"], row["slot"]) == (worker, 1, "ready", 1)


async def test_a_launched_worker_registers_once(database: Database, host: _Host) -> None:
    """Whoever lost the answer ends, and is replaced: a second answer could be somebody else's."""
    worker = (await _pool(database, host, 1))[0]
    with pytest.raises(Unauthenticated):
        async with database.transaction() as connection:
            await workers.register(connection, registration(), worker)
    assert await value(database, "SELECT count(*) FROM keys WHERE worker_id = $1", worker) == 1


async def test_each_process_gets_the_key_of_its_own_launch(database: Database, host: _Host) -> None:
    await _tick(database, 2)
    await pool.provision(database, host)
    launched = {}
    for worker_id, key in host.keys.items():
        async with database.transaction() as connection:
            launched[worker_id] = await use_to_register(connection, key.split("_")[1])
    assert launched == {worker_id: worker_id for worker_id in host.keys}
    assert len(launched) == 2


async def test_a_launched_worker_that_is_over_may_not_register(database: Database, host: _Host) -> None:
    worker = (await _pool(database, host, 1))[0]
    await pool.report_exit(database, worker, "killed")
    with pytest.raises(Unauthenticated):
        async with database.transaction() as connection:
            await workers.register(connection, registration(), worker)


async def test_the_last_error_of_a_process_is_kept_beside_those_that_it_reported(
    database: Database, host: _Host
) -> None:
    worker = (await _pool(database, host, 1))[0]
    await execute(database, 'UPDATE workers SET recent_errors = \'[{"message": "slow"}]\' WHERE id = $1', worker)
    await pool.report_exit(database, worker, "the process exited with code 2", error="ImportError: no y")
    text = "SELECT jsonb_path_query_array(recent_errors, '$[*].message')::text FROM workers WHERE id = $1"
    assert await value(database, text, worker) == '["slow", "ImportError: no y"]'


async def test_a_lost_worker_is_replaced_and_every_step_is_timed(database: Database, host: _Host) -> None:
    lost = (await _pool(database, host, 2))[0]
    await pool.report_exit(database, lost, "killed by SIGKILL")
    await pool.report_exit(database, lost, "killed by SIGKILL")
    assert (await _tick(database, 2))["started"] == 1
    successor = (await _pool(database, host, 2))[0]
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    (row,) = await _replacements(database)
    assert (row["lost_worker_id"], row["worker_id"]) == (lost, successor)
    assert (row["worker_name"], row["cause"]) == ("here-1", "killed by SIGKILL")
    steps = [row[f"{step}_at"] for step in ("detected", "requested", "started", "registered", "first_lease")]
    assert steps == sorted(steps)


async def test_the_first_lease_of_a_replacement_is_timed_once(database: Database, host: _Host) -> None:
    await pool.report_exit(database, (await _pool(database, host, 1))[0], "killed")
    successor = (await _pool(database, host, 1))[0]
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
        first = (await _replacements(database))[0]["first_lease_at"]
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    assert (await _replacements(database))[0]["first_lease_at"] == first


async def test_the_first_lease_counts_from_when_it_was_given_whoever_records_it_and_when(
    database: Database, host: _Host
) -> None:
    """The process that gave it was killed before it could record it."""
    await pool.report_exit(database, (await _pool(database, host, 1))[0], "killed")
    successor = (await _pool(database, host, 1))[0]
    await submitted(database)
    await leased(database, WorkerId(successor))
    await execute(database, "UPDATE leases SET leased_at = leased_at - interval '10 s'")
    leased_at = await value(database, "SELECT leased_at FROM leases")
    await _tick(database, 1)
    assert (await _replacements(database))[0]["first_lease_at"] == leased_at
    await execute(database, "UPDATE replacements SET first_lease_at = NULL")
    async with (await database.pool()).acquire() as hot:
        await store.record_first_leases(hot, [successor])  # type: ignore[arg-type]
    assert (await _replacements(database))[0]["first_lease_at"] == leased_at
    await execute(database, "UPDATE replacements SET first_lease_at = NULL")
    await pool.report_exit(database, successor, "killed as well")
    first, second = await _replacements(database)
    assert (first["first_lease_at"], first["closed_at"]) == (leased_at, None)
    assert (second["lost_worker_id"], second["worker_id"]) == (successor, None)


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_replacement_that_ends_before_its_first_lease_is_closed_with_the_reason(
    database: Database, host: _Host, in_order: bool
) -> None:
    await pool.report_exit(database, (await _pool(database, host, 1))[0], "killed")
    successor = (await _pool(database, host, 1))[0]
    if in_order:
        async with database.transaction() as connection:
            await workers.say_goodbye(connection, successor, "drained")
    else:
        await pool.report_exit(database, successor, "killed as well")
    record = (await _replacements(database))[0]
    assert (record["first_lease_at"], record["closed_at"] is not None) == (None, True)
    reason = "drained" if in_order else "killed as well"
    assert record["closed_reason"] == f"it ended before its first lease: {reason}"


async def test_a_worker_of_another_host_answers_no_replacement_of_this_one(database: Database, host: _Host) -> None:
    await pool.report_exit(database, (await _pool(database, host, 1))[0], "killed")
    await _tick(database, 1, host="there")
    assert (await _replacements(database))[0]["worker_id"] is None
    await _tick(database, 1)
    successor = await value(database, "SELECT id FROM workers WHERE state = 'starting' AND host = 'here'")
    assert (await _replacements(database))[0]["worker_id"] == successor


async def test_a_name_that_a_stranger_took_does_not_keep_the_pool_small(database: Database, host: _Host) -> None:
    stranger = await ready_worker(database, "here-1")
    assert (await _tick(database, 2))["started"] == 2
    assert await value(database, "SELECT state FROM workers WHERE id = $1", stranger) == "lost"


async def test_a_worker_that_said_goodbye_needs_no_replacement_record(database: Database, host: _Host) -> None:
    worker = (await _pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, worker, "drained")
    await pool.report_exit(database, worker, "the process exited with code 0")
    assert await value(database, "SELECT state FROM workers") == "stopped"
    assert await _replacements(database) == []
    assert (await _tick(database, 1))["started"] == 1


async def test_a_smaller_pool_drains_the_idle_first_and_counts_who_leaves(database: Database, host: _Host) -> None:
    first, *_ = await _pool(database, host, 3)
    _, lease = await holding(database)
    await execute(database, "UPDATE tasks SET worker_id = $1 WHERE id = $2", first, lease.task_id)
    assert (await _tick(database, 1))["drained"] == 2
    assert await value(database, "SELECT state FROM workers WHERE id = $1", first) == "ready"
    assert await _tick(database, 1) == {"members": 3, "started": 0, "drained": 0}


async def test_a_start_that_is_refused_fails_the_worker_and_no_other(database: Database, host: _Host) -> None:
    await _tick(database, 1)
    host.broken = True
    assert await pool.provision(database, host) == 1
    row = (await fetch(database, "SELECT state, ended_reason FROM workers"))[0]
    assert (row["state"], row["ended_reason"]) == ("failed", "could not be started: no more processes")
    assert (await _tick(database, 1))["started"] == 1


async def test_a_slot_whose_workers_die_young_rests(database: Database, host: _Host) -> None:
    host.broken = True
    for _ in range(3):
        await _tick(database, 2)
        await pool.provision(database, host)
    assert (await _tick(database, 2))["started"] == 0
    await execute(database, "UPDATE workers SET ended_at = ended_at - interval '2 s'")
    assert (await _tick(database, 2))["started"] == 2


async def _dies(database: Database, host: _Host, seconds_after_start: float) -> None:
    """The worker of a pool of one ends, having lived for so long."""
    (worker,) = await _pool(database, host, 1)
    born = "UPDATE workers SET first_beat_at = now() - make_interval(secs => $1) WHERE id = $2"
    await execute(database, born, seconds_after_start, worker)
    await pool.report_exit(database, worker, "killed")


async def _pass(database: Database, seconds: float) -> None:
    """So much time goes by."""
    earlier = "{0} = {0} - make_interval(secs => $1)"
    await execute(
        database, f"UPDATE workers SET {earlier.format('ended_at')}, {earlier.format('first_beat_at')}", seconds
    )


async def test_a_crash_loop_stays_slow_for_longer_than_a_minute(database: Database, host: _Host) -> None:
    for _ in range(10):
        await _dies(database, host, 1)
        await _pass(database, 31)
    await _dies(database, host, 1)
    await _pass(database, 20)
    assert (await _tick(database, 1))["started"] == 0
    assert (await _status(database)).resting[0].deaths == 11


async def test_a_worker_that_was_ready_for_a_while_clears_its_place(database: Database, host: _Host) -> None:
    for _ in range(3):
        await _dies(database, host, 1)
        await _pass(database, 3)
    await _dies(database, host, 6)
    await _dies(database, host, 1)
    assert (await _tick(database, 1))["started"] == 1


async def test_whoever_is_killed_again_and_again_is_replaced_at_once(database: Database, host: _Host) -> None:
    """They were ready, so it is no crash at the start, for which a place rests."""
    for _ in range(6):
        await _dies(database, host, 6)
    assert (await _tick(database, 1))["started"] == 1


async def _status(database: Database) -> pool.Status:
    async with database.transaction() as connection:
        return await pool.status(connection)


async def test_the_status_tells_who_is_there_and_which_places_rest(database: Database, host: _Host) -> None:
    first, _ = await _pool(database, host, 2)
    await submitted(database)
    await leased(database, WorkerId(first))
    await _tick(database, 3, host="there")
    found = await _status(database)
    assert (found.states, found.resting) == ({"busy": 1, "ready": 1, "starting": 3}, [])
    host.broken = True
    for _ in range(3):
        await _tick(database, 3)
        await pool.provision(database, host)
    (place,) = (await _status(database)).resting
    assert (place.host, place.slot, place.deaths) == ("here", 3, 3)


@pytest.mark.parametrize("directive", [Directive.STOP, Directive.RESTART])
async def test_a_worker_that_was_to_end_and_was_killed_after_its_grace_is_neither_lost_nor_crashed(
    database: Database, host: _Host, directive: Directive
) -> None:
    (worker,) = await _pool(database, host, 1)
    task_id = (await submitted(database))[0]
    await leased(database, WorkerId(worker))
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(directive, "so it is"))
    await pool.report_exit(database, worker, "the process was killed by SIGKILL")
    assert await value(database, "SELECT state FROM workers") == "stopped"
    task = await everything(database, task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("pending", 0, 0)
    assert await _replacements(database) == []
    for _ in range(3):
        assert (await _tick(database, 1))["started"] == 1
        row = (await fetch(database, "SELECT id, name, slot FROM workers WHERE state = 'starting'"))[0]
        assert (row["name"], row["slot"]) == ("here-1", 1)
        async with database.transaction() as connection:
            await directives.direct(connection, row["id"], order(directive))
        await pool.report_exit(database, row["id"], "the process was killed by SIGKILL")


async def test_a_restarted_worker_is_followed_by_another_in_its_slot_and_not_before_it_is_gone(
    database: Database, host: _Host
) -> None:
    first, second, _ = await _pool(database, host, 3)
    for worker, directive in ((second, Directive.RESTART), (first, Directive.DRAIN)):
        async with database.transaction() as connection:
            await directives.direct(connection, worker, order(directive))
    assert (await _tick(database, 3))["started"] == 1, "one drains, and there is room for another meanwhile"
    assert (await _tick(database, 3))["started"] == 0
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, first, "drained")
        await workers.say_goodbye(connection, second, "restart")
    assert (await _tick(database, 3))["started"] == 1
    rows = await fetch(database, "SELECT slot FROM workers WHERE state = 'starting' ORDER BY slot")
    assert [row["slot"] for row in rows] == [2, 4]


async def test_a_worker_that_died_while_it_was_to_drain_is_lost(database: Database, host: _Host) -> None:
    (worker,) = await _pool(database, host, 1)
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(Directive.DRAIN))
    await pool.report_exit(database, worker, "the process was killed by SIGKILL")
    assert await value(database, "SELECT state FROM workers") == "lost"
    assert len(await _replacements(database)) == 1


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


async def test_what_runs_already_is_adopted_after_a_restart(database: Database, host: _Host) -> None:
    pool = await _pool(database, host, 2)
    host.watched.clear()
    assert await _reconcile(database, host) == {"adopted": 0, "gone": 0, "ended": 0}
    assert host.watched == set(pool)


async def test_a_start_that_was_not_recorded_is_found(database: Database, host: _Host) -> None:
    """The control plane died between the start of the process and the note of its handle."""
    await _tick(database, 1)
    async with database.transaction() as connection:
        (launch,) = await store.claim_launches(connection, "local", "here")
    handle = await host.start(launch.worker_id, launch.name, "a key")
    assert await _reconcile(database, host) == {"adopted": 1, "gone": 0, "ended": 0}
    (managed,) = await _managed(database)
    assert managed.handle == handle


async def _managed(database: Database) -> list[store.ManagedWorker]:
    async with database.transaction() as connection:
        return await store.managed_workers(connection, "local", "here")


async def test_a_process_that_ended_while_nobody_looked_is_lost(database: Database, host: _Host) -> None:
    worker = (await _pool(database, host, 1))[0]
    host.running.clear()
    assert (await _reconcile(database, host))["gone"] == 1
    assert await value(database, "SELECT state FROM workers WHERE id = $1", worker) == "lost"
    assert len(await _replacements(database)) == 1


async def test_a_process_that_nobody_wants_any_more_is_ended(database: Database, host: _Host) -> None:
    worker = (await _pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await workers.lose(connection, WorkerId(worker), WorkerState.LOST, "silent")
    assert (await _reconcile(database, host))["ended"] == 1
    assert set(host.stopped) == {worker}


@pytest.mark.parametrize(("directive", "ended"), [(Directive.STOP, True), (Directive.DRAIN, False)])
async def test_a_worker_told_to_stop_is_ended_after_its_grace(
    database: Database, host: _Host, directive: Directive, *, ended: bool
) -> None:
    worker = (await _pool(database, host, 1))[0]
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(directive, "so it is"))
    await _reconcile(database, host)
    assert host.stopped == ({worker: 30} if ended else {})


async def test_a_launch_is_claimed_once(database: Database) -> None:
    await _tick(database, 2)
    async with database.transaction() as connection, database.transaction() as other:
        assert len(await store.claim_launches(connection, "local", "here")) == 2
        assert await store.claim_launches(other, "local", "here") == []


async def test_workers_of_others_are_not_of_the_pool(database: Database, host: _Host) -> None:
    await ready_worker(database)
    await _tick(database, 1, host="there")
    assert (await _tick(database, 1))["members"] == 0
    assert len(await _managed(database)) == 1


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
    assert {row["closed_reason"] for row in await _replacements(database)} == {"its host does not report any more"}
    # It comes back, and starts its workers without the former losses.
    async with database.transaction() as connection:
        assert (await pool.tick(connection, Mode.PRODUCTION, report(2, host="there")))["started"] == 2
        assert not (await pool.status(connection)).recovery.is_reduced
    assert [row["worker_id"] for row in await _replacements(database)] == [None, None]


async def test_a_replacement_that_a_smaller_pool_does_not_need_is_closed(database: Database) -> None:
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(2))
    (lost, _) = await fetch(database, "SELECT id FROM workers ORDER BY slot DESC")
    async with database.transaction() as connection:
        await workers.lose(connection, lost["id"], WorkerState.LOST, "killed")
    await execute(database, "UPDATE hosts SET size = 1")
    async with database.transaction() as connection:
        assert (await pool.tick(connection, Mode.PRODUCTION, report(2)))["started"] == 0
    (row,) = await _replacements(database)
    assert (row["worker_id"], row["closed_reason"]) == (None, "the pool has as many workers as it is to have")
