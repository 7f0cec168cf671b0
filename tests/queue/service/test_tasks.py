"""What the Supervisor does: submit all or nothing, read, cancel."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.errors import TaskConflict, TaskFinished, TaskNotFound
from app.queue.rules.tasks import RetryPolicy
from app.queue.service import tasks
from app.queue.service.leases import LeaseService
from app.queue.service.tasks import Submitted
from app.queue.store.event_tables import EVENTS_IN_A_ROW
from tests.support.factories import completion, everything, holding, leased, ready_worker, submission, submitted
from tests.support.sql import fetch, value

_LATER = datetime(2100, 1, 1, tzinfo=UTC)


async def test_a_task_is_kept_as_it_was_submitted(connection: AsyncConnection) -> None:
    wanted = submission(
        agent_type=AgentType.EVOLUTION,
        goal_id="kepler",
        priority=Priority.CRITICAL,
        payload='{"deep":{"list":[1,2.5,null,"ü"]}}',
        labels='{"a":"b"}',
        timeout_seconds=7.5,
        deadline=_LATER,
        run_at=_LATER,
        retry=RetryPolicy(max_attempts=9, delays_seconds=(0.5, 1e-05)),
        trace_context="00-1-2-01",
    )
    task_id = (await tasks.submit(connection, [wanted]))[0].id
    task = await tasks.read(connection, task_id)
    assert (task["state"], task["agent_type"], task["goal_id"], task["priority"]) == (
        "pending",
        "evolution",
        "kepler",
        4,
    )
    assert (task["payload"], task["labels"]) == ({"deep": {"list": [1, 2.5, None, "ü"]}}, {"a": "b"})
    assert (task["timeout_seconds"], task["deadline"], task["run_at"]) == (7.5, _LATER, _LATER)
    assert (task["max_attempts"], task["failures"], task["token"], task["attempts"]) == (9, 0, 0, [])


async def test_a_time_to_run_that_has_passed_is_now(connection: AsyncConnection) -> None:
    past = datetime.fromtimestamp(0, UTC)
    task_id = (await tasks.submit(connection, [submission(run_at=past)]))[0].id
    assert (await tasks.read(connection, task_id))["run_at"] is None


async def test_a_batch_is_queued_in_its_order(database: Database) -> None:
    ids = await submitted(database, 50)
    rows = await fetch(database, "SELECT id FROM tasks ORDER BY seq")
    assert [row["id"] for row in rows] == ids
    events = await fetch(database, "SELECT task_id FROM every_event WHERE kind = 'task.submitted' ORDER BY seq")
    assert [row["task_id"] for row in events] == ids


@pytest.mark.parametrize("boundary", range(1, 9))
async def test_a_batch_that_needs_several_rows_of_events_is_in_them_in_its_order(
    database: Database, boundary: int
) -> None:
    just_before = boundary * (EVENTS_IN_A_ROW // 2) - 3
    await fetch(database, f"SELECT setval(pg_get_serial_sequence('tasks', 'seq'), {just_before})")
    ids = await submitted(database, 6)
    events = await fetch(
        database, "SELECT task_id, row_seq FROM every_event WHERE kind = 'task.submitted' ORDER BY seq"
    )
    assert [row["task_id"] for row in events] == ids
    assert len({row["row_seq"] for row in events}) == 2


async def test_all_of_a_batch_or_nothing(database: Database) -> None:
    chosen = uuid4()
    await submitted(database, id=chosen)
    batch = [submission(), submission(id=chosen, goal_id="another"), submission()]
    with pytest.raises(TaskConflict):
        async with database.transaction() as connection:
            await tasks.submit(connection, batch)
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert await value(database, "SELECT count(*) FROM every_event") == 1


async def test_a_chosen_id_with_the_same_body_is_the_same_task(connection: AsyncConnection) -> None:
    wanted = submission(id=uuid4(), payload='{"a":1,"b":2}', labels='{"x":"1","y":"2"}')
    same = replace(wanted, payload='{"b": 2, "a": 1}', labels='{"y":"2","x":"1"}')
    first = await tasks.submit(connection, [wanted])
    again = await tasks.submit(connection, [same])
    assert (first[0].created, again[0].created) == (True, False)
    assert first[0].id == again[0].id == wanted.id


@pytest.mark.parametrize(
    "change",
    [
        {"agent_type": AgentType.RANKING},
        {"goal_id": None},
        {"priority": Priority.LOW},
        {"payload": '{"n":2}'},
        {"labels": '{"n":"2"}'},
        {"timeout_seconds": 61.0},
        {"deadline": _LATER},
        {"run_at": _LATER},
        {"retry": RetryPolicy(max_attempts=4, delays_seconds=(0.0,))},
        {"retry": RetryPolicy(delays_seconds=(1.0,))},
        {"trace_context": "00-1-2-01"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_chosen_id_with_another_body_is_refused(connection: AsyncConnection, change: dict[str, object]) -> None:
    task_id = uuid4()
    await tasks.submit(connection, [submission(id=task_id)])
    with pytest.raises(TaskConflict):
        await tasks.submit(connection, [submission(id=task_id, **change)])


async def test_an_id_twice_in_a_batch_is_one_task_if_the_bodies_agree(connection: AsyncConnection) -> None:
    task_id = uuid4()
    both = await tasks.submit(connection, [submission(id=task_id), submission(id=task_id)])
    assert both == [Submitted(id=task_id, state=TaskState.PENDING, created=True)]
    with pytest.raises(TaskConflict):
        await tasks.submit(
            connection, [submission(id=uuid4()), submission(id=(i := uuid4())), submission(id=i, goal_id="x")]
        )


async def test_the_id_of_a_finished_task_is_taken(database: Database, desk: LeaseService) -> None:
    chosen = uuid4()
    worker, lease = await holding(database, id=chosen)
    await desk.complete(completion(worker, lease))
    async with database.transaction() as connection:
        again = await tasks.submit(connection, [submission(id=chosen)])
        assert again == [Submitted(id=chosen, state=TaskState.COMPLETED, created=False)]
    with pytest.raises(TaskConflict):
        await submitted(database, id=chosen, goal_id="another")
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_an_unknown_task_cannot_be_read_or_cancelled(connection: AsyncConnection) -> None:
    with pytest.raises(TaskNotFound):
        await tasks.read(connection, uuid4())
    with pytest.raises(TaskNotFound):
        await tasks.cancel(connection, uuid4(), "why not")


async def test_a_pending_task_is_cancelled_and_never_leased(database: Database) -> None:
    task_id = (await submitted(database))[0]
    async with database.transaction() as connection:
        await tasks.cancel(connection, task_id, "changed my mind")
    task = await everything(database, task_id)
    assert (task["state"], task["attempts"]) == ("cancelled", [])
    assert task["error"] == {"code": "cancelled", "message": "changed my mind"}
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_cancelling_a_running_task_records_the_attempt(database: Database) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "changed my mind")
    task = await everything(database, lease.task_id)
    assert [(a["worker_id"], a["outcome"]) for a in task["attempts"]] == [(worker, "cancelled")]
    event = (await fetch(database, "SELECT * FROM every_event ORDER BY seq DESC LIMIT 1"))[0]
    assert (event["kind"], event["worker_id"], event["token"]) == ("task.cancelled", worker, 1)


async def test_cancelling_twice_is_fine_and_changes_nothing_more(database: Database) -> None:
    task_id = (await submitted(database))[0]
    for reason in ("first", "second"):
        async with database.transaction() as connection:
            await tasks.cancel(connection, task_id, reason)
    assert (await everything(database, task_id))["error"]["message"] == "first"
    assert await value(database, "SELECT count(*) FROM every_event WHERE kind = 'task.cancelled'") == 1


async def test_a_completed_task_cannot_be_cancelled(database: Database, desk: LeaseService) -> None:
    worker, lease = await holding(database)
    await desk.complete(completion(worker, lease))
    with pytest.raises(TaskFinished):
        async with database.transaction() as connection:
            await tasks.cancel(connection, lease.task_id, "too late")


async def test_a_worker_whose_task_was_cancelled_may_lease_again(database: Database) -> None:
    worker, lease = await holding(database)
    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "changed my mind")
    await submitted(database)
    assert (await leased(database, worker)).task_id != lease.task_id


async def test_every_transition_is_an_event_in_order(database: Database, desk: LeaseService) -> None:
    task_id = (await submitted(database, goal_id="kepler"))[0]
    worker = await ready_worker(database)
    await desk.complete(completion(worker, await leased(database, worker)))
    rows = await fetch(database, "SELECT * FROM every_event ORDER BY transaction, seq")
    moves = ["task.submitted", "task.assigned", "task.executing", "task.completed"]
    assert [(row["kind"], row["task_id"], row["goal_id"]) for row in rows] == [(m, task_id, "kepler") for m in moves]
    assert [row["worker_id"] for row in rows] == [None, worker, worker, worker]


async def test_the_ids_that_we_choose_are_in_the_order_of_time(connection: AsyncConnection) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    made = (await tasks.submit(connection, [submission()]))[0].id
    moment = datetime.fromtimestamp((made.int >> 80) / 1000, UTC)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert before < moment < datetime.now(UTC) + timedelta(seconds=1)


def test_the_hash_of_a_body_stays_what_it_was() -> None:
    """A submit that is repeated after an upgrade must find the task that the version before has stored."""
    body = submission(id=UUID(int=1), labels='{"a": "b"}', depends_on=(UUID(int=3), UUID(int=2)))
    assert tasks._hash(body).hex() == "12da4415858f38c81408ab29d7c4a0012ca6d98e8e76249467a845ac0932cef7"


async def test_each_task_of_a_batch_keeps_its_own_values(database: Database) -> None:
    """Columns that are the same for all tasks go to the database once, all others as arrays, nulls included."""
    moment = datetime(2400, 1, 2, tzinfo=UTC)
    own: list[dict[str, Any]] = [
        {"labels": '{"a": "1"}', "trace_context": None, "deadline": moment, "retry": RetryPolicy(delays_seconds=())},
        {"labels": "{}", "trace_context": "t", "deadline": None, "retry": RetryPolicy(delays_seconds=(1.5, 2.0))},
        {"labels": "{}", "trace_context": None, "timeout_seconds": None, "agent_type": AgentType.RANKING},
    ]
    names = ("agent_type", "labels", "trace_context", "deadline", "timeout_seconds", "retry_delays")
    for batch in ([submission(**fields) for fields in own], [submission(**own[0])] * 3):
        async with database.transaction() as connection:
            results = await tasks.submit(connection, batch)
        for result, sent in zip(results, batch, strict=True):
            rows = await fetch(database, f"SELECT {', '.join(names)} FROM tasks WHERE id = $1", result.id)
            expected = {name: getattr(sent, name) for name in names}
            assert dict(rows[0]) == expected | {"retry_delays": list(sent.retry_delays)}
