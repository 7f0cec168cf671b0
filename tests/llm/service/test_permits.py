"""Permits under rivals and crashes, on a real database; PostgreSQL's own lock view tells when somebody waits."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.kernel.states import WorkerState
from app.llm.errors import PermitOver, PermitRefused
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.permits import Ending, PermitPolicy, RequestId
from app.llm.service import permits
from app.llm.service.grant import AcquiredPermit, AcquireRequest, grant_all
from app.llm.service.permits import PermitService
from app.llm.service.settle import Settlement, SettlementResult
from app.llm.store import cache, gate, models
from app.llm.store import permits as store
from app.llm.store.cache import NewAnswer
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS
from app.workers.service import workers
from tests.support.factories import holding
from tests.support.permit_callers import allow_calls, configure, list_models, opened, request, settlement
from tests.support.sql import execute, until, until_blocked, value

POLICY, PRESSURE = PermitPolicy(), ConcurrencyPolicy()
_EXPIRE = "UPDATE llm_permits SET expires_at = now() - interval '1 s'"


@pytest.fixture
async def permit_service(database: Database) -> AsyncIterator[PermitService]:
    await list_models(database, *"abcdm")
    async with opened(database) as permit_service:
        yield permit_service


async def acquire_on(connection: AsyncConnection, *requests: AcquireRequest) -> list[Any]:
    return await grant_all(connection, requests, EQUAL_WEIGHTS, POLICY, PRESSURE)


async def in_use(database: Database) -> int:
    return int(await value(database, "SELECT count(*) FROM llm_permits WHERE ended_at IS NULL"))


async def test_two_replicas_never_give_out_more_than_there_are(database: Database, replica: Database) -> None:
    await allow_calls(database, 5)
    async with opened(database) as one, opened(replica) as other:
        answers = await asyncio.gather(
            *(permit_service.acquire(request()) for _ in range(32) for permit_service in (one, other)),
            return_exceptions=True,
        )
    assert sum(isinstance(answer, AcquiredPermit) for answer in answers) == 5
    assert sum(isinstance(answer, PermitRefused) for answer in answers) == 59
    assert await in_use(database) == 5


async def test_whoever_comes_second_waits_and_counts_what_the_first_has_taken(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 3)
    async with database.transaction() as connection:
        assert len(await acquire_on(connection, request("a"), request("b"), request("c"))) == 3
        second = asyncio.create_task(permit_service.acquire(request("d")))
        await until_blocked(database)
    with pytest.raises(PermitRefused) as refused:
        await second
    assert refused.value.reason == "concurrency"


async def test_a_transaction_that_is_rolled_back_leaves_nothing_behind(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 1)

    async def crash() -> None:
        async with database.transaction() as connection:
            await acquire_on(connection, request())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await crash()
    await permit_service.acquire(request())


async def test_a_renewal_that_is_under_way_is_counted(database: Database, permit_service: PermitService) -> None:
    await allow_calls(database, 1)
    held = (await permit_service.acquire(request())).permit
    await execute(database, "UPDATE llm_permits SET expires_at = clock_timestamp() + interval '0.3 s'")
    async with database.transaction() as connection:
        await permits.renew(connection, held.id, held.token, POLICY)

        async def expired() -> bool:
            return bool(await value(database, "SELECT expires_at < clock_timestamp() FROM llm_permits"))

        await until(expired)
        rival = asyncio.create_task(permit_service.acquire(request()))
        await until_blocked(database)
    with pytest.raises(PermitRefused):
        await rival
    assert await in_use(database) == 1


async def test_an_expired_permit_is_not_renewed(database: Database, permit_service: PermitService) -> None:
    """Neither before somebody has ended it, nor while that is under way, nor afterwards."""
    held = (await permit_service.acquire(request())).permit
    await execute(database, _EXPIRE)

    async def renewed() -> str | None:
        with pytest.raises(PermitOver) as over:
            async with database.transaction() as other:
                await permits.renew(other, held.id, held.token, POLICY)
        return over.value.reason

    reasons = [await renewed()]
    async with database.transaction() as connection:
        await store.expire(connection)
        reasons.append(await renewed())
    assert [*reasons, await renewed()] == ["expired"] * 3


async def test_locks_are_taken_in_one_order(database: Database, permit_service: PermitService) -> None:
    """A settlement that waits for its model holds no permit yet, so the holder of the model can end permits."""
    held = (await permit_service.acquire(request())).permit
    await execute(database, _EXPIRE)
    async with database.transaction() as connection:
        await gate.lock(connection)
        await models.lock(connection, ["m"])
        settling = asyncio.create_task(permit_service.settle(settlement(held)))
        await until_blocked(database)
        assert await store.expire(connection) == 1
    assert (await settling).late


async def test_a_settlement_does_not_wait_at_the_gate(database: Database, permit_service: PermitService) -> None:
    held = (await permit_service.acquire(request())).permit
    async with database.transaction() as connection:
        await gate.lock(connection)
        assert not (await permit_service.settle(settlement(held))).late


async def test_everything_at_once_ends_without_a_deadlock(own_database: Database) -> None:
    # One of its own: other tests make deadlocks on purpose, and the server counts them for each database.
    database, replica = own_database, Database(own_database.url)
    await list_models(database, *"abc")
    await allow_calls(database, 8)
    async with opened(database) as one, opened(replica) as other:

        async def call(permit_service: PermitService, number: int) -> None:
            for turn in range(12):
                try:
                    acquisition = await permit_service.acquire(request("abc"[(number + turn) % 3], task_id=uuid4()))
                except PermitRefused:
                    await asyncio.sleep(0.005)
                    continue
                if turn % 4 == 3:
                    async with database.transaction() as connection:
                        await permits.release(connection, acquisition.permit.id, acquisition.permit.token)
                else:
                    outcome = list(Outcome)[turn % 2]
                    await permit_service.settle(settlement(acquisition.permit, outcome, prompt_tokens=number))

        async def sweep() -> None:
            for _ in range(20):
                async with replica.transaction() as connection:
                    await permits.sweep(connection)

        await asyncio.gather(*(call(permit_service, n) for n, permit_service in enumerate([one, other] * 8)), sweep())
    assert await in_use(database) == 0
    await replica.close()
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await value(database, deadlocks) == 0


async def test_a_crash_frees_a_permit_when_its_time_is_over(database: Database, permit_service: PermitService) -> None:
    await allow_calls(database, 1)
    held, waiting = (await permit_service.acquire(request(tokens=100))).permit, request()
    with pytest.raises(PermitRefused):
        await permit_service.acquire(waiting)
    await execute(database, _EXPIRE)
    await permit_service.acquire(waiting)
    late = settlement(held, prompt_tokens=700)
    assert (await permit_service.settle(late)).late
    assert (await permit_service.settle(late)).late
    assert await in_use(database) == 1
    assert await value(database, "SELECT sum(prompt_tokens)::int FROM llm_minutes") == 700
    with pytest.raises(PermitOver) as over:
        await permit_service.settle(settlement(held, prompt_tokens=701))
    assert over.value.reason == "settled"


@pytest.mark.parametrize("goodbye", [False, True])
async def test_a_worker_that_ends_gives_its_permits_back_at_once(
    database: Database, permit_service: PermitService, goodbye: bool
) -> None:
    await allow_calls(database, 1)
    worker_id, _ = await holding(database)
    held = (await permit_service.acquire(request(worker_id=worker_id))).permit
    async with database.transaction() as connection:
        if goodbye:
            await workers.say_goodbye(connection, worker_id, "done")
        else:
            await workers.record_exit(connection, worker_id, WorkerState.LOST, "killed")
    await permit_service.acquire(request())
    assert (await permit_service.settle(settlement(held))).late
    async with database.transaction() as connection:
        with pytest.raises(PermitOver) as over:
            await permits.renew(connection, held.id, held.token, POLICY, worker_id)
    assert over.value.reason == Ending.LOST


async def test_a_silent_worker_may_still_be_calling_and_keeps_its_permits_for_their_time(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 1)
    worker_id, _ = await holding(database)
    held = (await permit_service.acquire(request(worker_id=worker_id))).permit
    async with database.transaction() as connection:
        assert await workers.lose(connection, worker_id, WorkerState.LOST, "silent for 20 s")
    with pytest.raises(PermitRefused):
        await permit_service.acquire(request())
    # Its task is somebody else's now, so it ends the call in time.
    async with database.transaction() as connection:
        with pytest.raises(PermitOver):
            await permits.renew(connection, held.id, held.token, POLICY, worker_id)
    assert not (await permit_service.settle(settlement(held))).late
    assert await in_use(database) == 0


async def test_a_silent_worker_whose_process_is_then_seen_to_end_calls_nobody_any_more(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 1)
    worker_id, _ = await holding(database)
    await permit_service.acquire(request(worker_id=worker_id))
    async with database.transaction() as connection:
        assert await workers.lose(connection, worker_id, WorkerState.LOST, "silent for 20 s")
    async with database.transaction() as connection:
        assert not await workers.record_exit(connection, worker_id, WorkerState.LOST, "killed")
    await permit_service.acquire(request())


async def test_a_probe_whose_owner_crashed_makes_room_for_another(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 10)
    await execute(database, "UPDATE llm_models SET failures = 3, open_until = now()")
    answers = await asyncio.gather(*(permit_service.acquire(request()) for _ in range(64)), return_exceptions=True)
    (probe,) = [answer.permit for answer in answers if isinstance(answer, AcquiredPermit)]
    assert probe.is_probe
    assert {answer.reason for answer in answers if isinstance(answer, PermitRefused)} == {"breaker_open"}
    await execute(database, _EXPIRE)
    assert (await permit_service.acquire(request())).permit.is_probe
    # The first one's news are old: another has taken its place.
    await permit_service.settle(settlement(probe))
    assert await value(database, "SELECT open_until IS NULL FROM llm_models WHERE model = 'm'") is False


async def test_a_configuration_that_shrinks_gives_nobody_a_new_permit(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 4)
    held = [(await permit_service.acquire(request())).permit for _ in range(4)]
    await allow_calls(database, 2)
    waiting = request()
    for permit in held[:2]:
        with pytest.raises(PermitRefused):
            await permit_service.acquire(waiting)
        await permit_service.settle(settlement(permit))
    with pytest.raises(PermitRefused):
        await permit_service.acquire(waiting)
    await permit_service.settle(settlement(held[2]))
    await permit_service.acquire(waiting)


async def test_a_change_of_the_configuration_waits_for_permits_that_are_being_granted(database: Database) -> None:
    await allow_calls(database, 4)
    async with database.transaction() as connection:
        await acquire_on(connection, request(), request(), request())
        changing = asyncio.create_task(configure(database, 1))
        await until_blocked(database)
        assert not changing.done()
    await changing


async def test_a_release_gives_back_only_what_was_charged(database: Database, permit_service: PermitService) -> None:
    await execute(
        database,
        "UPDATE llm_models SET requests_per_window = 1, burst = 2, window_seconds = 3600 WHERE model = 'm'",
    )
    first = (await permit_service.acquire(request())).permit
    await permit_service.acquire(request())
    for _ in range(3):
        async with database.transaction() as connection:
            await permits.release(connection, first.id, first.token)
    await permit_service.acquire(request())
    with pytest.raises(PermitRefused):
        await permit_service.acquire(request())


async def test_settlements_of_one_batch_are_each_answered(database: Database, permit_service: PermitService) -> None:
    held = [(await permit_service.acquire(request("abcd"[n % 4]))).permit for n in range(8)]
    unknown = Settlement(permit_id=UUID(int=1), token="x", report=CallReport(outcome=Outcome.SUCCESS), digest=b"")
    calls = [
        *(settlement(permit, prompt_tokens=1) for permit in held),
        replace(settlement(held[0]), token="y"),
        unknown,
    ]
    answers = await asyncio.gather(*(permit_service.settle(call) for call in calls), return_exceptions=True)
    assert [isinstance(answer, SettlementResult) for answer in answers] == [True] * 8 + [False, False]
    assert await value(database, "SELECT sum(calls)::int FROM llm_minutes") == 8


async def test_the_sweep_forgets_what_is_long_over(database: Database, permit_service: PermitService) -> None:
    settled, live = (await permit_service.acquire(request())).permit, (await permit_service.acquire(request())).permit
    await permit_service.settle(settlement(settled))
    await execute(database, "UPDATE llm_permits SET ended_at = now() - interval '2 h' WHERE ended_at IS NOT NULL")
    async with database.transaction() as connection:
        swept = await permits.sweep(connection)
    assert swept["permits"] == 1
    assert await value(database, "SELECT id FROM llm_permits") == live.id


async def test_permits_are_forgotten_as_fast_as_they_end_where_none_expires(
    database: Database, permit_service: PermitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn would come after 15 s, and have room for as many again."""
    monkeypatch.setattr(permits, "_MAX_PRUNED", 2)
    for _ in range(3):
        await permit_service.settle(settlement((await permit_service.acquire(request())).permit))
    await execute(database, "UPDATE llm_permits SET ended_at = now() - interval '2 h'")
    turns = []
    for _ in range(2):
        async with database.transaction() as connection:
            turns.append(await permits.sweep(connection))
    assert [(turn["permits"], turn["behind"]) for turn in turns] == [(2, True), (1, False)]


