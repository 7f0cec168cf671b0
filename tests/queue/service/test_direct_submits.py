"""Submits by one statement: they leave what others leave, and hand over wherever something has to be looked at."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.db import hot_path, notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane, Priority
from app.queue.errors import GoalStopped, IdempotencyMismatch, QueueFull, SubmitInFlight
from app.queue.rules.admission import CapacityPolicy
from app.queue.service import direct_submits, tasks
from app.queue.service.admission import Admission
from app.queue.service.submits import SubmitService
from app.queue.service.tasks import Intake, Submitted
from app.queue.store import completions, counters
from app.queue.store.claims import Lease
from app.queue.store.lanes import TagIssuer
from app.queue.store.new_tasks import NewTask, insert_at_gate, reserve_keys
from tests.goals.service.budgeted_goals import create_goal, pause, phases, stop
from tests.support.factories import GENERATION, completion, leased, ready_worker, submission, submitted
from tests.support.plans import explained, explaining
from tests.support.sql import execute, fetch, until_blocked, value

_ALL = dict.fromkeys(Priority, 1.0)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known stays so for longer than a slow machine takes for a test."""
    monkeypatch.setattr("app.queue.service.admission._FRESH_DEPTH_SECONDS", 60.0)
    monkeypatch.setattr("app.queue.store.lanes._FRESH_SECONDS", 60.0)


def _intake(most: int = 1000, **terms: Any) -> Intake:
    return Intake(admission=Admission(CapacityPolicy(max_queue_size=most, quotas=_ALL)), **terms)


async def _directly(database: Database, intake: Intake, count: int = 1, **changes: Any) -> list[Submitted] | None:
    return await direct_submits.submit(database, [submission(**changes) for _ in range(count)], intake)


# A row of `tasks` waits for a lock after its statement has passed the gates.
_SLOW_INSERT = """
CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN NEW;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION wait_for_the_test();
"""


async def _known(database: Database, intake: Intake, **changes: Any) -> None:
    """Submit a task in the usual way, after which this process knows the queue and the flow for a second."""
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(**changes)], intake)


async def test_it_leaves_what_the_usual_way_leaves(database: Database) -> None:
    intake, later = _intake(), datetime.now(UTC) + timedelta(hours=1)
    bodies: list[dict[str, Any]] = [
        {"payload": '{"b": 1, "a": 2}', "labels": '{"kind": "x"}'},
        {"priority": Priority.HIGH, "timeout_seconds": None, "trace_context": "00-1-2-01"},
        {"agent_type": AgentType.RANKING, "goal_id": None, "run_at": later},
        {"agent_type": AgentType.RANKING, "goal_id": None, "payload": '{"n": 1e400}'},
    ]
    wanted = [submission(**body) for body in bodies]
    async with database.transaction() as connection:
        await tasks.submit(connection, wanted, intake)
    done = await direct_submits.submit(database, wanted, intake)
    assert done is not None
    assert [(task.state, task.created) for task in done] == [("pending", True)] * 4
    rows = [dict(row) for row in await fetch(database, "SELECT * FROM tasks ORDER BY seq")]
    assert [row["id"] for row in rows[4:]] == [task.id for task in done]
    for usual, direct in zip(rows[:4], rows[4:], strict=True):
        assert direct.pop("tag") > usual.pop("tag")
        own = {"id", "seq", "created_at", "waiting_since"}
        assert {k: v for k, v in direct.items() if k not in own} == {k: v for k, v in usual.items() if k not in own}
    events = "SELECT kind, agent_type, goal_id, priority, task_id FROM every_event ORDER BY transaction, seq"
    logged = [tuple(row) for row in await fetch(database, events)]
    assert [row[:4] for row in logged[4:]] == [row[:4] for row in logged[:4]]
    assert [row[4] for row in logged] == [row["id"] for row in rows]
    async with database.transaction() as connection:
        assert sum(count.tasks for count in await counters.read(connection)) == 8
        assert await counters.differences(connection) == []


