"""Workers that fall silent: found by the sweep, which waits where it was the service that was away."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties, hot_path
from app.db.database import Database
from app.kernel.ids import WorkerId
from app.queue.rules.tasks import LeasePolicy, RetryPolicy
from app.workers.rules.workers import HealthPolicy, Liveness
from app.workers.service import workers
from app.workers.service.workers import Heartbeats
from app.workers.store import hosts
from app.workers.store import workers as worker_store
from tests.support.factories import (
    beat,
    everything,
    holding,
    leased,
    ready_worker,
    report,
    submitted,
    turn,
)
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch
from tests.support.turns import done
from tests.workers.service.registered import lose_worker, register_worker, sweep, worker_state

_WELL = """
INSERT INTO workers (id, name, incarnation, state, capabilities, labels, first_beat_at, last_seen_at)
SELECT gen_random_uuid(), gen_random_uuid()::text, 1, 'ready', '{generation}', '{}', now(), now()
FROM generate_series(1, $1::int)
"""


async def _silent_for(database: Database, seconds: float, *silent: WorkerId) -> None:
    statement = "UPDATE workers SET last_seen_at = now() - make_interval(secs => $1) WHERE id = ANY ($2::uuid[])"
    await execute(database, statement, seconds, silent)


async def test_a_lost_workers_task_is_rescued_and_the_loss_counts_once(database: Database) -> None:
    worker, lease = await holding(database)
    assert await lose_worker(database, worker)
    assert not await lose_worker(database, worker)
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("pending", 0, 1)
    assert [(a["outcome"], a["error"]["code"]) for a in task["attempts"]] == [("lost", "worker_lost")]


async def test_a_task_that_loses_every_worker_is_given_up(database: Database) -> None:
    task_id = (await submitted(database))[0]
    for _ in range(RetryPolicy().max_rescues + 1):
        worker = await ready_worker(database)
        await leased(database, worker)
        await lose_worker(database, worker)
    task = await everything(database, task_id)
    assert (task["state"], task["failures"]) == ("failed", 0)
    assert task["error"]["code"] == "worker_lost"
    assert task["error"]["message"].startswith("given up after 6 lost workers: ")


async def test_a_task_that_never_began_with_any_worker_is_given_up_for_that(database: Database) -> None:
    task_id = (await submitted(database))[0]
    await execute(database, "UPDATE tasks SET unacknowledged = $1", RetryPolicy().max_unacknowledged)
    worker = await ready_worker(database)
    await leased(database, worker, acknowledge=False)
    await lose_worker(database, worker)
    task = await everything(database, task_id)
    assert (task["state"], task["rescues"], task["error"]["code"]) == ("failed", 0, "unacknowledged")
    assert task["error"]["message"].startswith("given up after 21 leases that no worker acknowledged: ")


async def test_the_sweep_finds_who_is_silent(database: Database) -> None:
    silent, *beating = [await ready_worker(database) for _ in range(3)]
    await _silent_for(database, HealthPolicy().lost_after_seconds + 5, silent)
    assert await sweep(database) == {"lost": 1}
    assert await worker_state(database, silent) == "lost"
    assert [await worker_state(database, worker) for worker in beating] == ["ready", "ready"]


async def test_the_sweep_ends_who_never_began(database: Database) -> None:
    worker = (await register_worker(database)).worker_id
    await ready_worker(database)
    assert await sweep(database) == {"lost": 0}
    await execute(database, "UPDATE workers SET requested_at = now() - interval '1 minute'")
    assert await sweep(database) == {"lost": 1}
    assert await worker_state(database, worker) == "failed"


@pytest.mark.parametrize("away", [1.0, 60.0])
async def test_the_sweep_waits_once_more_when_all_are_silent(database: Database, away: float) -> None:
    workers = [await ready_worker(database) for _ in range(3)]
    await _silent_for(database, 60, *workers)
    assert (await sweep(database, seconds_since_last=away))["held_back"] is True
    assert {await worker_state(database, worker) for worker in workers} == {"ready"}
    assert await sweep(database, seconds_since_last=away, held_back=True) == {"lost": 3}


async def test_a_pool_that_vanishes_is_lost_some_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOST_AT_ONCE", 2)
    pool = [await ready_worker(database) for _ in range(5)]
    await _take_turn(database)
    await _silent_for(database, 60, *pool)
    assert (await _take_turn(database))["held_back"]
    await _pass(database, 6)
    results = [await _take_turn(database) for _ in range(3)]
    assert [result["lost"] for result in results] == [2, 2, 1]
    assert [result.get("behind", False) for result in results] == [True, True, False]
    assert not results[-1].get("held_back")


async def test_a_worker_that_is_beating_right_now_is_passed_over(database: Database) -> None:
    worker, other = await ready_worker(database), await ready_worker(database)
    await _silent_for(database, 60, worker)
    pool = await database.pool()
    async with pool.acquire() as hot, hot.transaction():
        await worker_store.record_heartbeats(hot, [beat(worker)], LeasePolicy().lease_seconds)  # type: ignore[arg-type]
        assert await sweep(database) == {"lost": 0}
    assert {await worker_state(database, each) for each in (worker, other)} == {"ready"}


async def test_a_worker_that_beats_after_it_was_seen_silent_is_not_lost(
    database: Database, heartbeats: Heartbeats, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _ = await ready_worker(database), await ready_worker(database)
    await _silent_for(database, 60, worker)
    read = worker_store.liveness

    async def read_and_wait(connection: AsyncConnection) -> list[Liveness]:
        live_workers = await read(connection)
        await heartbeats.report(beat(worker))
        return live_workers

    monkeypatch.setattr(worker_store, "liveness", read_and_wait)
    assert await sweep(database) == {"lost": 0}
    assert await worker_state(database, worker) == "ready"


async def test_a_sweep_keeps_no_heartbeat_waiting(database: Database) -> None:
    """It locked all workers: their heartbeats were passed over, and each was tried again after a pause."""
    pool = [await ready_worker(database) for _ in range(3)]
    beats = [beat(worker) for worker in pool]
    async with database.transaction() as connection:
        await workers.sweep(connection, HealthPolicy(), turn())
        replies = await hot_path.run(
            database, lambda c: worker_store.record_heartbeats(c, beats, LeasePolicy().lease_seconds)
        )
    assert replies.keys() == set(pool)


@pytest.mark.slow
async def test_a_sweep_writes_to_no_worker_that_is_well(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10,000 it locked each, which is 540 kB of the log."""
    async with explained_database(own_database, monkeypatch) as (database, log):
        for count in (20, 2000):
            await execute(database, _WELL, count)
            log.take()
            assert await sweep(database) == {"lost": 0}
            assert log.take().records == 0


