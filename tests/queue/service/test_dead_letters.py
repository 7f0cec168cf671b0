"""Dead letters go back into the queue whole, once, and in fair order, or are forgotten and leave a trace."""

import asyncio
import json
from collections import Counter
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.db.notify import News
from app.kernel.lanes import Priority
from app.queue.errors import DeadLetterNotFound, LeaseEnded, LeaseSuperseded, TaskFinished
from app.queue.service import dead_letters, tasks
from app.queue.service.leases import Failure, LeaseService, fail
from app.queue.store import dead_letters as store
from app.queue.store.listing import Selection
from tests.support.dead_letters import failed, fill
from tests.support.factories import completion, everything, fence, holding, leased, ready_worker, submission, submitted
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch, until_blocked, value

_ALL = Selection()


async def _requeue(database: Database, task_id: UUID, reason: str = "mended") -> None:
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, task_id, reason)


async def test_a_requeued_task_keeps_what_it_has_and_counts_failures_anew(database: Database) -> None:
    worker, lease = await holding(database, labels='{"team": "blue"}', payload=json.dumps({"big": 2**70}))
    await execute(database, """UPDATE tasks SET checkpoint = '{"step": 3}', progress = '{"percent": 30}'""")
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code="bad", message="no", retryable=False))
    before = await everything(database, lease.task_id)
    await _requeue(database, lease.task_id)
    after = await everything(database, lease.task_id)
    assert (after["state"], after["failures"], after["rescues"]) == ("pending", 0, 0)
    assert (after["worker_id"], after["leased_at"], after["finished_at"]) == (None, None, None)
    same = ("payload", "labels", "checkpoint", "progress", "error", "token", "created_at", "attempts", "goal_id")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (after["checkpoint"], len(after["attempts"])) == ({"step": 3}, 1)
    assert after["seq"] > before["seq"]
    assert await value(database, "SELECT count(*) FROM task_history") == 0
    again = await leased(database, await ready_worker(database))
    assert (again.task_id, again.attempt, json.loads(again.checkpoint or "")) == (lease.task_id, 1, {"step": 3})
    assert again.token > lease.token


async def test_it_may_come_back_with_another_priority(database: Database) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code="bad", message="no", retryable=False))
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, lease.task_id, "mended", priority=Priority.CRITICAL)
    task = await everything(database, lease.task_id)
    assert (task["state"], task["priority"], task["submitted_priority"]) == ("pending", Priority.CRITICAL, None)
    again = await leased(database, await ready_worker(database), priority=Priority.CRITICAL)
    assert again.task_id == lease.task_id


async def test_a_call_of_the_lease_that_failed_never_fits_the_next_one(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code="bad", message="no", retryable=False))
    await _requeue(database, lease.task_id)
    with pytest.raises(LeaseEnded):
        await desk.complete(completion(worker, lease))
    other = await ready_worker(database)
    await leased(database, other)
    with pytest.raises(LeaseSuperseded):
        await desk.complete(completion(worker, lease))
    assert (await everything(database, lease.task_id))["state"] == "executing"


async def test_a_requeue_is_an_event(database: Database) -> None:
    task_id, lease = await failed(database)
    heard: list[News] = []
    database.announcer.subscribe(heard.append)
    await _requeue(database, task_id, "mended the prompt")
    (event,) = await fetch(database, "SELECT * FROM every_event WHERE kind = 'task.requeued'")
    assert (event["task_id"], event["goal_id"], event["priority"]) == (task_id, "goal", 2)
    assert (event["token"], json.loads(event["detail"])) == (lease.token, {"reason": "mended the prompt"})
    assert {topic for news in heard for topic in news} == {"events", "work:generation:2"}


async def test_what_is_live_again_stays_as_it_is(database: Database) -> None:
    task_id, _ = await failed(database)
    for _ in range(3):
        await _requeue(database, task_id)
    worker = await ready_worker(database)
    await leased(database, worker)
    await _requeue(database, task_id)
    assert (await everything(database, task_id))["worker_id"] == worker
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.requeued'") == 1


async def test_only_failed_tasks_are_dead_letters(database: Database, desk: LeaseService) -> None:
    with pytest.raises(DeadLetterNotFound):
        await _requeue(database, uuid4())
    (cancelled,) = await submitted(database)
    async with database.transaction() as connection:
        await tasks.cancel(connection, cancelled, "no more")
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    for task_id in (cancelled, lease.task_id):
        with pytest.raises(TaskFinished):
            await _requeue(database, task_id)
        async with database.transaction() as connection:
            with pytest.raises(DeadLetterNotFound):
                await dead_letters.read(connection, task_id)
    preview = await dead_letters.purge(database, _ALL, limit=10, reason="", dry_run=True)
    assert preview == dead_letters.BulkResult(matching_count=0, processed_count=0)
    assert (await dead_letters.purge(database, _ALL, limit=10, reason="")).processed_count == 0
    assert await value(database, "SELECT count(*) FROM task_history") == 2


