"""Results and ratings are folded each once, in whatever order transactions commit."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from app.agents.rules.performance import MAX_RESULTS, Result
from app.agents.service import performance
from app.agents.service.performance import RatingInput
from app.agents.store import performance as store
from app.agents.store.performance import StoredResults
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.states import WorkerState
from app.queue.errors import IdempotencyMismatch, TaskNotCompleted, TaskNotFound
from app.queue.service.leases import Failure, LeaseService, fail, release
from app.workers.service import workers
from tests.support.factories import completion, fence, holding, submitted
from tests.support.sql import execute, value

GENERATION, RANKING = AgentType.GENERATION, AgentType.RANKING
_ADD_EVENTS = """
INSERT INTO events (kind, task_id, agent_type, seconds, quality, at)
SELECT $1, gen_random_uuid(), 'ranking', 2, $2, now() - make_interval(mins => $4::integer)
FROM generate_series(1, $3::integer)
"""


async def add_events(
    database: Database, count: int = 1, quality: float | None = None, kind: str = "task.completed", minutes_ago: int = 0
) -> None:
    await execute(database, _ADD_EVENTS, kind, quality, count, minutes_ago)


async def fold(database: Database) -> dict[str, Any]:
    async with database.transaction() as connection:
        return await performance.fold(connection)


async def stored(database: Database) -> StoredResults:
    async with database.transaction() as connection:
        return await store.read_results(connection)


async def last_results(database: Database, agent: AgentType = GENERATION) -> list[Result]:
    await fold(database)
    return list((await stored(database)).recent.get(agent, []))


async def rate(database: Database, *ratings: RatingInput, request_id: UUID | None = None) -> int:
    async with database.transaction() as connection:
        return await performance.record_ratings(connection, request_id or uuid4(), "someone", ratings)


async def complete_task(database: Database, desk: LeaseService, quality: float | None = None) -> UUID:
    """The id of a task that was just completed."""
    worker, lease = await holding(database)
    call = completion(worker, lease, quality=quality)
    await desk.complete(call)
    return lease.task_id


async def fail_task(database: Database, code: str) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code=code, message="no", retryable=False))


async def test_a_completion_carries_its_quality_to_the_agent(database: Database, desk: LeaseService) -> None:
    task_id = await complete_task(database, desk, 0.8)
    await complete_task(database, desk)
    first, second = await last_results(database)
    assert (first.task_id, first.quality, first.is_success) == (task_id, 0.8, True)
    assert (second.quality, second.is_success) == (None, True)
    assert first.seconds is not None
    assert await value(database, "SELECT quality FROM task_history WHERE id = $1", task_id) == 0.8


async def test_a_failure_counts_unless_it_came_from_outside(database: Database) -> None:
    await fail_task(database, "handler_error")
    await fail_task(database, "rate_limited")
    (result,) = await last_results(database)
    assert (result.is_success, result.quality) == (False, None)


async def test_a_released_task_and_a_lost_worker_say_nothing_of_the_agent(database: Database) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await release(connection, fence(worker, lease), "draining")
    other, _ = await holding(database)
    async with database.transaction() as connection:
        await workers.lose(connection, other, WorkerState.LOST, "silent")
    assert await last_results(database) == []


async def test_minutes_add_up(database: Database) -> None:
    await add_events(database, 2, 0.5)
    await add_events(database, 1)
    await fold(database)
    await add_events(database, 1, 0.0, "task.failed")
    await add_events(database, 3, 0.25, minutes_ago=10)
    await fold(database)
    assert await value(database, "SELECT count(*) FROM agent_minutes") == 2
    row = await value(
        database, "SELECT (results, successes, judged, quality, seconds) FROM agent_minutes ORDER BY minute DESC"
    )
    assert tuple(row) == (4, 3, 2, 1.0, 8.0)


async def test_nothing_is_counted_twice_and_only_the_last_are_remembered(database: Database) -> None:
    await add_events(database, 400)
    assert (await fold(database))["results"] == 400
    assert (await fold(database))["results"] == 0
    await add_events(database, 1, 0.5)
    await fold(database)
    results = await stored(database)
    assert results.total == 401
    assert len(results.recent[RANKING]) == MAX_RESULTS
    assert results.recent[RANKING][-1].quality == 0.5


async def test_what_is_not_committed_yet_is_counted_later(database: Database) -> None:
    async with database.engine.connect() as slow:
        await slow.exec_driver_sql(
            "INSERT INTO events (kind, task_id, agent_type) VALUES ('task.completed', gen_random_uuid(), 'ranking')"
        )
        await add_events(database)
        assert (await fold(database))["results"] == 0
        await slow.commit()
    assert (await fold(database))["results"] == 2


async def test_a_fold_that_is_cut_off_is_done_again(database: Database) -> None:
    await add_events(database, 3)
    async with database.engine.connect() as connection:
        await performance.fold(connection)
        await connection.rollback()
    assert (await stored(database)).total == 0
    assert (await fold(database))["results"] == 3
    assert (await stored(database)).total == 3


async def test_a_judgement_takes_the_place_of_what_the_worker_said(database: Database, desk: LeaseService) -> None:
    task_id = await complete_task(database, desk, 0.9)
    await rate(database, RatingInput(task_id=task_id, quality=0.2, basis="elo"))
    (result,) = await last_results(database)
    assert (result.task_id, result.quality) == (task_id, 0.2)
    await rate(database, RatingInput(task_id=task_id, quality=0.3))
    assert [result.quality for result in await last_results(database)] == [0.3]
    assert (await stored(database)).total == 3


async def test_a_judgement_waits_for_the_result_that_it_is_about(database: Database, desk: LeaseService) -> None:
    """An open transaction that writes events holds the result's back; the judgement must not overtake it."""
    async with database.engine.connect() as slow:
        await slow.exec_driver_sql("INSERT INTO events (kind) VALUES ('task.submitted')")
        task_id = await complete_task(database, desk)
        await rate(database, RatingInput(task_id=task_id, quality=0.7))
        assert await fold(database) == {"results": 0, "judgements": 0, "behind": False}
        await slow.rollback()
    assert [result.quality for result in await last_results(database)] == [0.7]