async def _take_turn(database: Database) -> dict[str, Any]:
    """A turn of the duty, as the loops take it."""
    async with database.transaction() as connection:
        await duties.ensure(connection, "sweep workers")
        turn = await duties.claim(connection, "sweep workers", 0)
        assert turn is not None
        result = await workers.sweep(connection, HealthPolicy(), turn)
        await duties.record(connection, "sweep workers", result, held_back=bool(result.get("held_back")))
    return done(result)


async def _pass(database: Database, seconds: float) -> None:
    """So much time goes by, the loops and nobody else being at work."""
    await execute(database, "UPDATE workers SET last_seen_at = last_seen_at - make_interval(secs => $1)", seconds)
    await execute(
        database,
        """UPDATE loop_ticks SET result = result || jsonb_build_object('held_back_since',
               (result ->> 'held_back_since')::timestamptz - make_interval(secs => $1))""",
        seconds,
    )


async def test_most_silent_at_once_have_until_their_next_heartbeat(database: Database, heartbeats: Heartbeats) -> None:
    pool = [await ready_worker(database) for _ in range(3)]
    assert await _take_turn(database) == {"lost": 0}
    await _pass(database, 16)
    assert (await _take_turn(database))["held_back"]
    await _pass(database, 3)
    assert (await _take_turn(database))["held_back"], "two seconds are too few for those that beat every five"
    await heartbeats.report(beat(pool[0]))
    await _pass(database, 3)
    assert await _take_turn(database) == {"lost": 2}
    assert [await worker_state(database, worker) for worker in pool] == ["ready", "lost", "lost"]
    await _pass(database, 16)
    assert await _take_turn(database) == {"lost": 1}, "one alone is not held back"


_API_PROCESS = """
INSERT INTO api_processes (id, began_at, present_since, seen_at, backend)
SELECT gen_random_uuid(), now() - interval '1 h', now() - make_interval(secs => $1), now() - make_interval(secs => $2),
       CASE WHEN $3 THEN pg_backend_pid() ELSE 0 END
"""