async def test_of_two_requeues_one_wins_and_the_other_finds_the_task_in_the_queue(database: Database) -> None:
    task_id, _ = await failed(database)
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, task_id, "first")
        second = asyncio.create_task(_requeue(database, task_id, "second"))
        await until_blocked(database)
    await second
    assert (await everything(database, task_id))["state"] == "pending"
    told = await fetch(database, "SELECT detail ->> 'reason' AS reason FROM every_event WHERE kind = 'task.requeued'")
    assert [row["reason"] for row in told] == ["first"]


async def test_a_requeue_that_waited_for_one_that_came_to_nothing_wins(database: Database) -> None:
    task_id, _ = await failed(database)
    async with database.engine.connect() as connection:
        await dead_letters.requeue(connection, task_id, "first")
        second = asyncio.create_task(_requeue(database, task_id, "second"))
        await until_blocked(database)
        await connection.rollback()
    await second
    assert (await everything(database, task_id))["state"] == "pending"


async def test_a_submit_of_the_same_id_during_a_requeue_finds_one_task(database: Database) -> None:
    chosen = uuid4()
    task_id, _ = await failed(database, id=chosen)
    async with database.transaction() as connection:
        await dead_letters.requeue(connection, task_id, "mended")

        async def submit() -> tasks.Submitted:
            async with database.transaction() as other:
                return (await tasks.submit(other, [submission(id=chosen)]))[0]

        second = asyncio.create_task(submit())
        await until_blocked(database)
    assert not (await second).created
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert await value(database, "SELECT count(*) FROM task_history") == 0


async def test_many_go_back_in_batches_each_exactly_once(database: Database) -> None:
    letters = await fill(database, 2300)
    first, second = await asyncio.gather(
        dead_letters.requeue_many(database, _ALL, limit=10_000, reason="mended"),
        dead_letters.requeue_many(database, _ALL, limit=10_000, reason="mended"),
    )
    assert first.processed_count + second.processed_count == 2300
    rows = await fetch(database, "SELECT id FROM tasks ORDER BY seq")
    assert {row["id"] for row in rows} == set(letters)
    assert await value(database, "SELECT count(*) FROM task_history") == 0
    assert await value(database, "SELECT count(DISTINCT task_id) FROM every_event WHERE kind = 'task.requeued'") == 2300
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.requeued'") == 2300


async def test_a_call_ends_at_its_limit_and_says_what_is_left(database: Database) -> None:
    letters = await fill(database, 1500)
    outcome = await dead_letters.requeue_many(database, _ALL, limit=1200, reason="mended")
    assert (outcome.matching_count, outcome.processed_count, outcome.remaining) == (1500, 1200, 300)
    rows = await fetch(database, "SELECT id FROM tasks ORDER BY seq")
    assert [row["id"] for row in rows] == letters[:1200]
    outcome = await dead_letters.requeue_many(database, _ALL, limit=1200, reason="mended")
    assert (outcome.matching_count, outcome.processed_count, outcome.remaining) == (300, 300, 0)


async def test_goals_share_the_lane_after_a_requeue_of_many(database: Database) -> None:
    """From where the lane stands now, one step a task, over the bounds of batches; a goal of weight 2 in half steps."""
    await execute(database, "INSERT INTO lanes VALUES ('generation', 2, 500)")
    await execute(database, "INSERT INTO goals (id, weight) VALUES ('heavy', 2)")
    await fill(database, 1200, goal_id="many")
    await fill(database, 3, goal_id="heavy")
    await fill(database, 2, goal_id=None)
    await dead_letters.requeue_many(database, _ALL, limit=10_000, reason="mended")
    rows = await fetch(database, "SELECT goal_id, array_agg(tag ORDER BY seq) AS tags FROM tasks GROUP BY goal_id")
    tags = {row["goal_id"]: row["tags"] for row in rows}
    assert tags["many"] == [500.0 + n for n in range(1, 1201)]
    assert tags["heavy"] == [500.5, 501.0, 501.5]
    assert tags[None] == [501.0, 502.0]


