"""A claim that accepts the results of its workers: each result is accepted by the fence alone, and goes before."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, counters
from app.queue.store.claims import ClaimOutcome, ClaimRequest, Lease
from tests.support.factories import GENERATION, completion, holding, ready_worker, submitted
from tests.support.sql import execute, fetch, until_blocked, value

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def hot(database: Database) -> AsyncIterator[Connection]:
    connection = await database.connect()
    yield connection
    await connection.close()


def _ask(worker: WorkerId, lease: Lease | None, last_number: int | None = None) -> ClaimRequest:
    return ClaimRequest(
        worker_id=worker,
        request_id=uuid4(),
        lane=GENERATION,
        acknowledge=True,
        last_number=last_number,
        completion=completion(worker, lease) if lease else None,
    )


async def _claim(hot: Connection, *asks: ClaimRequest) -> list[ClaimOutcome]:
    return await claims.claim(hot, asks, LeasePolicy())


async def _states(database: Database) -> dict[UUID, str]:
    rows = await fetch(database, "SELECT id, state FROM tasks UNION ALL SELECT id, state FROM task_history")
    return {row["id"]: row["state"] for row in rows}


@pytest.mark.parametrize("last_number", [1, None], ids=["known", "looked up"])
async def test_the_result_is_accepted_and_the_next_task_leased(
    database: Database, hot: Connection, last_number: int | None
) -> None:
    worker, lease = await holding(database)
    (task_id,) = await submitted(database)
    (outcome,) = await _claim(hot, _ask(worker, lease, last_number))
    assert outcome.lease is not None
    assert (outcome.lease.task_id, outcome.lease_number) == (task_id, 2)
    assert outcome.service is not None
    assert outcome.service.agent_type == GENERATION.agent_type
    assert outcome.service.seconds >= 0
    assert await _states(database) == {lease.task_id: "completed", task_id: "executing"}
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []


async def test_readers_hear_of_the_end_of_one_task_before_they_hear_of_the_next(
    database: Database, hot: Connection
) -> None:
    held = [await holding(database) for _ in range(20)]
    await submitted(database, 20)
    await _claim(hot, *(_ask(worker, lease) for worker, lease in held))
    rows = await fetch(database, "SELECT worker_id, kind FROM every_event WHERE worker_id IS NOT NULL ORDER BY seq")
    for worker, _ in held:
        kinds = [row["kind"] for row in rows if row["worker_id"] == worker and row["kind"].startswith("task.")]
        begun = ["task.assigned", "task.executing"]
        assert kinds == [*begun, "task.completed", *begun]


@pytest.mark.parametrize("waiting", [3, 2])
async def test_one_task_in_the_place_of_another_changes_no_count(
    database: Database, hot: Connection, waiting: int
) -> None:
    asks = [_ask(worker, None) for worker in [await ready_worker(database) for _ in range(3)]]
    await submitted(database, 3)
    first = [outcome.lease for outcome in await _claim(hot, *asks)]
    await submitted(database, waiting)
    await execute(database, "DELETE FROM queue_changes")
    held = zip(asks, first, strict=True)
    await _claim(hot, *(_ask(ask.worker_id, lease) for ask, lease in held))
    changes = await fetch(database, "SELECT phase, tasks FROM queue_changes")
    ended = {"executing": waiting - 3} if waiting < 3 else {}
    assert {row["phase"]: row["tasks"] for row in changes} == {"pending": -waiting, **ended}
    assert len(changes) == 1 + len(ended)


async def test_without_a_task_the_result_is_accepted_all_the_same(database: Database, hot: Connection) -> None:
    worker, lease = await holding(database)
    (outcome,) = await _claim(hot, _ask(worker, lease))
    assert (outcome.lease, outcome.service is not None) == (None, True)
    assert await _states(database) == {lease.task_id: "completed"}


@pytest.mark.parametrize("state", ["draining", "stopped"])
async def test_a_worker_that_may_have_no_more_hands_in_its_last_result(
    database: Database, hot: Connection, state: str
) -> None:
    worker, lease = await holding(database)
    await submitted(database)
    await execute(database, "UPDATE workers SET state = $1", state)
    (outcome,) = await _claim(hot, _ask(worker, lease))
    assert (outcome.lease, outcome.worker_state, outcome.service is not None) == (None, state, True)


@pytest.mark.parametrize("wrong", ["token", "worker", "task", "expired", "awaited"])
async def test_a_result_that_is_refused_brings_nothing_and_hinders_nobody(
    database: Database, hot: Connection, wrong: str
) -> None:
    (worker, lease), (other, its_lease) = await holding(database), await holding(database)
    (next_id,) = await submitted(database)
    stranger = await ready_worker(database)
    ask = _ask(stranger if wrong == "worker" else worker, lease)
    if wrong == "token":
        ask = _ask(worker, lease._replace(token=lease.token + 1))
    elif wrong == "task":
        ask = _ask(worker, lease._replace(task_id=uuid4()))  # type: ignore[arg-type]
    elif wrong == "expired":
        await execute(database, "UPDATE tasks SET lease_expires_at = now() WHERE id = $1", lease.task_id)
    elif wrong == "awaited":
        await execute(database, "UPDATE tasks SET has_dependents = true WHERE id = $1", lease.task_id)
    refused, served = await _claim(hot, ask, _ask(other, its_lease))
    assert (refused.lease, refused.service) == (None, None)
    assert served.lease is not None
    assert served.lease.task_id == next_id
    assert (await _states(database))[lease.task_id] == "executing"


async def test_a_result_whose_task_is_locked_is_not_waited_for(
    database: Database, replica: Database, hot: Connection
) -> None:
    worker, lease = await holding(database)
    await submitted(database)
    async with replica.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM tasks WHERE id = $1 FOR UPDATE", (lease.task_id,))
        (outcome,) = await _claim(hot, _ask(worker, lease))
    assert (outcome.lease, outcome.service, outcome.holds_another) == (None, None, True)
    (outcome,) = await _claim(hot, _ask(worker, lease))
    assert outcome.lease is not None


async def test_a_result_whose_task_changes_while_the_claim_begins_brings_no_second_task(
    database: Database, replica: Database, hot: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is locked as it is by then, but a statement changes no row that is younger than itself."""
    (worker, lease), (other, its_lease) = await holding(database), await holding(database)
    await submitted(database, 2)
    statement = claims._CLAIMS[False, False, True]
    paused = statement.replace("FROM unnest($12::uuid[])", "FROM pg_advisory_xact_lock(7), unnest($12::uuid[])")
    assert paused != statement
    monkeypatch.setitem(claims._CLAIMS, (False, False, True), paused)
    async with replica.transaction() as connection:
        await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7)")
        claim = asyncio.create_task(_claim(hot, _ask(worker, lease), _ask(other, its_lease)))
        await until_blocked(database)
        await execute(
            database, "UPDATE tasks SET lease_expires_at = now() + interval '1 h' WHERE id = $1", lease.task_id
        )
    changed, served = await claim
    assert (changed.lease, changed.service) == (None, None)
    assert served.lease is not None
    states = await _states(database)
    assert (states[lease.task_id], states[its_lease.task_id]) == ("executing", "completed")