async def test_one_that_could_not_reach_the_api_is_not_lost(database: Database) -> None:
    """It is alone, and the loops were there all the time: only the API knows that it was away."""
    worker = await ready_worker(database)
    await _silent_for(database, 17, worker)
    await execute(database, _API_PROCESS, 3600.0, 17.0, True)
    result = await _take_turn(database)
    assert (result["held_back"], result["reason"]) == (True, "the API has been away for 17 s")
    await execute(database, "UPDATE api_processes SET seen_at = now(), present_since = now() - interval '5 s'")
    assert (await _take_turn(database))["held_back"], "it beats every five seconds"
    await execute(database, "UPDATE api_processes SET seen_at = now(), present_since = now() - interval '7 s'")
    await execute(database, "UPDATE loop_ticks SET held_back = false")
    assert await _take_turn(database) == {"lost": 1}


@pytest.mark.parametrize(("exists", "lost"), [(True, 0), (False, 1)])
async def test_of_several_processes_of_the_api_one_that_is_paused_is_waited_for(
    database: Database, exists: bool, lost: int
) -> None:
    worker = await ready_worker(database)
    await _silent_for(database, 17, worker)
    async with database.transaction() as connection:
        # The session of a process that exists goes on for as long as this one.
        await connection.exec_driver_sql(_API_PROCESS, (3600.0, 17.0, exists))
        await connection.exec_driver_sql(_API_PROCESS, (3600.0, 0.0, True))
        result = await workers.sweep(connection, HealthPolicy(), turn())
    assert result.get("lost", 0) == lost
    assert bool(result.get("held_back")) is exists


async def test_a_guard_that_was_for_nothing_is_over(database: Database, heartbeats: Heartbeats) -> None:
    pool = [await ready_worker(database) for _ in range(2)]
    await _take_turn(database)
    await _pass(database, 16)
    assert (await _take_turn(database))["held_back"]
    for worker in pool:
        await heartbeats.report(beat(worker))
    assert await _take_turn(database) == {"lost": 0}
    await _pass(database, 16)
    assert (await _take_turn(database))["held_back"], "the next time is a time of its own"


@pytest.mark.parametrize(
    ("column", "state"), [("last_seen_at", "lost"), ("launched_at", "failed"), ("requested_at", "failed")]
)
async def test_a_worker_of_before_the_clock_was_set_back_is_lost_in_its_time(
    database: Database, column: str, state: str
) -> None:
    worker = await ready_worker(database)
    if state == "failed":
        await execute(database, "UPDATE workers SET state = 'starting', last_seen_at = NULL, launched_at = NULL")
    await execute(database, f"UPDATE workers SET {column} = now() + interval '1 h'")
    await sweep(database)
    await execute(database, f"UPDATE workers SET {column} = {column} - interval '5 min'")
    await sweep(database)
    assert await worker_state(database, worker) == state


async def test_a_starting_worker_is_unheard_of_also_where_the_clock_was_set_back(database: Database) -> None:
    await ready_worker(database)
    for seen, launched in (("NULL", "now() + interval '1 h'"), ("now() + interval '1 h'", "NULL")):
        await execute(
            database, f"UPDATE workers SET state = 'starting', last_seen_at = {seen}, launched_at = {launched}"
        )
        await sweep(database)
        (row,) = await fetch(database, "SELECT last_seen_at, launched_at FROM workers")
        assert [row["last_seen_at"] is None, row["launched_at"] is None] == [seen == "NULL", launched == "NULL"]


async def test_a_host_of_before_the_clock_was_set_back_is_away_in_its_time(database: Database) -> None:
    """One that was killed counted as there until the old time came, and nobody started its workers elsewhere."""

    async def live() -> list[str]:
        async with database.transaction() as connection:
            return [host.host for host in await hosts.live(connection)]

    async with database.transaction() as connection:
        await hosts.record_report(connection, report(host="here"), 0)
    await execute(database, "UPDATE hosts SET seen_at = seen_at + interval '1 h'")
    await sweep(database)
    assert await live() == ["here"]
    await execute(database, "UPDATE hosts SET seen_at = seen_at - interval '16 s'")
    assert await live() == []
