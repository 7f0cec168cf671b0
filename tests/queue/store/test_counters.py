"""Counters: equal to the truth whatever happens, folded without losing a line, and cheap to read."""

import asyncio
import random
from collections.abc import Sequence
from uuid import uuid4

from app.db import hot_path
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import tasks
from app.queue.service.leases import LeaseService
from app.queue.store import claims, counters
from app.queue.store.claims import ClaimRequest
from app.queue.store.counters import TaskCount
from tests.support.factories import GENERATION, completion, leased, ready_worker, submission, submitted
from tests.support.sql import execute, fetch, value


async def _both(database: Database) -> tuple[set[TaskCount], set[TaskCount]]:
    async with database.transaction() as connection:
        return set(await counters.read(connection)), set(await counters.count_tasks(connection))


async def _fold(database: Database) -> int:
    async with database.transaction() as connection:
        return await counters.fold(connection)


def _sum(found: Sequence[TaskCount] | set[TaskCount], phase: str) -> int:
    return sum(count.tasks for count in found if count.phase == phase)


async def test_every_statement_is_counted(database: Database) -> None:
    worker = await ready_worker(database)
    (first,) = await submitted(database)
    await submitted(database, 3, depends_on=(first,))
    await submitted(database, 2, agent_type=AgentType.RANKING, priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET run_at = now() + interval '1 h' WHERE agent_type = 'ranking'")
    found, actual = await _both(database)
    assert found == actual
    assert {phase: _sum(found, phase) for phase in ("pending", "blocked", "delayed")} == {
        "pending": 1,
        "blocked": 3,
        "delayed": 2,
    }
    lease = await leased(database, worker)
    assert (await _both(database))[0] == (await _both(database))[1]
    async with database.transaction() as connection:
        await tasks.cancel(connection, lease.task_id, "no longer wanted")
    found, actual = await _both(database)
    assert found == actual
    assert _sum(found, "delayed") == sum(count.tasks for count in found) == 2


async def test_a_batch_of_several_kinds_is_counted(database: Database) -> None:
    """Of goals of two namespaces, some acknowledged at once and some not, and raised tasks among them."""
    desk = LeaseService(database, LeasePolicy(), FairQueue())
    for goal in ("goal", "@lab/goal", "@lab/other", "@home/goal"):
        await submitted(database, 2, goal_id=goal)
    await execute(database, "UPDATE tasks SET submitted_priority = 1 WHERE goal_id = '@lab/other'")
    workers = [await ready_worker(database) for _ in range(8)]
    asks = [
        ClaimRequest(worker_id=worker, request_id=uuid4(), lane=GENERATION, acknowledge=number % 3 > 0)
        for number, worker in enumerate(workers)
    ]
    outcomes = await hot_path.run(database, lambda connection: claims.claim(connection, asks, LeasePolicy()))
    held = [(worker, outcome.lease) for worker, outcome in zip(workers, outcomes, strict=True) if outcome.lease]
    assert len(held) == 8
    for counted in range(2):
        async with database.transaction() as connection:
            assert await counters.differences(connection) == []
            found = await counters.read_by_namespace(connection)
        tasks_of = {name: sum(count.tasks for count in counts) for name, counts in found.items()}
        assert sum(tasks_of.values()) == (4 if counted else 8)
        assert not any(count.phase == "pending" and count.tasks for counts in found.values() for count in counts)
        if not counted:
            await asyncio.gather(*(desk.complete(completion(*one)) for one in held[::2]))
    await desk.stop()


async def test_folding_changes_nothing_and_leaves_nothing_behind(database: Database) -> None:
    await submitted(database, 5)
    before = (await _both(database))[0]
    assert await _fold(database) > 0
    assert await _fold(database) == 0
    assert (await _both(database))[0] == before
    assert await value(database, "SELECT count(*) FROM queue_changes") == 0
    await submitted(database, 2)
    found, actual = await _both(database)
    assert found == actual


async def test_many_lines_are_folded_in_batches_of_whole_transactions(database: Database) -> None:
    """As after a long break, when all at once would take longer than a statement may."""
    many = """INSERT INTO queue_changes (transaction, agent_type, priority, phase, tasks)
        SELECT (pg_current_xact_id()::text)::bigint, 'ranking', 1, 'x', 1 FROM generate_series(1, 9)"""
    await execute(database, many)
    for _ in range(5):
        await submitted(database, 3)
    await execute(database, many)
    before = (await _both(database))[0]
    folded: list[int] = []
    while not folded or folded[-1]:
        async with database.transaction() as connection:
            folded.append(await counters.fold(connection, 2))
        assert (await _both(database))[0] == before
    assert folded == [9, 2, 2, 1, 9, 0]
    assert await value(database, "SELECT count(*) FROM queue_changes") == 0


async def test_a_line_whose_transaction_commits_late_is_not_lost(database: Database) -> None:
    """It began first and commits last; folding in between must neither skip it nor count it twice."""
    late = await database.connect()
    transaction = late.transaction()
    await transaction.start()
    await late.execute("INSERT INTO queue_changes (agent_type, priority, phase, tasks) VALUES ('ranking', 1, 'x', 7)")
    await submitted(database, 3)
    await _fold(database)
    await transaction.commit()
    await late.close()
    assert _sum((await _both(database))[0], "x") == 7
    await _fold(database)
    await _fold(database)
    found = (await _both(database))[0]
    assert (_sum(found, "x"), _sum(found, "pending")) == (7, 3)


async def test_what_is_rolled_back_was_never_counted(database: Database) -> None:
    connection = await database.connect()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO queue_changes (agent_type, priority, phase, tasks) VALUES ('r', 1, 'x', 7)")
    await transaction.rollback()
    await connection.close()
    await _fold(database)
    assert await value(database, "SELECT count(*) FROM queue_counts") == 0


async def _supervise(database: Database) -> None:
    for _ in range(15):
        async with database.transaction() as connection:
            batch = [submission(priority=random.choice(list(Priority))) for _ in range(random.randrange(1, 6))]
            await tasks.submit(connection, batch)


async def _lease_and_complete(database: Database, desk: LeaseService) -> None:
    worker = await ready_worker(database)
    for _ in range(10):
        rows = await fetch(database, "SELECT priority FROM tasks WHERE state = 'pending' LIMIT 1")
        lane = Lane(agent_type=AgentType.GENERATION, priority=Priority(rows[0]["priority"])) if rows else GENERATION
        ask = ClaimRequest(worker_id=worker, request_id=uuid4(), lane=lane, acknowledge=True)
        (claim,) = await hot_path.run(database, lambda c: claims.claim(c, [ask], LeasePolicy()))  # noqa: B023
        if claim.lease is not None:
            await desk.complete(completion(worker, claim.lease))


async def _fold_and_compare(database: Database, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _fold(database)
        found, actual = await _snapshot(database)
        assert found == actual


async def test_counts_stay_true_while_everything_happens_at_once(database: Database) -> None:
    desk, stop = LeaseService(database, LeasePolicy(), FairQueue()), asyncio.Event()
    folding = asyncio.create_task(_fold_and_compare(database, stop))
    working = [_lease_and_complete(database, desk) for _ in range(4)]
    await asyncio.gather(*(_supervise(database) for _ in range(3)), *working)
    stop.set()
    await folding
    await desk.stop()
    found, actual = await _both(database)
    assert found == actual
    assert found


async def _snapshot(database: Database) -> tuple[set[TaskCount], set[TaskCount]]:
    """Both numbers at one moment, while others go on."""
    async with database.transaction() as connection:
        await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return set(await counters.read(connection)), set(await counters.count_tasks(connection))