async def test_a_result_that_two_replicas_take_at_once_brings_one_task(
    database: Database, replica: Database, hot: Connection
) -> None:
    worker, lease = await holding(database)
    await submitted(database, 2)
    ask, other = _ask(worker, lease, 1), await replica.connect()
    transaction = hot.transaction()
    await transaction.start()
    (first,) = await _claim(hot, ask)
    (second,) = await _claim(other, ask)
    await transaction.commit()
    (third,) = await _claim(other, ask)
    await other.close()
    assert first.lease is not None
    assert (second.lease, second.service, third.lease, third.service) == (None, None, None, None)
    assert await value(database, "SELECT count(*) FROM tasks WHERE worker_id = $1", worker) == 1


async def test_a_lease_that_another_replica_gives_meanwhile_undoes_both(
    database: Database, replica: Database, hot: Connection
) -> None:
    """By a number that is out of date; the result is then accepted once more."""
    worker, lease = await holding(database)
    await submitted(database, 2)
    other = await replica.connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute(
        "INSERT INTO leases (worker_id, n, task_id, token, request_id, leased_at) "
        "VALUES ($1, 2, gen_random_uuid(), 1, gen_random_uuid(), now())",
        worker,
    )
    claim = asyncio.create_task(_claim(hot, _ask(worker, lease, 1)))
    await until_blocked(database)
    await transaction.commit()
    await other.close()
    with pytest.raises(asyncpg.UniqueViolationError):
        await claim
    assert (await _states(database))[lease.task_id] == "executing"
    (outcome,) = await _claim(hot, _ask(worker, lease))
    assert (outcome.lease is None, outcome.service is None, outcome.lease_number) == (False, False, 3)


