"""Taking back: leases that fell silent, tasks that hang, and delayed tasks whose time has come."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.db.database import Database
from app.db.duties import Turn
from app.kernel.agents import AgentType
from app.kernel.presence import PresencePolicy
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.tasks import LeasePolicy, RetryPolicy
from app.queue.service import dead_letters, expiry
from app.queue.store import attempts, lease_ledger
from app.queue.store import tasks as task_store
from app.queue.store.claims import Lease
from app.workers.service.workers import Heartbeats
from tests.support.factories import beat, everything, holding, leased, ready_worker, submitted, turn
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch, value
from tests.support.turns import done, take_turn

_POLICY = LeasePolicy()


async def _sweep(database: Database, **changes: Any) -> dict[str, Any]:
    async with database.transaction() as connection:
        return done(await expiry.sweep(connection, _POLICY, turn(**changes)))


async def _expire(database: Database) -> None:
    await execute(database, "UPDATE tasks SET lease_expires_at = now() WHERE worker_id IS NOT NULL")


async def test_living_leases_are_left_alone(database: Database) -> None:
    _, lease = await holding(database)
    assert await _sweep(database) == {"live": 1, "taken_back": 0}
    assert (await everything(database, lease.task_id))["state"] == "executing"


async def test_an_expired_lease_goes_back_and_counts_as_a_rescue(database: Database) -> None:
    worker, lease = await holding(database)
    await _expire(database)
    assert (await _sweep(database))["taken_back"] == 1
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"], task["worker_id"]) == ("pending", 0, 1, None)
    assert [(a["outcome"], a["error"]["code"]) for a in task["attempts"]] == [("expired", "lease_expired")]
    event = (await fetch(database, "SELECT * FROM every_event ORDER BY seq DESC LIMIT 1"))[0]
    assert (event["kind"], event["worker_id"], event["token"]) == ("task.expired", worker, 1)


async def test_an_unacknowledged_lease_expires_early(database: Database) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker, acknowledge=False, policy=LeasePolicy(acknowledge_within_seconds=0))
    await _sweep(database)
    task = await everything(database, lease.task_id)
    assert task["state"] == "pending"
    assert "not acknowledged" in task["error"]["message"]


async def test_the_only_lease_is_left_alone_while_it_cannot_be_renewed(database: Database) -> None:
    _, lease = await holding(database)
    await _expire(database)
    note = "INSERT INTO api_processes (id, began_at, present_since, seen_at, backend) VALUES ($1, $2, $2, $2, 0)"
    away_since = await value(database, "SELECT now() - interval '17 s'")
    await execute(database, note, lease.task_id, away_since)
    result = await _sweep(database)
    assert (result["held_back"], result["reason"]) == (True, "the API has been away for 17 s")
    assert (await everything(database, lease.task_id))["state"] == "executing"
    await execute(database, "UPDATE api_processes SET seen_at = now()")
    assert (await _sweep(database))["taken_back"] == 1


@pytest.mark.parametrize(("interval", "held"), [(5.0, False), (20.0, True)])
async def test_many_leases_are_held_back_for_an_interval_between_heartbeats(
    database: Database, interval: float, held: bool
) -> None:
    for _ in range(4):
        await holding(database)
    await _expire(database)
    mine = Turn(duty="test", seconds_since_last=1.0, held_back=True, held_back_seconds=10.0)
    async with database.transaction() as connection:
        result = await expiry.sweep(connection, _POLICY, mine, PresencePolicy(interval_seconds=interval))
    assert bool(result.get("held_back")) is held


async def test_leases_that_nobody_acknowledges_are_counted_and_bounded_apart(database: Database) -> None:
    """The task has not run, so it is no poison: it rests longer and longer before it is given up."""
    task_id = (await submitted(database))[0]
    worker, limit = await ready_worker(database), RetryPolicy().max_unacknowledged
    policy, rests = LeasePolicy(acknowledge_within_seconds=0, avoid_seconds=0), []
    for _ in range(limit + 1):
        await execute(database, "UPDATE tasks SET run_at = NULL")
        await leased(database, worker, acknowledge=False, policy=policy)
        await _sweep(database)
        rests.append(await value(database, "SELECT extract(epoch FROM run_at - waiting_since)::int FROM tasks"))
    task = await everything(database, task_id)
    assert (task["state"], task["failures"], task["rescues"], task["unacknowledged"]) == ("failed", 0, 0, limit + 1)
    assert task["error"]["code"] == "unacknowledged"
    assert f"{limit + 1} leases that no worker acknowledged" in task["error"]["message"]
    assert rests == [None, None, None, 2, 4, 8, 16, 32, *([60] * (limit - 8)), None]
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, task_id, "again")
    assert (await everything(database, task_id))["unacknowledged"] == 0


async def test_rescues_are_bounded(database: Database) -> None:
    """A task that kills every worker that touches it must not go round for ever."""
    task_id = (await submitted(database))[0]
    most = RetryPolicy().max_rescues
    for _ in range(most + 1):
        await leased(database, await ready_worker(database))
        await _expire(database)
        await _sweep(database)
    task = await everything(database, task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("failed", 0, most + 1)
    assert task["error"]["code"] == "lease_expired"
    assert len(task["attempts"]) == most + 1
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.failed'") == 1


@pytest.mark.parametrize("expiry_of", ["now() - interval '1 s'", "NULL"])
async def test_a_second_lease_that_was_written_by_hand_is_taken_back(database: Database, expiry_of: str) -> None:
    """The ledger of the worker leads to the first one only."""
    worker, lease = await holding(database)
    (second,) = await submitted(database)
    await execute(
        database,
        f"UPDATE tasks SET state = 'assigned', worker_id = $2, lease_expires_at = {expiry_of} WHERE id = $1",
        second,
        worker,
    )
    assert (await _sweep(database))["taken_back"] == 0
    async with database.transaction() as connection:
        assert await expiry.sweep_strays(connection, _POLICY) == {"taken_back": 1}
    assert (await everything(database, second))["state"] == "pending"
    assert (await everything(database, lease.task_id))["state"] == "executing"


async def test_expired_leases_of_the_ledger_are_no_strays(database: Database) -> None:
    """Their sweep may hold back, because the service was away."""
    await holding(database)
    await _expire(database)
    async with database.transaction() as connection:
        assert await expiry.sweep_strays(connection, _POLICY) == {"taken_back": 0}


async def _hang(database: Database, lease: Lease, late_seconds: float) -> None:
    """The worker beats on, but the deadline passed so many seconds ago."""
    statement = "UPDATE tasks SET deadline_at = now() - make_interval(secs => $2) WHERE id = $1"
    await execute(database, statement, lease.task_id, late_seconds)


async def test_a_task_that_beats_but_hangs_uses_up_its_attempt(database: Database) -> None:
    _, lease = await holding(database)
    await _hang(database, lease, _POLICY.deadline_grace_seconds + 1)
    assert (await _sweep(database))["taken_back"] == 1
    task = await everything(database, lease.task_id)
    assert (task["state"], task["failures"], task["rescues"]) == ("pending", 1, 0)
    assert task["error"]["code"] == "timeout"


async def test_a_hanging_task_is_left_to_its_worker_for_a_while(database: Database) -> None:
    _, lease = await holding(database)
    await _hang(database, lease, _POLICY.deadline_grace_seconds / 2)
    assert (await _sweep(database))["taken_back"] == 0


async def test_the_last_attempt_that_hangs_ends_the_task(database: Database) -> None:
    _, lease = await holding(database, retry=RetryPolicy(max_attempts=1))
    await _hang(database, lease, 3600)
    await _sweep(database)
    assert (await everything(database, lease.task_id))["state"] == "failed"


async def test_a_mass_expiry_is_held_back_once(database: Database) -> None:
    for _ in range(5):
        await holding(database)
    await _expire(database)
    held = await _sweep(database)
    assert held["held_back"] is True
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'executing'") == 5
    assert (await _sweep(database, held_back=True))["taken_back"] == 5


async def test_who_beats_while_most_are_held_back_keeps_its_lease(database: Database, heartbeats: Heartbeats) -> None:
    """The sweep comes every second, a heartbeat every five."""
    pool = [await holding(database) for _ in range(5)]
    await _expire(database)
    assert (await _take_turn(database))["held_back"] is True
    await _pass(database, 2)
    assert (await _take_turn(database))["held_back"] is True
    worker, lease = pool[0]
    await heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token))
    await _pass(database, 4)
    assert (await _take_turn(database))["taken_back"] == 4
    assert await value(database, "SELECT worker_id FROM tasks WHERE state = 'executing'") == worker


async def _take_turn(database: Database) -> dict[str, Any]:
    """A turn of the duty, as the loops take it."""
    async with database.transaction() as connection:
        await duties.ensure(connection, "sweep leases")
        mine = await duties.claim(connection, "sweep leases", 0)
        assert mine is not None
        result = await expiry.sweep(connection, _POLICY, mine)
        await duties.record(connection, "sweep leases", result, held_back=bool(result.get("held_back")))
    return result


async def _pass(database: Database, seconds: float) -> None:
    """So much time goes by for the loops."""
    await execute(
        database,
        """UPDATE loop_ticks SET result = result || jsonb_build_object('held_back_since',
               (result ->> 'held_back_since')::timestamptz - make_interval(secs => $1))""",
        seconds,
    )


async def test_what_expired_while_the_service_was_away_is_held_back(database: Database) -> None:
    await holding(database)
    await _expire(database)
    assert (await _sweep(database, seconds_since_last=60))["held_back"] is True


async def test_a_heartbeat_brings_back_an_expired_lease_that_was_held_back(
    database: Database, heartbeats: Heartbeats
) -> None:
    worker, lease = await holding(database)
    await _expire(database)
    pulse = await heartbeats.report(beat(worker, task_id=lease.task_id, token=lease.token))
    assert pulse.lease_expires_at.timestamp() > lease.leased_at
    assert (await _sweep(database))["taken_back"] == 0


async def _take(database: Database, broker: Broker) -> Lease | None:
    worker = await ready_worker(database)
    call = LeaseCall(worker_id=worker, request_id=worker, agent_types=frozenset(AgentType))
    return await broker.lease(call)


async def test_a_delayed_task_waits_for_its_time(database: Database, broker: Broker) -> None:
    task_id = (await submitted(database))[0]
    await execute(database, "UPDATE tasks SET run_at = now() + interval '1 hour'")
    async with database.transaction() as connection:
        assert await expiry.promote_delayed(connection) == {"promoted": 0}
    assert await _take(database, broker) is None
    await execute(database, "UPDATE tasks SET run_at = now() - interval '1 second'")
    assert await _take(database, broker) is None
    async with database.transaction() as connection:
        assert await expiry.promote_delayed(connection) == {"promoted": 1}
    lease = await _take(database, broker)
    assert lease is not None
    assert lease.task_id == task_id


async def test_promotion_tells_that_it_leaves_some(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_PROMOTED", 7)
    await submitted(database, 10)
    await execute(database, "UPDATE tasks SET run_at = now()")
    for result in ({"promoted": 7, "behind": True}, {"promoted": 3}, {"promoted": 0}):
        async with database.transaction() as connection:
            assert await expiry.promote_delayed(connection) == result


async def test_promotion_wakes_who_waits(database: Database) -> None:
    await submitted(database, agent_type=AgentType.RANKING)
    await execute(database, "UPDATE tasks SET run_at = now()")
    heard: set[str] = set()
    database.announcer.subscribe(heard.update)
    async with database.transaction() as connection:
        await expiry.promote_delayed(connection)
    assert heard == {"work:ranking:2"}


@pytest.mark.parametrize("limit", [1, 7])
async def test_promotion_takes_the_oldest_first_and_no_more_than_asked(database: Database, limit: int) -> None:
    ids = await submitted(database, 10)
    await execute(database, "UPDATE tasks SET run_at = now() - make_interval(secs => seq)")
    async with database.transaction() as connection:
        assert await task_store.promote(connection, limit) == limit
    promoted = await fetch(database, "SELECT id FROM tasks WHERE run_at IS NULL")
    assert {row["id"] for row in promoted} == set(ids[-limit:])


async def test_the_ledger_is_trimmed_but_never_forgets_a_live_lease(database: Database) -> None:
    worker = await ready_worker(database)
    await submitted(database)
    lease = await leased(database, worker)
    await execute(
        database,
        "INSERT INTO leases (worker_id, n, task_id, token, request_id)"
        " SELECT worker_id, 1 - former.n, gen_random_uuid(), 1, gen_random_uuid()"
        " FROM leases, generate_series(1, 150) AS former (n)",
    )
    async with database.transaction() as connection:
        assert (await expiry.trim_ledger(connection))["trimmed"] == 51
        held = await attempts.lock_of_worker(connection, worker)
    assert held is not None
    assert held.token == lease.token


async def test_after_long_without_turns_the_ledger_is_trimmed_some_lines_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long break there are more than one statement deletes within its time."""
    monkeypatch.setattr(lease_ledger, "TRIMMED", 20)
    workers = [await ready_worker(database) for _ in range(2)]
    await execute(
        database,
        "INSERT INTO leases (worker_id, n, task_id, token, request_id)"
        " SELECT worker, n, gen_random_uuid(), 1, gen_random_uuid()"
        " FROM unnest($1::uuid[]) worker, generate_series(1, 115) n",
        workers,
    )
    turns = [await take_turn(database, expiry.TRIM_LEDGER, expiry.trim_ledger) for _ in range(3)]
    assert [(turn["trimmed"], turn.get("behind", False)) for turn in turns] == [(20, True), (10, False), (0, False)]


