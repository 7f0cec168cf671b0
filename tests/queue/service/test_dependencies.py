"""Tasks that wait for others: unblocked with the completion, cancelled with the failure, never forgotten."""

import asyncio
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text

from app.db import hot_path, notify
from app.db.database import Database
from app.kernel.states import TaskState
from app.queue.errors import DependencyCycle, DependencyMissing, IdempotencyMismatch, SubmitInFlight
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import leases as lease_operations
from app.queue.service import tasks
from app.queue.service.leases import Failure, Fence, LeaseService
from app.queue.service.tasks import Submitted
from app.queue.store import claims, dependencies
from app.queue.store.claims import ClaimRequest, Lease
from app.queue.store.completions import Completion
from tests.support import sql
from tests.support.factories import GENERATION, ready_worker, submission


async def _submit(database: Database, *wanted: dict[str, Any]) -> list[Submitted]:
    async with database.transaction() as connection:
        return await tasks.submit(connection, [submission(**each) for each in wanted])


async def _claim(database: Database) -> Lease:
    worker = await ready_worker(database)
    ask = ClaimRequest(worker_id=worker, request_id=uuid4(), lane=GENERATION, acknowledge=True)
    found = await hot_path.run(database, lambda c: claims.claim(c, [ask], LeasePolicy()))
    lease = found[0].lease
    assert lease is not None
    return lease


def _completion(lease: Lease, worker_id: Any) -> Completion:
    return Completion(
        task_id=lease.task_id, token=lease.token, worker_id=worker_id, result="{}", result_hash=b"h", usage=None
    )


async def _complete_next(database: Database) -> UUID:
    lease = await _claim(database)
    worker = await sql.value(database, "SELECT worker_id FROM tasks WHERE id = $1", lease.task_id)
    await LeaseService(database, LeasePolicy(), FairQueue()).complete(_completion(lease, worker))
    return lease.task_id


async def _fail_next(database: Database) -> UUID:
    lease = await _claim(database)
    worker = await sql.value(database, "SELECT worker_id FROM tasks WHERE id = $1", lease.task_id)
    fence = Fence(task_id=lease.task_id, token=lease.token, worker_id=worker)
    async with database.transaction() as connection:
        await lease_operations.fail(connection, fence, Failure(code="bad", message="no", retryable=False))
    return lease.task_id


def _note_statement(statements: list[str], *call: Any) -> None:
    statements.append(call[2])


async def _states(database: Database) -> dict[UUID, str]:
    rows = await sql.fetch(database, "SELECT id, state FROM tasks UNION ALL SELECT id, state FROM task_history")
    return {row["id"]: row["state"] for row in rows}


async def test_a_diamond_in_any_order_runs_from_its_top(database: Database) -> None:
    top, left, right, bottom = uuid4(), uuid4(), uuid4(), uuid4()
    done = await _submit(
        database,
        {"id": bottom, "depends_on": [left, right]},
        {"id": left, "depends_on": [top]},
        {"id": right, "depends_on": [top, top]},
        {"id": top},
    )
    assert [task.state for task in done] == ["blocked", "blocked", "blocked", "pending"]
    assert await _complete_next(database) == top
    assert {await _complete_next(database), await _complete_next(database)} == {left, right}
    assert await _complete_next(database) == bottom
    assert set((await _states(database)).values()) == {"completed"}
    assert await sql.value(database, "SELECT count(*) FROM task_dependencies") == 0
    unblocked = await sql.fetch(database, "SELECT task_id FROM every_event WHERE kind = 'task.unblocked' ORDER BY seq")
    assert [row["task_id"] for row in unblocked][-1] == bottom
    assert len(unblocked) == 3


async def test_a_cycle_is_refused_by_name_and_nothing_is_kept(database: Database) -> None:
    first, second = uuid4(), uuid4()
    with pytest.raises(DependencyCycle, match=f"{first} -> {second} -> {first}|{second} -> {first} -> {second}"):
        await _submit(database, {"id": first, "depends_on": [second]}, {"id": second, "depends_on": [first]}, {})
    assert await _states(database) == {}


async def test_a_missing_dependency_is_refused_and_nothing_is_kept(database: Database) -> None:
    missing = uuid4()
    with pytest.raises(DependencyMissing, match=str(missing)):
        await _submit(database, {}, {"depends_on": [missing]})
    assert await _states(database) == {}


async def test_a_task_that_a_refused_submit_had_locked_is_announced(database: Database) -> None:
    """Claims have passed over it meanwhile; of what came to nothing there is no news."""
    (ready,) = await _submit(database, {})
    heard: list[str] = []
    database.announcer.subscribe(heard.extend)
    with pytest.raises(DependencyMissing):
        await _submit(database, {"depends_on": (ready.id, uuid4())})
    assert heard == [notify.work(GENERATION)]