async def test_a_filter_moves_what_it_names_and_nothing_else(database: Database) -> None:
    await fill(database, 3, goal_id="a", code="llm_timeout", labels='{"team": "blue", "run": "7"}')
    await fill(database, 2, goal_id="a", labels='{"team": "blue"}')
    await fill(database, 4, goal_id="b", code="llm_timeout")
    await fill(database, 5, state="cancelled", goal_id="a", code="llm_timeout")
    for selection, count in (
        (Selection(code="llm_timeout"), 7),
        (Selection(goal_id="a"), 5),
        (Selection(labels=[("team", "blue"), ("run", "7")]), 3),
        (Selection(labels=[("team", "blue"), ("team", "red")]), 0),
        (Selection(goal_id="a", code="llm_timeout"), 3),
    ):
        preview = await dead_letters.purge(database, selection, limit=10, reason="", dry_run=True)
        assert preview.matching_count == count, selection
    outcome = await dead_letters.requeue_many(database, Selection(goal_id="a", code="llm_timeout"), limit=9, reason="")
    assert (outcome.matching_count, outcome.processed_count) == (3, 3)
    left = await fetch(database, "SELECT goal_id, state FROM task_history")
    assert Counter(map(tuple, left)) == {("a", "failed"): 2, ("b", "failed"): 4, ("a", "cancelled"): 5}


async def test_what_is_purged_leaves_an_event_and_nothing_else(database: Database) -> None:
    task_id, lease = await failed(database, code="unsafe")
    kept, _ = await failed(database)
    outcome = await dead_letters.purge(database, Selection(code="unsafe"), limit=10, reason="tidying up")
    assert (outcome.matching_count, outcome.processed_count, outcome.remaining) == (1, 1, 0)
    assert [row["id"] for row in await fetch(database, "SELECT id FROM task_history")] == [kept]
    assert [row["task_id"] for row in await fetch(database, "SELECT task_id FROM task_attempts")] == [kept]
    (event,) = await fetch(database, "SELECT * FROM every_event WHERE kind = 'task.purged'")
    assert (event["task_id"], event["token"]) == (task_id, lease.token)
    assert json.loads(event["detail"]) == {"reason": "tidying up", "code": "unsafe"}


async def test_a_letter_is_either_requeued_or_purged(database: Database) -> None:
    task_id, _ = await failed(database)
    async with database.transaction() as connection:
        letter = await store.find_one(connection, task_id)
        assert letter is not None
        assert await store.requeue(connection, [letter], "mended") == 1
        purging = asyncio.create_task(dead_letters.purge(database, _ALL, limit=10, reason=""))
        await until_blocked(database)
    assert (await purging).processed_count == 0
    assert (await everything(database, task_id))["state"] == "pending"


async def test_dependents_that_were_cancelled_stay_so(database: Database) -> None:
    worker, lease = await holding(database)
    (dependent,) = await submitted(database, depends_on=[lease.task_id])
    async with database.transaction() as connection:
        await fail(connection, fence(worker, lease), Failure(code="bad", message="no", retryable=False))
    await _requeue(database, lease.task_id)
    assert (await everything(database, dependent))["state"] == "cancelled"


@pytest.mark.parametrize("act", ["requeue", "purge"])
async def test_a_batch_reads_no_other_dead_letters(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Each thousand was found by a walk over all 100,000: as many pages, and 3.5 s."""
    await execute(
        own_database,
        """DO $do$ DECLARE day date; BEGIN
            FOR step IN 1..30 LOOP
                day := (now() AT TIME ZONE 'UTC')::date - step;
                EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF task_history FOR VALUES FROM (%L) TO (%L)',
                               'task_history_' || to_char(day, 'YYYYMMDD'), day || ' 00:00+00', day + 1 || ' 00:00+00');
            END LOOP;
        END $do$""",
    )
    await execute(
        own_database,
        """INSERT INTO task_history (id, state, agent_type, goal_id, priority, payload, labels, max_attempts,
                                     retry_delays, request_hash, created_at, seq, finished_at)
           SELECT gen_random_uuid(), 'failed', 'ranking', 'goal-' || n % 100, 2, '{}', '{}', 3, '{}', '', now(), n,
                  now() - (30000 - n) * interval '85 s'
           FROM generate_series(1, 30000) n""",
    )
    await execute(
        own_database, "INSERT INTO goals (id, state) SELECT 'goal-' || n, 'stopped' FROM generate_series(1, 90) n"
    )
    await execute(own_database, "VACUUM ANALYZE task_history, goals")
    async with own_database.transaction() as connection:
        letters = await store.find(connection, Selection(), 500, may_run=True)
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            assert await getattr(store, act)(connection, letters, "test") == 500
        cost = log.take()
    assert 500 < cost.rows < 40 * 500


async def test_letters_of_which_none_matches_are_read_once(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted first; to look for them as well took 3 s of 300,000."""
    await fill(own_database, 300)
    async with explained_database(own_database, monkeypatch) as (database, log):
        for _ in range(2):  # the first asks for the types of values
            log.take()
            await dead_letters.requeue_many(database, Selection(code="none"), limit=10, reason="")
        cost = log.take()
    assert 300 <= cost.rows < 500
