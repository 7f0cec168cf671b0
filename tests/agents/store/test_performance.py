"""The fold of results: batches between transactions, and reads from its mark only."""

import re
from datetime import timedelta

import pytest

from app.agents.store import performance, ratings
from app.db.database import Database
from app.kernel.agents import AgentType
from tests.support.sql import execute, value

_ADD_EVENTS = """
INSERT INTO events (kind, task_id, agent_type, seconds, quality, at)
SELECT $1, gen_random_uuid(), 'ranking', 2, 0.5, now() - make_interval(hours => $3)
FROM generate_series(1, $2::integer)
"""
_ADD_RATINGS = """
INSERT INTO judgements (request_id, place, request_hash, agent_type, task_id, quality, judged_by)
SELECT gen_random_uuid(), 1, '', 'ranking', gen_random_uuid(), 1, 'me' FROM generate_series(1, $1::integer)
"""
_RANKING = AgentType.RANKING


async def add_events(database: Database, count: int, kind: str = "task.completed", hours_ago: int = 0) -> None:
    await execute(database, _ADD_EVENTS, kind, count, hours_ago)


async def fold(database: Database, limit: int) -> performance.FoldedResults:
    async with database.transaction() as connection:
        return await performance.fold(connection, limit)


async def test_a_batch_ends_between_transactions_and_a_larger_one_is_taken_whole(database: Database) -> None:
    for count in (4, 4, 30, 2):
        await add_events(database, count)
    batches = [await fold(database, 10) for _ in range(5)]
    assert [batch.counts.get(_RANKING, 0) for batch in batches] == [8, 30, 2, 0, 0]
    assert [batch.has_more for batch in batches] == [True, True, False, False, False]
    assert await value(database, "SELECT sum(results) FROM agent_minutes") == 40


async def test_ratings_are_folded_in_batches_that_end_between_transactions(database: Database) -> None:
    await add_events(database, 1)
    for count in (4, 4, 30, 2):
        await execute(database, _ADD_RATINGS, count)
    await fold(database, 10)
    batches = []
    for _ in range(5):
        async with database.transaction() as connection:
            batches.append(len(await ratings.fold(connection, 10)))
    assert batches == [8, 30, 2, 0, 0]
    assert await value(database, "SELECT sum(judged) FROM agent_minutes") == 41


async def test_only_completions_and_failures_of_the_agent_are_results(database: Database) -> None:
    await add_events(database, 3, "task.retrying")
    expired = "INSERT INTO events (kind, task_id, agent_type) VALUES ('task.expired', gen_random_uuid(), 'ranking')"
    await execute(database, expired)
    batch = await fold(database, 100)
    assert batch.counts == {_RANKING: 3}
    assert [result.is_success for result in batch.last_results[_RANKING]] == [False] * 3


async def test_spans_add_up_over_hours_and_old_minutes_are_forgotten(database: Database) -> None:
    for hours in (0, 0, 5, 100):
        await add_events(database, 2, hours_ago=hours)
    await fold(database, 100)
    async with database.transaction() as connection:
        spans = await performance.spans(connection, timedelta(days=9), timedelta(hours=1), [_RANKING])
        assert [span.results for span in spans] == [2, 2, 4]
        assert spans[-1].quality == pytest.approx(2.0)
        assert await performance.spans(connection, timedelta(days=9), timedelta(hours=1), [AgentType.EVOLUTION]) == []
        assert await performance.prune(connection, 2) == 1
        spans = await performance.spans(connection, timedelta(days=9), timedelta(days=1))
        assert sum(span.results for span in spans) == 6


@pytest.mark.slow
async def test_the_folds_read_from_their_marks_only(own_database: Database) -> None:
    """Whatever the planner knows of the events and judgements, it must not walk through the old ones."""
    say = """
    INSERT INTO judgements (request_id, place, request_hash, agent_type, quality, judged_by)
    SELECT gen_random_uuid(), 1, '', 'ranking', 1, 'me' FROM generate_series(1, 20000)
    """
    for _ in range(5):
        await add_events(own_database, 10_000)
        await execute(own_database, say)
        await fold(own_database, 20_000)
        async with own_database.transaction() as connection:
            await ratings.fold(connection)
    await add_events(own_database, 100)
    for preparation in ("SELECT 1", "ANALYZE"):
        await execute(own_database, preparation)
        for statement in (
            performance._FOLD.text.replace(":limit", "20000").replace(":until", str(2**62)),
            ratings._FOLD.text.replace(":limit", "5000"),
        ):
            async with own_database.engine.connect() as connection:
                rows = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}")
                plan = "\n".join(row[0] for row in rows)
            assert not re.search(r"Seq Scan on (events|judgements)", plan), plan
            walked = re.findall(r"(?:events|judgements)\w* .*actual time=\S+ rows=(\d+)", plan)
            assert max(map(int, walked), default=0) <= 20_000, plan