async def test_a_completed_dependency_blocks_no_task(database: Database) -> None:
    first = (await _submit(database, {}))[0].id
    await _complete_next(database)
    assert (await _submit(database, {"depends_on": [first]}))[0].state is TaskState.PENDING


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_an_end_without_a_result_cancels_all_that_waited(database: Database, how: str) -> None:
    ids = [uuid4() for _ in range(5)]
    chain: list[dict[str, Any]] = [{"id": ids[0]}]
    chain += [{"id": ids[n], "depends_on": [ids[n - 1]]} for n in range(1, 5)]
    await _submit(database, *chain)
    if how == "failed":
        await _fail_next(database)
    else:
        async with database.transaction() as connection:
            await tasks.cancel(connection, ids[0], "not needed")
    states = await _states(database)
    assert states[ids[0]] == how
    assert {states[task] for task in ids[1:]} == {"cancelled"}
    error = await sql.value(database, "SELECT error->>'dependency' FROM task_history WHERE id = $1", ids[4])
    assert error == str(ids[0])
    assert await sql.value(database, "SELECT count(*) FROM task_dependencies") == 0
    late = await _submit(database, {"depends_on": [ids[2]]})
    assert late[0].state is TaskState.CANCELLED


async def test_a_submit_and_the_completion_of_what_it_waits_for_never_miss_each_other(database: Database) -> None:
    """The submit has marked its dependency and not committed; the completion must wait, and then see the edge."""
    first = (await _submit(database, {}))[0].id
    lease = await _claim(database)
    worker = await sql.value(database, "SELECT worker_id FROM tasks WHERE id = $1", lease.task_id)
    desk = LeaseService(database, LeasePolicy(), FairQueue())
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(depends_on=[first])])
        completing = asyncio.create_task(desk.complete(_completion(lease, worker)))
        # It waits for no lock, and tries again until that is gone.
        await asyncio.sleep(0.1)
        assert not completing.done()
    await completing
    assert sorted((await _states(database)).values()) == ["completed", "pending"]


async def test_a_submit_locks_what_runs_before_what_waits_for_it(database: Database) -> None:
    """A completion does so too; by id alone the two would deadlock."""
    waiting, running = sorted((uuid4(), uuid4()))
    await _submit(database, {"id": running}, {"id": waiting, "depends_on": [running]})
    async with database.engine.connect() as completing:
        await completing.begin()
        await completing.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE"), {"id": running})
        submitting = asyncio.create_task(_submit(database, {"depends_on": [waiting, running]}))
        await sql.until_blocked(database)
        # The lock of what waits is free still: the completion gets it without having to wait for the submit.
        await completing.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE NOWAIT"), {"id": waiting})
    assert (await submitting)[0].state is TaskState.BLOCKED


@pytest.mark.parametrize("is_blocked", [False, True])
async def test_who_ends_a_task_locks_all_that_wait_for_it_in_one_order(database: Database, is_blocked: bool) -> None:
    """By their ids, as a cancellation of many does, and that of a blocked task: level by level two would deadlock."""
    (last, middle), first = sorted((uuid4(), uuid4())), uuid4()
    await _submit(database, {"id": first}, {"id": middle, "depends_on": [first]}, {"id": last, "depends_on": [middle]})
    lock = text("SELECT FROM tasks WHERE id = :id FOR UPDATE NOWAIT")

    async def cancel() -> None:
        async with database.transaction() as connection:
            await tasks.cancel(connection, middle if is_blocked else first, "not needed")

    async with database.engine.connect() as other:
        await other.begin()
        await other.execute(lock, {"id": last})
        cancelling = asyncio.create_task(cancel())
        await sql.until_blocked(database)
        await other.execute(lock, {"id": middle})
    await cancelling
    head = "pending" if is_blocked else "cancelled"
    assert await _states(database) == {first: head, middle: "cancelled", last: "cancelled"}


async def test_what_waits_is_cancelled_by_as_many_statements_however_deep_it_is(database: Database) -> None:
    """Readers of events wait for the transaction."""
    numbers = []
    for depth in (2, 200):
        ids = [uuid4() for _ in range(depth)]
        await _submit(database, *({"id": id_, "depends_on": ids[place - 1 : place]} for place, id_ in enumerate(ids)))
        statements: list[str] = []
        async with database.transaction() as connection:
            note = partial(_note_statement, statements)
            event.listen(connection.sync_connection, "before_cursor_execute", note)
            await tasks.cancel(connection, ids[0], "not needed")
        numbers.append(len(statements))
    assert set((await _states(database)).values()) == {"cancelled"}
    assert numbers[0] == numbers[1]