@pytest.mark.parametrize("workers", [1, 4], ids=["one each", "four each"])
async def test_many_replicas_at_once_accept_each_result_once_and_deadlock_at_none(
    own_database: Database, workers: int
) -> None:
    replicas, turns = 16, 40
    await submitted(own_database, replicas * workers * (turns + 1))
    accepted = await asyncio.gather(*(_work(own_database, workers, turns) for _ in range(replicas)))
    assert sum(accepted) > replicas * workers * turns / 2
    assert await value(own_database, "SELECT count(*) FROM task_history WHERE state = 'completed'") == sum(accepted)
    async with own_database.transaction() as connection:
        assert await counters.differences(connection) == []


async def _work(database: Database, workers: int, turns: int) -> int:
    """Have so many workers hand in results and lease at once, by one connection; return the results accepted."""
    accepted = 0
    held: dict[WorkerId, Lease | None] = {await ready_worker(database): None for _ in range(workers)}
    connection = await database.connect()
    try:
        for _ in range(turns):
            outcomes = await _claim(connection, *(_ask(worker, lease) for worker, lease in held.items()))
            for (worker, lease), outcome in zip(list(held.items()), outcomes, strict=True):
                accepted += outcome.service is not None
                # One that somebody had locked is handed in again.
                held[worker] = outcome.lease if lease is None or outcome.service is not None else lease
    finally:
        await connection.close()
    return accepted


async def test_calls_with_and_without_results_share_a_claim(database: Database, hot: Connection) -> None:
    worker, lease = await holding(database)
    fresh = [await ready_worker(database) for _ in range(2)]
    ids = await submitted(database, 3)
    outcomes = await _claim(hot, _ask(fresh[0], None), _ask(worker, lease), _ask(fresh[1], None))
    assert [outcome.lease and outcome.lease.task_id for outcome in outcomes] == ids
    assert [outcome.service is None for outcome in outcomes] == [True, False, True]


async def test_what_a_result_says_is_kept(database: Database, hot: Connection) -> None:
    worker, lease = await holding(database)
    result = completion(worker, lease)._replace(result='{"n":7}', usage='{"cpu_seconds":1}', quality=0.5)
    plain = await holding(database)
    await _claim(hot, _ask(worker, lease)._replace(completion=result), _ask(*plain))
    query = "SELECT result::text, result_hash, usage::text, quality FROM task_history WHERE id = $1"
    row = (await fetch(database, query, lease.task_id))[0]
    assert tuple(row) == ('{"n": 7}', result.result_hash, '{"cpu_seconds": 1}', 0.5)
    assert tuple((await fetch(database, query, plain[1].task_id))[0])[2:] == (None, None)