async def _complete(database: Database, worker_id: WorkerId, held: Lease) -> bool:
    call = completion(worker_id, held)
    return bool(await hot_path.run(database, lambda connection: completions.complete(connection, [call])))


async def test_so_does_one_with_an_id_or_a_key(database: Database) -> None:
    intake = _intake()
    for names in (("a", "b"), (None, None)):
        first, second = (
            submission(idempotency_key=name, id=None if name else uuid4(), payload='{"b": 1}') for name in names
        )
        async with database.transaction() as connection:
            await tasks.submit(connection, [first], intake)
        assert all(await direct_submits.submit_each(database, [second], intake))
    rows = [dict(row) for row in await fetch(database, "SELECT * FROM tasks ORDER BY seq")]
    own = {"id", "seq", "created_at", "waiting_since", "tag", "idempotency_key"}
    for usual, direct in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert {k: v for k, v in direct.items() if k not in own} == {k: v for k, v in usual.items() if k not in own}
        assert direct["request_hash"]
    assert [row["idempotency_key"] for row in rows] == ["a", "b", None, None]
    assert rows[1]["id"] == tasks.identity(submission(idempotency_key="b"))
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.submitted'") == 4


async def test_ids_that_are_not_new_are_left_out_wherever_their_tasks_are(database: Database) -> None:
    intake = _intake()
    worker_id = await ready_worker(database)
    (done,) = await direct_submits.submit_each(database, [submission(idempotency_key="done")], intake)
    held = await leased(database, worker_id)
    assert done is not None
    assert held.task_id == done.id
    assert await _complete(database, worker_id, held)
    calls = [submission(idempotency_key=key) for key in ("done", "waiting", "new")]
    assert await direct_submits.submit_each(database, calls[1:2], intake) != [None]
    first, second, third = await direct_submits.submit_each(database, calls, intake)
    assert first is second is None
    assert third is not None
    service = SubmitService(database, intake)
    answers = await asyncio.gather(*map(service.submit, calls))
    assert [answer.created for answer in answers] == [False, False, False]
    assert [answer.state for answer in answers] == ["completed", "pending", "pending"]
    with pytest.raises(IdempotencyMismatch):
        await service.submit(submission(idempotency_key="new", payload='{"other": 1}'))
    assert await value(database, "SELECT count(*) FROM tasks") == 2


async def test_a_key_that_another_submit_is_about_keeps_no_other_waiting(database: Database, replica: Database) -> None:
    intake = _intake()
    mine, other = submission(idempotency_key="mine"), submission(idempotency_key="other")
    async with replica.transaction() as connection:
        assert await reserve_keys(connection, [str(tasks.identity(mine))])
        first, second = await direct_submits.submit_each(database, [mine, other], intake)
        assert first is None
        assert second is not None
        with pytest.raises(SubmitInFlight):
            await SubmitService(database, intake).submit(mine)
    assert (await SubmitService(database, intake).submit(mine)).created


async def test_a_task_that_finishes_after_the_statement_has_begun_is_not_made_again(own_database: Database) -> None:
    """The statement does not see its row in history yet, and meets nothing in the way any more."""
    intake, other = _intake(), Database(own_database.url)
    worker_id = await ready_worker(own_database)
    call = submission(idempotency_key="mine")
    assert all(await direct_submits.submit_each(own_database, [call], intake))
    held = await leased(own_database, worker_id)
    await execute(own_database, _SLOW_INSERT)
    async with other.transaction() as blocker:
        await blocker.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        again = asyncio.create_task(SubmitService(own_database, intake).submit(call))
        await until_blocked(own_database)
        assert await _complete(other, worker_id, held)
    answer = await again
    assert (answer.id, answer.state, answer.created) == (held.task_id, "completed", False)
    assert await value(own_database, "SELECT count(*) FROM tasks") == 0
    assert await value(own_database, "SELECT count(*) FROM task_history") == 1
    assert await value(own_database, "SELECT count(*) FROM every_event WHERE kind = 'task.submitted'") == 1
    async with own_database.transaction() as connection:
        assert await counters.differences(connection) == []
    await other.close()