async def test_the_cache_keeps_the_newest_within_its_bounds(connection: AsyncConnection) -> None:
    for number in range(6):
        await _store(connection, number, '{"n": 1}', ttl_seconds=0.0 if number == 5 else 60.0)
    for number in (0, 5):
        await _store(connection, number, '{"n": 2}', model="n")
    answers = await cache.read(connection, [b"\x00", b"\x05"])
    assert {key: answer.answer for key, answer in answers.items()} == {b"\x00": {"n": 1}, b"\x05": {"n": 2}}
    assert await cache.prune(connection, answers=3) == 3
    assert await cache.prune(connection, size=16) == 1
    assert await cache.prune(connection, size=16) == 0


async def test_who_fills_the_cache_drives_out_no_answers_of_others(connection: AsyncConnection) -> None:
    await _store(connection, 0, "{}", written_by="honest")
    for number in range(1, 9):
        await _store(connection, number, "{}", written_by="greedy")
    assert await cache.prune(connection, own_answers=3) == 5
    assert b"\x00" in await cache.read(connection, [b"\x00"])
    assert await cache.prune(connection, own_size=4) == 1


async def _store(
    connection: AsyncConnection,
    number: int,
    answer: str,
    *,
    model: str = "m",
    written_by: str = "w",
    ttl_seconds: float = 60.0,
) -> None:
    new = NewAnswer(question=b"q", answer=answer, ttl_seconds=ttl_seconds)
    await cache.write(connection, bytes([number]), new, model=model, written_by=written_by)