async def test_a_look_at_the_ledger_reads_no_line_that_stays(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5,000 workers, most of them ended, it read all 200,000 lines every half minute."""
    await execute(
        own_database,
        """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
           SELECT gen_random_uuid(), n::text, 1, 'stopped', '{}', '{}', now() FROM generate_series(1, 200) n""",
    )
    await execute(
        own_database,
        """INSERT INTO leases (worker_id, n, task_id, token, request_id)
           SELECT w.id, n, gen_random_uuid(), 1, gen_random_uuid() FROM workers w, generate_series(1, 100) n""",
    )
    await execute(own_database, "VACUUM ANALYZE workers, leases")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            assert await lease_ledger.trim(connection, 200) == (0, 0)
        assert 200 <= log.take().rows < 200 * 20
        await execute(own_database, "UPDATE workers SET ended_at = now() - interval '1 day'")
        log.take()
        async with database.transaction() as connection:
            assert await lease_ledger.trim(connection, 200) == (0, 0)
        assert log.take().rows < 200 * 3, "nobody has given leases to these since"


async def test_the_ledger_is_looked_through_as_far_as_lines_were_found_and_now_and_then_farther(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_back: list[int] = []
    trim = lease_ledger.trim

    async def noted(connection: AsyncConnection, reach: int) -> tuple[int, int]:
        looked_back.append(reach)
        await trim(connection, reach)
        return 700, 100

    monkeypatch.setattr(lease_ledger, "trim", noted)
    for _ in range(23):
        await take_turn(database, expiry.TRIM_LEDGER, expiry.trim_ledger)
    assert looked_back == [20_000, *[200] * 20, 20_000, 200]
    await execute(database, "UPDATE loop_ticks SET last_run_at = last_run_at - interval '3 min'")
    await take_turn(database, expiry.TRIM_LEDGER, expiry.trim_ledger)
    assert looked_back[-1] == 20_000


async def test_after_a_turn_that_may_have_left_lines_the_next_looks_far(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_back: list[int] = []

    async def full(_connection: AsyncConnection, reach: int) -> tuple[int, int]:
        looked_back.append(reach)
        return 200, 200

    monkeypatch.setattr(lease_ledger, "trim", full)
    for _ in range(4):
        await take_turn(database, expiry.TRIM_LEDGER, expiry.trim_ledger)
    assert looked_back == [20_000, 400, 400, 400]
    monkeypatch.setattr(expiry, "_REACH_FACTOR", 1)
    for _ in range(2):
        await take_turn(database, expiry.TRIM_LEDGER, expiry.trim_ledger)
    assert looked_back[4:] == [200, 20_000]