async def test_it_is_one_statement_whatever_the_batch(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by itself, and no trigger has to: its function would be statements of its own."""
    await explaining(own_database, "auto")
    intake = _intake(100_000)
    with explained(monkeypatch) as log:
        for count in (1, 8, 64, 256):
            await _known(own_database, intake)
            await _directly(own_database, intake)  # a new connection looks at types
            log.take()
            assert len(await _directly(own_database, intake, count) or ()) == count
            # The other one is that of the number under which its events are read.
            assert log.take().statements <= 2


async def test_others_hear_of_its_tasks_after_the_commit(database: Database) -> None:
    heard: list[dict[str, float]] = []

    def hear(news: Mapping[str, float]) -> None:
        heard.append(dict(news))

    intake = _intake(on_submitted=lambda agents: [notify.BURST] if len(agents) == 2 else [])
    await _known(database, intake)
    database.announcer.subscribe(hear)
    done = await _directly(database, intake, 2)
    assert done is not None
    tag = await value(database, "SELECT tag FROM tasks WHERE id = $1", done[0].id)
    assert heard == [{notify.EVENTS: 0.0, notify.work(GENERATION): tag, notify.BURST: 0.0}]


_OTHERWISE: list[dict[str, Any]] = [
    {"id": uuid4()},
    {"idempotency_key": "mine"},
    {"depends_on": (uuid4(),)},
    {"deadline": datetime.now(UTC) + timedelta(hours=1)},
    {"resources": '{"cpu": 2}'},
]


@pytest.mark.parametrize("changes", _OTHERWISE, ids=lambda changes: next(iter(changes)))
async def test_what_needs_a_look_goes_the_usual_way(database: Database, changes: dict[str, Any]) -> None:
    intake = _intake()
    await _known(database, intake)
    assert await _directly(database, intake, **changes) is None
    assert await value(database, "SELECT count(*) FROM tasks") == 1


async def test_so_does_everything_where_duplicates_are_looked_for(database: Database) -> None:
    intake = _intake(duplicate_window_seconds=60)
    await _known(database, intake)
    assert await _directly(database, intake) is None


async def _last_tag(database: Database) -> float:
    tag: float = await value(database, "SELECT tag FROM tasks ORDER BY seq DESC LIMIT 1")
    return tag


async def test_a_flow_that_is_not_known_is_read_first(database: Database, replica: Database) -> None:
    for changes in ({}, {"goal_id": "another"}, {"agent_type": AgentType.RANKING}, {"goal_id": None}):
        assert await _directly(replica, _intake(), 3, **changes)
        last_tag = await _last_tag(database)
        assert await _directly(database, _intake(), **changes)
        assert await _last_tag(database) == last_tag + 1, "behind those that another process has submitted"


async def test_what_is_known_for_longer_than_a_second_is_read_again(
    database: Database, replica: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = _intake(100)
    assert await _directly(database, intake)
    assert await _directly(replica, _intake(100), 9)
    last_tag = await _last_tag(database)
    assert await _directly(database, intake)
    assert await _last_tag(database) < last_tag, "not known yet"
    monkeypatch.setattr("app.queue.store.lanes._FRESH_SECONDS", 0.0)
    assert await _directly(database, intake)
    assert await _last_tag(database) == last_tag + 1
    await submitted(replica, 45)
    assert await _directly(database, intake), "not known yet"
    monkeypatch.setattr("app.queue.service.admission._FRESH_DEPTH_SECONDS", 0.0)
    assert await _directly(database, intake) is None, "more than half full"


async def _pause_and_stop(database: Database) -> None:
    """Pause the goal `goal`, and have one that has stopped."""
    await create_goal(database)
    await pause(database)
    await execute(database, "INSERT INTO goals (id, state) VALUES ('stopped', 'stopped')")


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tasks of all statements."""
    sizes: list[int] = []

    async def counted(connection: Any, new_tasks: Sequence[NewTask], *rest: Any, **terms: Any) -> Any:
        sizes.append(len(new_tasks))
        return await insert_at_gate(connection, new_tasks, *rest, **terms)

    monkeypatch.setattr(direct_submits, "insert_at_gate", counted)
    return sizes


async def test_of_calls_that_come_together_only_those_of_a_held_goal_are_left_out(database: Database) -> None:
    intake = _intake()
    await _pause_and_stop(database)
    heard: list[dict[str, float]] = []
    database.announcer.subscribe(lambda news: heard.append(dict(news)))
    calls = [
        submission(goal_id="goal"),
        submission(goal_id="free"),
        submission(goal_id="stopped"),
        submission(goal_id=None),
        submission(goal_id="goal", agent_type=AgentType.RANKING),
        submission(goal_id="free"),
    ]
    first, second, third, fourth, fifth, sixth = await direct_submits.submit_each(database, calls, intake)
    assert first is third is fifth is None
    assert second is not None
    assert fourth is not None
    assert sixth is not None
    rows = await fetch(database, "SELECT id, goal_id, tag FROM tasks ORDER BY seq")
    assert [row["id"] for row in rows] == [second.id, fourth.id, sixth.id]
    assert heard == [{notify.EVENTS: 0.0, notify.work(GENERATION): min(row["tag"] for row in rows)}]
    lane = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)
    issuer = database.shared(TagIssuer)
    assert issuer.issue((lane, "goal"), 1).first == 1.0, "its tag was given back"
    assert issuer.issue((lane, "free"), 1).first == 3.0
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []


async def test_calls_of_many_goals_share_a_statement_and_each_has_its_own_answer(
    database: Database, batch_sizes: list[int]
) -> None:
    intake = _intake()
    await _pause_and_stop(database)
    service = SubmitService(database, intake)
    goals = ["goal", "stopped", *(f"goal-{number}" for number in range(60))]
    answers = await asyncio.gather(
        *(service.submit(submission(goal_id=goal)) for goal in goals), return_exceptions=True
    )
    assert isinstance(answers[1], GoalStopped)
    assert all(isinstance(answer, Submitted) for place, answer in enumerate(answers) if place != 1)
    assert await phases(database) == {"held": 1, "pending": 60}
    assert batch_sizes == [62]


async def test_no_small_task_waits_for_a_large_one(database: Database, batch_sizes: list[int]) -> None:
    service, large = SubmitService(database, _intake()), '{"a": "' + "x" * 70_000 + '"}'
    calls = [submission(goal_id=goal, payload=large if goal == "a" else "{}") for goal in "abc"]
    assert all(answer.created for answer in await asyncio.gather(*map(service.submit, calls)))
    assert sorted(batch_sizes) == [1, 2]


async def test_a_goal_whose_hold_is_being_changed_keeps_no_other_waiting(database: Database, replica: Database) -> None:
    service = SubmitService(database, _intake())
    await create_goal(database)
    await pause(database)
    async with replica.transaction() as connection:
        await connection.exec_driver_sql("SELECT FROM holds WHERE goal_id = 'goal' FOR UPDATE")
        waiting = asyncio.create_task(service.submit(submission(goal_id="goal")))
        await until_blocked(database)
        assert (await service.submit(submission(goal_id="other"))).created
        assert not waiting.done()
    assert (await waiting).created


async def test_behind_a_pooler_a_transaction_has_the_limits(database: Database) -> None:
    intake, pooled = _intake(), Database(database.url, direct_url=database.url)
    await _known(pooled, intake)
    assert await _directly(pooled, intake) is None
    assert (await SubmitService(pooled, intake).submit(submission())).created
    await pooled.close()


async def test_near_full_tasks_are_counted_exactly(database: Database) -> None:
    """Of room for 100, half is given by the estimate, and a tenth between two looks at the depth."""
    intake = _intake(100)
    await _known(database, intake)
    assert await _directly(database, intake, 9)
    assert await _directly(database, intake, 2) is None
    await submitted(database, 45)
    intake = _intake(100)
    await _known(database, intake)
    assert await _directly(database, intake) is None


