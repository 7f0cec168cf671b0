"""A checkpoint shows one moment, and an empty database can be filled from it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from app.admin.rules.config import IterationConfig as Configured
from app.db import hot_path, schema
from app.db.database import Database
from app.goals.rules.stopping import Quality
from app.goals.service import budget_enforcement as keeping
from app.goals.service import goals, iterations
from app.goals.service.iterations import IterationReport
from app.kernel.agents import AgentType
from app.kernel.errors import Refused
from app.memory.errors import CheckpointBusy, CheckpointNotFound
from app.memory.rules.checkpoints import CheckpointPolicy
from app.memory.service import checkpoints
from app.memory.service import context as context_operations
from app.memory.store import checkpoints as store
from app.memory.store import context, invariants
from app.memory.store.context import EntryKey, Write
from app.queue.store import completions, events
from app.queue.store.completions import Completion
from app.queue.store.events import BEGINNING
from tests.conftest import named, run_on
from tests.support.agent_results import add_example_2_results, configure_example_2, in_force, tick
from tests.support.factories import completion, everything, goal_request, holding, leased, ready_worker, submitted
from tests.support.sql import execute, fetch, value

GPU = '{"gpus": 1}'
_OFTEN = CheckpointPolicy(min_pause_seconds=0.0)


async def _take(database: Database, **policy: Any) -> tuple[store.Checkpoint, Any]:
    """Take a checkpoint; return it with its content."""
    taken = await checkpoints.take(database, "test", policy=CheckpointPolicy(**policy))
    assert (await checkpoints.verify(database, taken.id)).violations == []
    return taken, json.loads(b"".join(await checkpoints.read_pieces(database, taken.id)))


@asynccontextmanager
async def _empty(server_url: str, *, migrated: bool = False) -> AsyncIterator[Database]:
    name = f"convener_empty_{uuid4().hex[:8]}"
    await run_on(server_url, f"CREATE DATABASE {name}")
    database = Database(named(server_url, name))
    try:
        if migrated:
            await schema.migrate(database.engine)
            # As another process would do it: connections that it leaves behind are not ours.
            await database.engine.dispose()
        yield database
    finally:
        await database.close()
        await run_on(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _restore(database: Database, source: Database) -> checkpoints.RestoredCheckpoint:
    taken = await checkpoints.take(source, "test")
    return await checkpoints.restore(
        database, b"".join(await checkpoints.read_pieces(source, taken.id)), taken.sha256, "test"
    )


async def _complete(database: Database, count: int = 1) -> None:
    for _ in range(count):
        call = completion(*await holding(database))
        assert await _is_accepted(database, call)


async def _is_accepted(database: Database, call: Completion) -> bool:
    return bool(await hot_path.run(database, lambda c: completions.complete(c, [call])))


async def test_an_empty_system_has_a_checkpoint_too(database: Database) -> None:
    taken, content = await _take(database)
    assert taken.counts == {"tasks": 0, "leased": 0, "dependencies": 0, "context": 0}
    assert (content["tasks"], content["revision"]) == ([], schema.head())
    assert taken.size_bytes == len(b"".join(await checkpoints.read_pieces(database, taken.id)))
    with pytest.raises(CheckpointNotFound):
        await checkpoints.read(database, taken.id + 1)


async def test_what_is_in_flight_is_in_it_and_nothing_else(database: Database) -> None:
    await _complete(database)
    waiting = (await submitted(database, 3))[2]
    worker_id = await ready_worker(database)
    lease = await leased(database, worker_id)
    (blocked,) = await submitted(database, depends_on=[waiting])
    await execute(database, "INSERT INTO pauses (agent_type, reason, paused_by) VALUES ('ranking', 'r', 'me')")
    await execute(database, "INSERT INTO goals (id, weight) VALUES ('kepler', 2)")
    async with database.transaction() as connection:
        entry = Write(value='{"a": 1}', written_by="me")
        await context_operations.create(connection, EntryKey(namespace="n", key="k"), entry)
        await context_operations.replace(
            connection, EntryKey(namespace="n", key="k"), 1, Write(value="2", written_by="me")
        )
    taken, content = await _take(database)
    assert taken.counts == {"tasks": 4, "leased": 1, "dependencies": 1, "context": 1}
    assert content["tasks"][0]["id"] == str(lease.task_id)
    assert (content["tasks"][0]["state"], content["tasks"][0]["worker_id"]) == ("executing", str(worker_id))
    assert content["dependencies"] == [{"task_id": str(blocked), "depends_on": str(waiting)}]
    assert [(e["key"], e["version"], e["value"]) for e in content["context"]] == [("k", 2, 2)]
    assert (content["goals"][0]["weight"], content["pauses"][0]["agent_type"]) == (2, "ranking")
    assert sum(count["tasks"] for count in content["queue"]) == 4


async def test_it_shows_one_moment(database: Database) -> None:
    """A task that is moved on between two statements of the snapshot is where it was, as are its dependents."""
    first = await submitted(database, 2)
    async with database.transaction() as connection:
        snapshot_of = store.read_snapshot(connection, BEGINNING, CheckpointPolicy())
        taking = asyncio.create_task(snapshot_of)
        found = await taking
        await submitted(database, 5)
        again = await store.read_activity(connection, 10)
    assert again is None
    assert set(found.tasks) == {str(task_id) for task_id in first}


async def test_taking_one_holds_up_no_reader_of_events(database: Database) -> None:
    """One that writes events would hold up all readers of later ones."""
    async with database.transaction() as reading:
        await store.read_snapshot(reading, BEGINNING, CheckpointPolicy())
        told = await submitted(database, 3)
        async with database.transaction() as connection:
            assert [event.task_id for event in (await events.read_batch(connection, BEGINNING, None, 10)).items] == told


async def test_events_after_its_cursor_are_those_that_are_not_in_it_for_sure(database: Database) -> None:
    await submitted(database, 2)
    taken, _ = await _take(database)
    later = await submitted(database, 2)
    async with database.transaction() as connection:
        following = [event.task_id for event in (await events.read_batch(connection, taken.cursor, None, 10)).items]
    assert following == later


async def test_too_much_is_cut_and_says_so(database: Database) -> None:
    tasks = await submitted(database, 5)
    (waits,) = await submitted(database, depends_on=[tasks[4]])
    await submitted(database, depends_on=[waits])
    (content_only,) = await submitted(database, depends_on=[tasks[0]])
    lease = await leased(database, await ready_worker(database))
    taken, content = await _take(database, max_tasks=4)
    assert taken.is_cut
    assert content["tasks"][0]["id"] == str(lease.task_id)
    assert len(content["tasks"]) == 4
    # Without the one that the others wait for, they could never run.
    await execute(database, "UPDATE tasks SET seq = DEFAULT WHERE id = $1", tasks[4])
    taken, content = await _take(database, max_tasks=7)
    ids = [task["id"] for task in content["tasks"]]
    assert taken.is_cut
    assert str(tasks[4]) not in ids
    assert str(waits) not in ids
    assert str(content_only) in ids
    taken, content = await _take(database, max_bytes=1500)
    assert taken.is_cut
    assert 0 < len(content["tasks"]) < 5
    assert not (await _take(database))[0].is_cut


async def test_one_is_taken_when_it_is_due(database: Database) -> None:
    first = await checkpoints.take_when_due(database, _OFTEN, 30)
    assert first is not None
    assert first.reason == "the first"
    assert await checkpoints.take_when_due(database, _OFTEN, 30) is None
    await _complete(database, 3)
    assert await checkpoints.take_when_due(database, CheckpointPolicy(every_completions=3), 30) is None
    policy = CheckpointPolicy(every_completions=3, min_pause_seconds=0.0)
    second = await checkpoints.take_when_due(database, policy, 30)
    assert second is not None
    assert second.reason == "3 tasks completed"
    await execute(database, "UPDATE checkpoints SET taken_at = now() - interval '6 minutes'")
    third = await checkpoints.take_when_due(database, _OFTEN, 30)
    assert third is not None
    assert third.reason == "300 s passed"


async def test_only_one_replica_takes_it(database: Database, replica: Database) -> None:
    policy = CheckpointPolicy()
    taken = await asyncio.gather(
        *(checkpoints.take_when_due(where, policy, 30) for where in (database, replica, database, replica))
    )
    assert len([checkpoint for checkpoint in taken if checkpoint is not None]) == 1


async def test_the_newest_and_one_of_each_day_are_kept(database: Database) -> None:
    for day in (40, 3, 3, 3, 2, 1):
        taken = await checkpoints.take(database, "test")
        await execute(
            database,
            "UPDATE checkpoints SET taken_at = date_trunc('day', now()) - make_interval(days => $2) WHERE id = $1",
            taken.id,
            day,
        )
    for _ in range(4):
        await checkpoints.take(database, "test")
    async with database.transaction() as connection:
        await store.prune(connection, keep=2, days=30)
        left = (await store.page(connection, before_id=2**62, limit=50)).items
    now = await value(database, "SELECT date_trunc('day', now())")
    assert [(now - checkpoint.taken_at).days for checkpoint in left] == [-1, -1, 1, 2, 3]


async def test_damage_is_found(database: Database) -> None:
    await submitted(database)
    taken, _ = await _take(database)
    await execute(database, "UPDATE checkpoints SET sha256 = sha256('x')")
    assert "SHA-256" in (await checkpoints.verify(database, taken.id)).violations[0]
    await execute(database, "UPDATE checkpoints SET content = set_byte(content, 20, 0)")
    assert (await checkpoints.verify(database, taken.id)).violations


@pytest.mark.parametrize("migrated", [True, False])
async def test_a_restore_brings_everything_back(own_database: Database, server_url: str, migrated: bool) -> None:
    worker_id, lease = await holding(own_database, agent_type=AgentType.GENERATION, labels='{"a": "b"}')
    achieved = """progress = '{"percent": 40}', checkpoint = '{"n": 4}', failures = 1, rescues = 2"""
    await execute(own_database, f"UPDATE tasks SET {achieved}, token = 7")
    await execute(own_database, "UPDATE leases SET token = 7")
    (waiting,) = await submitted(own_database, agent_type=AgentType.RANKING, payload='{"x": 1.5, "y": [null, "ü"]}')
    (blocked,) = await submitted(own_database, depends_on=[lease.task_id, waiting])
    async with own_database.transaction() as connection:
        for n, text in enumerate(('{"a": 1}', "null")):
            await context.write(connection, EntryKey(namespace="n", key="k"), n, Write(value=text, written_by="me"))
        await context.write(connection, EntryKey(namespace="n", key="gone"), 0, Write(value="1", written_by="me"))
        await context.write(connection, EntryKey(namespace="n", key="gone"), 1, Write(value=None, written_by="me"))
        cursor = await events.latest(connection)
    await configure_example_2(own_database)
    await tick(own_database)
    await add_example_2_results(own_database)
    await tick(own_database)
    async with _empty(server_url, migrated=migrated) as database:
        if migrated:
            beside = await database.connect()
            await beside.execute("INSERT INTO loop_ticks (duty, last_run_at) VALUES ('find the oldest', now())")
            await beside.close()
        done = await _restore(database, own_database)
        # A turn that took place without these tasks knows nothing of them.
        assert await fetch(database, "SELECT duty FROM loop_ticks") == []
        assert (done.tasks, done.released, done.dependencies, done.context) == (3, 1, 2, 2)
        task = await everything(database, lease.task_id)
        assert (task["state"], task["worker_id"], task["token"]) == ("pending", None, 7)
        assert (task["failures"], task["rescues"]) == (1, 2)
        assert (task["checkpoint"], task["progress"]) == ({"n": 4}, {"percent": 40})
        assert await everything(database, waiting) == await everything(own_database, waiting)
        assert (await everything(database, blocked))["state"] == "blocked"
        async with database.transaction() as connection:
            entry = await context.read(connection, EntryKey(namespace="n", key="k"))
            gone = await context.read(connection, EntryKey(namespace="n", key="gone"))
            told = (await events.read_batch(connection, cursor, None, 10)).items
        assert entry is not None
        assert (entry.version, entry.value, entry.deleted) == (2, None, False)
        assert gone is not None
        assert (gone.version, gone.deleted) == (2, True)
        kinds = {event.task_id: event.kind for event in told}
        assert kinds == {lease.task_id: "task.released", waiting: "task.submitted", blocked: "task.submitted"}
        assert all(event.detail and "checkpoint" in event.detail["reason"] for event in told)
        await _check_invariants(database)
        assert await in_force(database) == await in_force(own_database)
        assert (await tick(database))["kept"] == "0 new results; a step takes 10"
        # Work goes on: with a higher token, from the checkpoint, and what was blocked comes free in the end.
        again = await leased(database, await ready_worker(database))
        assert (again.task_id, again.token, again.attempt, again.checkpoint) == (lease.task_id, 8, 2, '{"n": 4}')
        assert not await _is_accepted(database, completion(worker_id, lease))
        (new,) = await submitted(database)
        assert (await everything(database, new))["seq"] > (await everything(database, blocked))["seq"]


async def test_tasks_that_ask_for_resources_find_workers_that_offer_them(
    own_database: Database, server_url: str
) -> None:
    tasks = await submitted(own_database, 3, resources=GPU)
    for n in range(2):
        assert (await leased(own_database, await ready_worker(own_database), resources=GPU)).task_id == tasks[n]
    # What its lane has come to is stored now and then.
    await execute(
        own_database,
        "INSERT INTO resource_lanes SELECT 1, agent_type, priority, tag FROM tasks WHERE id = $1",
        tasks[1],
    )
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        assert await fetch(database, "SELECT id, request FROM resource_classes") == await fetch(
            own_database, "SELECT id, request FROM resource_classes"
        )
        # None is before what waited at the head of its lane.
        assert await value(database, "SELECT min(tag) FROM tasks") == await value(
            own_database, "SELECT virtual_time FROM resource_lanes"
        )
        again = [(await leased(database, await ready_worker(database), resources=GPU)).task_id for _ in tasks]
        assert again == tasks
        await submitted(database, resources='{"gpus": 2}')
        assert await value(database, "SELECT max(id) FROM resource_classes") == 2


async def _check_invariants(database: Database) -> None:
    async with database.transaction() as connection:
        await invariants.begin_snapshot(connection)
        for check in invariants.CHECKS:
            assert (await invariants.run_check(connection, check)).examples == [], check.name


async def test_a_restore_needs_an_empty_database(own_database: Database, server_url: str) -> None:
    await submitted(own_database)
    taken = await checkpoints.take(own_database, "test")
    content = b"".join(await checkpoints.read_pieces(own_database, taken.id))
    async with _empty(server_url, migrated=True) as database:
        await submitted(database)
        with pytest.raises(Refused, match="not empty"):
            await checkpoints.restore(database, content, taken.sha256, "test")
        assert await value(database, "SELECT count(*) FROM tasks") == 1
    async with _empty(server_url) as stranger:
        await run_on(stranger.url, "CREATE TABLE theirs (id int)")
        with pytest.raises(Refused, match="not ours"):
            await checkpoints.restore(stranger, content, taken.sha256, "test")
    async with _empty(server_url, migrated=True) as database:
        service = await Database(database.url).connect()
        with pytest.raises(Refused, match="at work"):
            await checkpoints.restore(database, content, taken.sha256, "test")
        await service.close()


async def test_a_restore_of_what_is_damaged_or_newer_changes_nothing(own_database: Database, server_url: str) -> None:
    await submitted(own_database)
    taken, content = await _take(own_database)
    newer = json.dumps({**content, "tasks": [{**task, "colour": "red"} for task in content["tasks"]]}).encode()
    async with _empty(server_url) as database:
        with pytest.raises(Refused, match="SHA-256"):
            await checkpoints.restore(database, newer, taken.sha256, "test")
        assert await fetch(database, "SELECT FROM pg_class WHERE relname = 'tasks'") == []
        with pytest.raises(Refused, match="colour"):
            await checkpoints.restore(database, newer, hashlib.sha256(newer).digest(), "test")
        assert await value(database, "SELECT count(*) FROM tasks") == 0
        assert await value(database, "SELECT convener_transaction_offset()") == 0


async def test_goals_go_on_where_they_were(own_database: Database, server_url: str) -> None:
    """A paused one stays paused and its tasks stay held; what it has cost and reached is known; decisions replay."""
    async with own_database.transaction() as connection:
        request = goal_request(weight=2.0, token_budget=100, max_iterations=7)
        await goals.create(connection, request)
    await _complete(own_database)
    (waiting,) = await submitted(own_database)
    async with own_database.transaction() as connection:
        account = IterationReport(number=1, quality=Quality(best=1234.5), money=1e-05)
        await iterations.record(connection, "goal", account, Configured())
        await goals.pause(connection, "goal", "moving house", "me")
    await keeping.process_holds(own_database)
    async with own_database.transaction() as connection:
        before = await goals.view(connection, "goal", Configured())
    async with _empty(server_url) as database:
        await _restore(database, own_database)
        async with database.transaction() as connection:
            found = await goals.view(connection, "goal", Configured())
            assert found.goal == before.goal
            # A restore submits the tasks again, so their numbers begin anew.
            assert found.compute == replace(before.compute, tasks=found.compute.tasks)
            assert found.compute.tasks["submitted"] == 1
            assert found.compute.total.attempts == 1
            replay = iterations.replay("goal", await iterations.read_history(connection, "goal", 1))
            assert replay.recorded_json == replay.replayed_json
            await goals.resume(connection, "goal", "we are there", "me")
        async with database.transaction() as connection:
            await keeping.enforce_budgets(connection)
        await keeping.process_holds(database)
        assert (await leased(database, await ready_worker(database))).task_id == waiting


async def test_one_is_taken_at_a_time(database: Database) -> None:
    results = await asyncio.gather(*(checkpoints.take(database, "test") for _ in range(4)), return_exceptions=True)
    assert [type(result) for result in results].count(CheckpointBusy) == 3
    assert (await checkpoints.take(database, "test")).id


async def test_content_is_read_in_pieces(database: Database) -> None:
    for _ in range(3):
        await submitted(database, payload=json.dumps({"a": "a" * 500_000}))
    taken = await checkpoints.take(database, "test")
    pieces = list(await checkpoints.read_pieces(database, taken.id))
    assert sum(map(len, pieces)) == taken.size_bytes > 1_500_000
    assert max(map(len, pieces)) <= 256 << 10