async def test_a_judgement_of_an_agent_is_one_more_result(database: Database) -> None:
    await rate(database, RatingInput(agent_type=RANKING, quality=0.4))
    (result,) = await last_results(database, RANKING)
    assert (result.task_id, result.is_success, result.quality) == (None, True, 0.4)


async def test_many_judgements_are_folded_over_several_turns_and_the_last_of_each_counts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once they took longer than a transaction may be idle, and so were tried again for ever."""
    monkeypatch.setattr(performance, "MAX_BATCHES", 2)
    await add_events(database, MAX_RESULTS)
    await fold(database)
    say = """
    INSERT INTO judgements (request_id, place, request_hash, agent_type, task_id, quality, judged_by)
    SELECT gen_random_uuid(), 1, '', 'ranking', task_id, $1, 'me'
    FROM every_event, generate_series(1, 16) WHERE kind = 'task.completed'
    """
    for quality in (0.1, 0.2, 0.3):
        await execute(database, say, quality)
    count = 16 * MAX_RESULTS
    assert [(await fold(database))["judgements"] for _ in range(3)] == [2 * count, count, 0]
    results = await stored(database)
    assert {result.quality for result in results.recent[RANKING]} == {0.3}
    assert results.total == MAX_RESULTS + 3 * count


async def test_the_same_request_counts_once(database: Database) -> None:
    request_id = uuid4()
    for _ in range(2):
        assert await rate(database, RatingInput(agent_type=RANKING, quality=0.4), request_id=request_id) == 1
    assert len(await last_results(database, RANKING)) == 1
    with pytest.raises(IdempotencyMismatch):
        await rate(database, RatingInput(agent_type=RANKING, quality=0.5), request_id=request_id)


async def test_a_judgement_needs_a_result(database: Database, desk: LeaseService) -> None:
    task_id = await complete_task(database, desk)
    (waiting,) = await submitted(database)
    with pytest.raises(TaskNotFound):
        await rate(database, RatingInput(task_id=task_id, quality=1.0), RatingInput(task_id=uuid4(), quality=1.0))
    with pytest.raises(TaskNotCompleted):
        await rate(database, RatingInput(task_id=waiting, quality=1.0))
    assert await value(database, "SELECT count(*) FROM judgements") == 0