async def test_the_place_of_one_who_was_refused_is_kept_until_the_claim_lapses(
    database: Database, permit_service: PermitService
) -> None:
    await allow_calls(database, 1)
    held, earlier = (await permit_service.acquire(request())).permit, request()
    with pytest.raises(PermitRefused):
        await permit_service.acquire(earlier)
    await permit_service.settle(settlement(held))
    await execute(database, "UPDATE llm_claims SET due = now()")
    with pytest.raises(PermitRefused) as overtaking:
        await permit_service.acquire(request(id=RequestId("another", uuid4())))
    assert overtaking.value.reason == "concurrency"
    held = (await permit_service.acquire(earlier)).permit
    await permit_service.settle(settlement(held))
    await execute(database, "UPDATE llm_claims SET due = now(), lapses = now()")
    await permit_service.acquire(request())


async def test_a_lost_worker_does_not_wait_for_a_permit_that_is_being_settled(
    database: Database, permit_service: PermitService
) -> None:
    """It holds locks of its own, for which others wait: who waits for permits must hold nothing else."""
    worker_id, _ = await holding(database)
    busy, idle = [(await permit_service.acquire(request(worker_id=worker_id))).permit for _ in range(2)]
    async with database.transaction() as settling:
        await store.lock(settling, [busy.id])
        async with database.transaction() as connection:
            await workers.record_exit(connection, worker_id, WorkerState.LOST, "killed")
        assert await value(database, "SELECT ending FROM llm_permits WHERE id = $1", idle.id) == "lost"
    assert not (await permit_service.settle(settlement(busy))).late