async def test_a_goal_that_is_held_or_has_stopped_is_asked_for(database: Database) -> None:
    intake = _intake()
    await create_goal(database)
    await _known(database, intake)
    await _known(database, intake, goal_id="other")
    await pause(database)
    assert await _directly(database, intake) is None
    assert await _directly(database, intake, goal_id="other"), "others are free to go"
    await stop(database)
    assert await _directly(database, intake) is None
    await execute(database, "DELETE FROM holds")
    assert await _directly(database, intake) is None
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'pending' AND goal_id = 'other'") == 2


async def test_nothing_is_left_where_somebody_has_passed_the_gate_alone(database: Database, replica: Database) -> None:
    intake = _intake()
    await _known(database, intake)
    async with replica.transaction() as connection:
        await counters.enter_alone(connection)
    before = await value(database, "SELECT count(*) FROM events")
    assert await _directly(database, intake) is None
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert await value(database, "SELECT count(*) FROM events") == before
    assert await phases(database) == {"pending": 1}
    assert len(intake.admission._tickets) == 1, "the one before"  # type: ignore[union-attr]
    assert (await SubmitService(database, intake).submit(submission())).created, "it goes the usual way by itself"
    assert await _directly(database, intake), "and knows the queue anew"
    tags = [row["tag"] for row in await fetch(database, "SELECT tag FROM tasks ORDER BY seq")]
    assert tags[1] - tags[0] == tags[2] - tags[1], "the tags of the one in vain were given to the next"


async def test_it_waits_for_who_is_alone_at_the_gate_and_does_not_go_by_what_was_before(
    database: Database, replica: Database
) -> None:
    """Room for 20 tasks: another process fills it while the submit waits, which by its estimate had room."""
    intake = _intake(20)
    await _known(database, intake)
    async with replica.transaction() as connection:
        await counters.enter_alone(connection)
        waiting = asyncio.create_task(_directly(database, intake))
        await until_blocked(database)
        # As many as there is room for, in the transaction that is alone.
        await tasks.submit(connection, [submission() for _ in range(19)])
    assert await waiting is None
    assert await value(database, "SELECT count(*) FROM tasks") == 20


async def test_who_counts_exactly_waits_for_it(own_database: Database) -> None:
    """What it inserts is not committed yet, and has to be counted."""
    intake, other = _intake(20), Database(own_database.url)
    await _known(own_database, intake)
    await execute(own_database, _SLOW_INSERT)
    async with other.transaction() as blocker:
        await blocker.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        inserting = asyncio.create_task(_directly(own_database, intake, goal_id="goal"))
        await until_blocked(own_database)
        exact = asyncio.create_task(SubmitService(other, _intake(20)).submit_batch([submission()] * 19))
        await until_blocked(own_database, 2)
    assert await inserting
    with pytest.raises(QueueFull):
        await exact
    assert await value(own_database, "SELECT count(*) FROM tasks") == 2
    await other.close()


async def test_tags_and_room_are_given_back_where_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = _intake()
    await _known(database, intake)

    async def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(hot_path, "run", away)
    issuer = database.shared(TagIssuer)
    flow = (Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM), "goal")
    next_tag = issuer.issue(flow, 1)
    issuer.take_back({flow: next_tag})
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await _directly(database, intake, 40)
    assert issuer.issue(flow, 1) == next_tag
    assert all(ticket.ended_at is not None for ticket in intake.admission._tickets)  # type: ignore[union-attr]


async def test_where_its_connections_are_in_use_those_of_transactions_serve(database: Database) -> None:
    intake = _intake()
    await _known(database, intake)
    pool = await database.submits.open()
    held = [await pool.acquire() for _ in range(database.submits.size)]
    assert await _directly(database, intake) is None
    assert (await SubmitService(database, intake).submit(submission())).created
    await pool.release(held.pop())
    assert await _directly(database, intake)
    for connection in held:
        await pool.release(connection)