async def test_a_completion_locks_what_waits_for_it_before_the_edges(database: Database) -> None:
    """Whoever cancels what waits does so too; the other way round the two would deadlock."""
    first, waiting = uuid4(), uuid4()
    await _submit(database, {"id": first}, {"id": waiting, "depends_on": [first]})
    async with database.engine.connect() as cancelling:
        await cancelling.begin()
        await cancelling.execute(text("SELECT FROM tasks WHERE id = :id FOR UPDATE"), {"id": waiting})
        completing = asyncio.create_task(_complete_next(database))
        await sql.until_blocked(database)
        edge = text("SELECT FROM task_dependencies WHERE task_id = :id FOR UPDATE NOWAIT")
        await cancelling.execute(edge, {"id": waiting})
    assert await completing == first
    assert (await _states(database))[waiting] == "pending"


@pytest.mark.parametrize(("how", "state"), [("completed", "pending"), ("failed", "cancelled")])
async def test_no_statement_moves_more_of_what_waits_than_it_has_time_for(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, how: str, state: str
) -> None:
    monkeypatch.setattr(dependencies, "_PORTION", 3, raising=False)
    first, second = uuid4(), uuid4()
    waiting: list[dict[str, Any]] = [{"id": uuid4(), "depends_on": [first]} for _ in range(7)]
    both: dict[str, Any] = {"id": uuid4(), "depends_on": [first, second]}
    await _submit(own_database, {"id": first}, *waiting, {"id": second}, both)
    for statement in (
        "CREATE TABLE moves (edges bigint)",
        (
            "CREATE FUNCTION note_moves() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO moves SELECT count(*) FROM gone; RETURN NULL; END'"
        ),
        (
            "CREATE TRIGGER moves AFTER DELETE ON task_dependencies REFERENCING OLD TABLE AS gone "
            "FOR EACH STATEMENT EXECUTE FUNCTION note_moves()"
        ),
    ):
        await sql.execute(own_database, statement)
    assert await (_complete_next if how == "completed" else _fail_next)(own_database) == first
    states = await _states(own_database)
    assert {states[task["id"]] for task in waiting} == {state}
    moved = [row["edges"] for row in await sql.fetch(own_database, "SELECT edges FROM moves")]
    assert max(moved) <= 4
    if how == "completed":
        assert sum(moved) == 8
        assert await sql.value(own_database, "SELECT blockers FROM tasks WHERE id = $1", both["id"]) == 1
    assert await sql.value(own_database, "SELECT count(*) FROM task_dependencies") == (how == "completed")


async def test_two_completions_at_once_let_go_of_the_task_that_waits_for_both(database: Database) -> None:
    for _ in range(10):
        left, right = uuid4(), uuid4()
        await _submit(database, {"id": left}, {"id": right}, {"depends_on": [left, right]})
        await asyncio.gather(_complete_next(database), _complete_next(database))
        await _complete_next(database)
    assert set((await _states(database)).values()) == {"completed"}


async def test_the_same_key_is_the_same_task_also_when_it_has_finished(database: Database) -> None:
    first = (await _submit(database, {"idempotency_key": "k"}))[0]
    again = (await _submit(database, {"idempotency_key": "k"}))[0]
    assert (first.created, again.created, again.id) == (True, False, first.id)
    await _complete_next(database)
    late = (await _submit(database, {"idempotency_key": "k"}))[0]
    assert (late.id, late.created, late.state) == (first.id, False, TaskState.COMPLETED)
    with pytest.raises(IdempotencyMismatch):
        await _submit(database, {"idempotency_key": "k", "payload": '{"other": 1}'})
    assert len(await _states(database)) == 1


async def test_a_repeated_submit_gets_its_answer_when_what_it_depended_on_is_gone(database: Database) -> None:
    """Purged, or older than history is kept; a new task is refused."""
    gone = (await _submit(database, {}))[0].id
    wanted = {"idempotency_key": "k", "depends_on": [gone]}
    first = (await _submit(database, wanted))[0]
    await _fail_next(database)
    await sql.execute(database, "DELETE FROM task_history WHERE id = $1", gone)
    assert (await _submit(database, wanted)) == [first._replace(state=TaskState.CANCELLED, created=False)]
    with pytest.raises(DependencyMissing, match=f"no task {gone} to depend on .1 missing"):
        await _submit(database, wanted, {"depends_on": [gone]})
    with pytest.raises(IdempotencyMismatch):
        await _submit(database, wanted | {"payload": '{"other": 1}'})
    assert len(await _states(database)) == 1


async def test_a_key_that_is_being_worked_on_is_refused_for_now(database: Database) -> None:
    async with database.transaction() as connection:
        await tasks.submit(connection, [submission(idempotency_key="k")])
        with pytest.raises(SubmitInFlight):
            await _submit(database, {"idempotency_key": "k"})
    assert not (await _submit(database, {"idempotency_key": "k"}))[0].created
