"""Workers: registered, seen, told what to do, drained, superseded and lost."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.errors import Unauthenticated, WorkerGone
from app.kernel.events import WorkerEvent
from app.kernel.states import WorkerState
from app.queue.errors import WorkerNotFound
from app.workers.rules.assignment import UNDECIDED
from app.workers.rules.hosts import Host
from app.workers.rules.workers import TRANSITIONS, Directive
from app.workers.service import directives, roster, workers
from app.workers.service.workers import Heartbeats
from tests.support.factories import (
    beat,
    everything,
    holding,
    leased,
    order,
    ready_worker,
    registration,
    submitted,
)
from tests.support.sql import execute, fetch, until_blocked, value
from tests.workers.service.registered import lose_worker, register_worker, sweep, worker_state

_NOT_READY = WorkerEvent.NOT_READY.value
_EXPIRY = "SELECT date_part('epoch', lease_expires_at) FROM tasks"


async def test_a_worker_is_starting_until_its_first_heartbeat(database: Database, heartbeats: Heartbeats) -> None:
    worker = (await register_worker(database)).worker_id
    assert await worker_state(database, worker) == "starting"
    assert (await heartbeats.report(beat(worker))).state is WorkerState.READY
    assert await worker_state(database, worker) == "ready"


_TERABYTES = 60 * 1024.0**2


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"not_ready_reason": "the handlers cannot load"}, "the handlers cannot load"),
        ({"memory_mb": _TERABYTES}, "62914560 MB of memory in use, and it registered with 1 GB"),
        ({"cpu_percent": 6_000_000.0}, "6000000 % of a core in use, and it registered with 1 cores"),
    ],
)
async def test_a_report_that_does_not_pass_leaves_a_worker_starting(
    database: Database, heartbeats: Heartbeats, report: dict[str, Any], reason: str
) -> None:
    worker = (await register_worker(database, memory_gb=1, cpu_cores=1)).worker_id
    for _ in range(2):
        reply = await heartbeats.report(beat(worker, **report))
        assert reply.state is WorkerState.STARTING
        assert reason in str(reply.not_ready_reason)
    row = (await fetch(database, "SELECT * FROM workers"))[0]
    assert (row["state"], row["first_beat_at"]) == ("starting", None)
    assert reason in row["not_ready_reason"]
    told = await fetch(
        database, "SELECT worker_id, detail ->> 'reason' AS reason FROM every_event WHERE kind = $1", _NOT_READY
    )
    assert [(event["worker_id"], event["reason"]) for event in told] == [(worker, row["not_ready_reason"])]
    reply = await heartbeats.report(beat(worker))
    assert (reply.state, reply.not_ready_reason) == (WorkerState.READY, None)
    assert await value(database, "SELECT not_ready_reason IS NULL AND first_beat_at IS NOT NULL FROM workers")


async def test_who_is_ready_stays_so_whatever_it_reports(database: Database, heartbeats: Heartbeats) -> None:
    """Only the first report is a check; a handler may use more than its worker for a moment."""
    worker = await ready_worker(database)
    for report in ({"not_ready_reason": "now it cannot"}, {"memory_mb": _TERABYTES}):
        reply = await heartbeats.report(beat(worker, **report))
        assert (reply.state, reply.not_ready_reason) == (WorkerState.READY, None)
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = $1", _NOT_READY) == 0


async def test_a_small_worker_may_need_more_for_itself_than_it_offers(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker = (await register_worker(database, memory_gb=0.05, cpu_cores=0.1)).worker_id
    reply = await heartbeats.report(beat(worker, memory_mb=90.0, cpu_percent=101.0))
    assert reply.state is WorkerState.READY


async def test_a_worker_that_is_never_ready_has_failed_for_its_reason(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker = (await register_worker(database)).worker_id
    await heartbeats.report(beat(worker, not_ready_reason="the handlers cannot load"))
    await execute(database, "UPDATE workers SET requested_at = now() - interval '31 s'")
    await ready_worker(database)
    assert await sweep(database) == {"lost": 1}
    assert await worker_state(database, worker) == "failed"
    reason = await value(database, "SELECT ended_reason FROM workers WHERE id = $1", worker)
    assert reason == "not ready within 30 s: the handlers cannot load"


async def test_a_heartbeat_is_recorded(database: Database, heartbeats: Heartbeats) -> None:
    worker = await ready_worker(database)
    await heartbeats.report(beat(worker, cpu_percent=12.5, memory_mb=300.0, errors='[{"message":"ouch"}]'))
    await heartbeats.report(beat(worker, cpu_percent=50.0))
    row = (await fetch(database, "SELECT *, now() - last_seen_at < '10 s' AS fresh FROM workers"))[0]
    assert (row["cpu_percent"], row["memory_mb"], row["fresh"]) == (50.0, 1.0, True)
    assert row["recent_errors"] == '[{"message": "ouch"}]'


async def test_a_heartbeat_renews_the_lease_that_it_names(database: Database, heartbeats: Heartbeats) -> None:
    worker, lease = await holding(database)
    await execute(database, "UPDATE tasks SET lease_expires_at = now() + interval '1 s'")
    pulse = await heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token))
    renewed = await value(database, "SELECT lease_expires_at FROM tasks")
    assert (pulse.lease_state, pulse.lease_expires_at) == ("executing", renewed)
    assert await value(database, "SELECT lease_expires_at - now() > interval '10 s' FROM tasks")


async def test_a_heartbeat_that_names_no_lease_renews_none(database: Database, heartbeats: Heartbeats) -> None:
    worker, lease = await holding(database)
    await heartbeats.report(beat(worker))
    assert await value(database, _EXPIRY) == lease.expires_at


async def test_a_lease_that_was_not_acknowledged_is_not_renewed(database: Database, heartbeats: Heartbeats) -> None:
    """Else a lost answer would block its task for as long as the worker beats."""
    worker = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker, acknowledge=False)
    pulse = await heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token))
    assert (pulse.lease_state, pulse.lease_expires_at.timestamp()) == ("assigned", lease.expires_at)


@pytest.mark.parametrize("which", ["token", "worker"])
async def test_a_heartbeat_renews_nothing_that_is_not_its_own(
    database: Database, heartbeats: Heartbeats, which: str
) -> None:
    worker, lease = await holding(database)
    named = {"task_id": lease.task_id, "token": lease.token + (which == "token")}
    pulse = await heartbeats.report(beat(await ready_worker(database) if which == "worker" else worker, **named))
    assert (pulse.lease_state, pulse.lease_expires_at) == (None, None)
    assert await value(database, _EXPIRY) == lease.expires_at


async def test_a_directive_waits_for_the_heartbeat(database: Database, heartbeats: Heartbeats) -> None:
    worker = await ready_worker(database)
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(Directive.STOP, "maintenance"))
    assert await worker_state(database, worker) == "draining"
    pulse = await heartbeats.report(beat(worker))
    assert (pulse.state, pulse.directive, pulse.directive_reason) == (WorkerState.DRAINING, "stop", "maintenance")


async def test_a_worker_told_to_leave_before_its_first_heartbeat_is_never_ready(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker = (await register_worker(database)).worker_id
    async with database.transaction() as connection:
        await directives.direct(connection, worker, order(Directive.DRAIN, "enough"))
    assert (await heartbeats.report(beat(worker))).state is WorkerState.DRAINING


async def test_a_worker_that_drains_by_itself_says_so(database: Database, heartbeats: Heartbeats) -> None:
    worker = await ready_worker(database)
    assert (await heartbeats.report(beat(worker, draining=True))).state is WorkerState.DRAINING
    assert (await heartbeats.report(beat(worker))).state is WorkerState.DRAINING


async def test_heartbeats_make_no_illegal_move(database: Database, heartbeats: Heartbeats) -> None:
    for state in WorkerState:
        for draining in (False, True):
            worker = await ready_worker(database)
            await execute(database, "UPDATE workers SET state = $2 WHERE id = $1", worker, state.value)
            try:
                after = (await heartbeats.report(beat(worker, draining=draining))).state
            except WorkerGone:
                after = WorkerState(await worker_state(database, worker))
            assert after == state or after in TRANSITIONS[state]


async def test_a_lost_worker_that_beats_again_learns_that_it_is_lost(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker = await ready_worker(database)
    await lose_worker(database, worker)
    with pytest.raises(WorkerGone) as refused:
        await heartbeats.report(beat(worker))
    assert refused.value.reason == "lost"
    with pytest.raises(WorkerNotFound):
        await heartbeats.report(beat(uuid4()))


async def test_a_reused_name_is_a_new_incarnation_and_takes_the_lease_away(
    database: Database, heartbeats: Heartbeats
) -> None:
    former = await register_worker(database, "twin")
    await heartbeats.report(beat(former.worker_id))
    await submitted(database)
    lease = await leased(database, former.worker_id)
    latter = await register_worker(database, "twin")
    assert (former.incarnation, latter.incarnation) == (1, 2)
    assert former.key != latter.key
    task = await everything(database, lease.task_id)
    assert (task["state"], task["rescues"], task["failures"]) == ("pending", 1, 0)
    with pytest.raises(WorkerGone) as refused:
        await heartbeats.report(beat(former.worker_id, task_id=lease.task_id, token=lease.token))
    assert refused.value.reason == "superseded"


async def test_a_name_whose_worker_is_over_is_still_a_new_incarnation(database: Database) -> None:
    first = await register_worker(database, "again")
    await lose_worker(database, first.worker_id)
    assert (await register_worker(database, "again")).incarnation == 2


@pytest.mark.parametrize(("seconds_left", "step"), [(7200.0, 15), (601.0, 15), (599.0, 1), (3.2, 1)])
async def test_workers_of_one_job_have_ends_in_common_which_are_not_too_late(
    database: Database, seconds_left: float, step: int
) -> None:
    before = datetime.now(UTC).timestamp()
    ids = [(await register_worker(database, seconds_left=seconds_left - n / 8)).worker_id for n in range(8)]
    ends = [
        float(await value(database, "SELECT extract(epoch FROM ends_at)::float8 FROM workers WHERE id = $1", worker_id))
        for worker_id in ids
    ]
    after = datetime.now(UTC).timestamp()
    assert {end % step for end in ends} == {0}
    assert len(set(ends)) <= 2 + (1 + after - before) / step
    assert all(before + seconds_left - 1 - step <= end <= after + seconds_left for end in ends)


async def test_a_launch_that_nobody_requested_is_refused(database: Database) -> None:
    with pytest.raises(Unauthenticated):
        async with database.transaction() as connection:
            await workers.register(connection, registration(), uuid4())


async def test_goodbye_releases_what_is_held_without_burning_anything(database: Database) -> None:
    worker, lease = await holding(database)
    for _ in range(2):
        async with database.transaction() as connection:
            await workers.say_goodbye(connection, worker, "drained")
    assert await worker_state(database, worker) == "stopped"
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("pending", 0, 0)
    assert [a["outcome"] for a in task["attempts"]] == ["released"]


async def test_a_request_waits_for_a_registration_of_the_same_name_and_supersedes_it(database: Database) -> None:
    sizes: dict[str, Any] = {"size": 1, "usual_size": 1, "memory_gb": 8, "memory_used_gb": 1, "cpu_cores": 4}
    host = Host(provisioner="local", host="here", **sizes)

    async def request() -> None:
        async with database.transaction() as connection:
            pool = await roster.pool(connection)
            await roster.request(connection, pool, {host: 1}, {host: 0}, [(uuid4(), UNDECIDED)])

    async with database.transaction() as connection:
        await workers.register(connection, registration("here-1"), None)
        rival = asyncio.create_task(request())
        await until_blocked(database)
    await rival
    rows = await fetch(database, "SELECT state, incarnation FROM workers WHERE name = 'here-1' ORDER BY incarnation")
    assert [(row["state"], row["incarnation"]) for row in rows] == [("lost", 1), ("starting", 2)]
