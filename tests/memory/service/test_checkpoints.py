"""A checkpoint shows one moment."""

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from app.db import hot_path, schema
from app.db.database import Database
from app.goals.service import budget_enforcement
from app.memory.errors import CheckpointBusy, CheckpointNotFound
from app.memory.rules.checkpoints import CheckpointPolicy
from app.memory.service import checkpoints
from app.memory.service import context as context_operations
from app.memory.store import checkpoints as store
from app.memory.store.context import EntryKey, Write
from app.queue.store import completions, events
from app.queue.store.completions import Completion
from app.queue.store.events import BEGINNING
from tests.support.factories import completion, holding, leased, ready_worker, submitted
from tests.support.plans import explained_database
from tests.support.sql import execute, value

_OFTEN = CheckpointPolicy(min_pause_seconds=0.0)


async def take(database: Database, **policy: Any) -> tuple[store.Checkpoint, Any]:
    """Take a checkpoint; return it with its content."""
    taken = await checkpoints.take(database, "test", policy=CheckpointPolicy(**policy))
    assert (await checkpoints.verify(database, taken.id)).violations == []
    return taken, json.loads(b"".join(await checkpoints.read_pieces(database, taken.id)))


async def complete(database: Database, count: int = 1) -> None:
    for _ in range(count):
        call = completion(*await holding(database))
        assert await is_accepted(database, call)


async def is_accepted(database: Database, call: Completion) -> bool:
    return bool(await hot_path.run(database, lambda c: completions.complete(c, [call])))


async def test_an_empty_system_has_a_checkpoint_too(database: Database) -> None:
    taken, content = await take(database)
    assert taken.counts == {"tasks": 0, "leased": 0, "dependencies": 0, "context": 0}
    assert (content["tasks"], content["revision"]) == ([], schema.head())
    assert taken.size_bytes == len(b"".join(await checkpoints.read_pieces(database, taken.id)))
    with pytest.raises(CheckpointNotFound):
        await checkpoints.read(database, taken.id + 1)


async def test_what_is_in_flight_is_in_it_and_nothing_else(database: Database) -> None:
    await complete(database)
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
    taken, content = await take(database)
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
    assert set(found.task_ids) == {str(task_id) for task_id in first}


async def test_taking_one_never_holds_all_of_its_content(database: Database) -> None:
    """20,000 tasks were held as text several times over, and the memory never came back to the system."""
    await submitted(database, 2000, payload=json.dumps({"text": "orbits are ellipses " * 250}))
    await take(database)
    tracemalloc.start()
    try:
        taken = await checkpoints.take(database, "test")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken.size_bytes > 10_000_000
    assert peak < taken.size_bytes / 2


async def test_taking_one_holds_up_no_reader_of_events(database: Database) -> None:
    """One that writes events would hold up all readers of later ones."""
    async with database.transaction() as reading:
        await store.read_snapshot(reading, BEGINNING, CheckpointPolicy())
        told = await submitted(database, 3)
        async with database.transaction() as connection:
            assert [event.task_id for event in (await events.read_batch(connection, BEGINNING, None, 10)).items] == told


async def test_events_after_its_cursor_are_those_that_are_not_in_it_for_sure(database: Database) -> None:
    await submitted(database, 2)
    taken, _ = await take(database)
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
    taken, content = await take(database, max_tasks=4)
    assert taken.is_cut
    assert content["tasks"][0]["id"] == str(lease.task_id)
    assert len(content["tasks"]) == 4
    # Without the one that the others wait for, they could never run.
    await execute(database, "UPDATE tasks SET seq = DEFAULT WHERE id = $1", tasks[4])
    taken, content = await take(database, max_tasks=7)
    ids = [task["id"] for task in content["tasks"]]
    assert taken.is_cut
    assert str(tasks[4]) not in ids
    assert str(waits) not in ids
    assert str(content_only) in ids
    taken, content = await take(database, max_bytes=1500)
    assert taken.is_cut
    assert 0 < len(content["tasks"]) < 5
    assert not (await take(database))[0].is_cut


async def test_iterations_of_goals_that_have_ended_are_not_read(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 20,000 goals, of which 500 lived, were 420,000 pages for every checkpoint."""
    await execute(
        own_database,
        """INSERT INTO goals (id, state, objective, created_by, started_at)
           SELECT n::text, CASE WHEN n <= 5 THEN 'running' ELSE 'stopped' END, '', '', now()
           FROM generate_series(1, 500) n""",
    )
    await execute(
        own_database,
        """INSERT INTO goal_iterations (goal_id, number, request_hash, report, inputs, decision)
           SELECT id, number, '', '{}', '{}', '{}' FROM goals, generate_series(1, 20) number""",
    )
    await execute(own_database, "VACUUM ANALYZE goals, goal_iterations")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            snapshot = await store.read_snapshot(connection, BEGINNING, CheckpointPolicy())
        rows = sum(cost.rows for query, cost in log.take_by_text().items() if "goal_iterations" in query)
    assert len(snapshot.parts["goal_iterations"]) == 5 * 20
    assert 100 <= rows < 2500


async def test_live_goals_come_before_those_that_have_ended_and_too_many_are_told(database: Database) -> None:
    for prefix, state, number in (("a", "stopped", 9), ("z", "running", 3)):
        await execute(
            database,
            "INSERT INTO goals (id, state, objective, created_by, started_at)"
            f" SELECT '{prefix}' || n, '{state}', 'orbits', 'key', now() FROM generate_series(1, {number}) n",
        )
    for table, columns in (
        ("goal_compute", "goal_id, agent_type, attempts, seconds) SELECT id, 'ranking', 1, 5"),
        ("llm_spending", "goal_id, cost_usd, tokens, max_cost_usd, max_tokens) SELECT id, 1, 1, 1, 1"),
        ("holds", "goal_id, reason) SELECT id, 'paused'"),
    ):
        await execute(database, f"INSERT INTO {table} ({columns} FROM goals")
    await execute(
        database,
        "INSERT INTO goal_iterations (goal_id, number, request_hash, report, inputs, decision) "
        "SELECT id, 1, '', '{}', '{}', '{}' FROM goals",
    )
    taken, content = await take(database, max_rows=4)
    assert not taken.is_cut
    for part in ("goal_compute", "llm_spending", "holds"):
        assert {"z1", "z2", "z3"} < {row["goal_id"] for row in content[part]}, part
        assert len(content[part]) == 4
    assert {"z1", "z2", "z3"} < {goal["id"] for goal in content["goals"]}
    assert [row["goal_id"] for row in content["goal_iterations"]] == ["z1", "z2", "z3"]
    assert (await take(database, max_rows=2))[0].is_cut
    assert (await take(database, max_rows=3))[0].is_cut is False
    # By their bytes as well.
    await execute(database, "UPDATE goals SET objective = repeat('x', 1000)")
    taken, content = await take(database, max_bytes=2500)
    assert taken.is_cut
    assert {goal["id"] for goal in content["goals"]} < {"z1", "z2", "z3"}


async def test_one_is_taken_when_it_is_due(database: Database) -> None:
    first = await checkpoints.take_when_due(database, _OFTEN, 30)
    assert first is not None
    assert first.reason == "the first"
    assert await checkpoints.take_when_due(database, _OFTEN, 30) is None
    await complete(database, 3)
    assert await checkpoints.take_when_due(database, CheckpointPolicy(every_completions=3), 30) is None
    policy = CheckpointPolicy(every_completions=3, min_pause_seconds=0.0, pause_factor=0.0)
    second = await checkpoints.take_when_due(database, policy, 30)
    assert second is not None
    assert second.reason == "3 tasks completed"
    await execute(database, "UPDATE checkpoints SET taken_at = now() - interval '6 minutes'")
    third = await checkpoints.take_when_due(database, _OFTEN, 30)
    assert third is not None
    assert third.reason == "300 s passed"


async def test_the_next_one_comes_in_its_time_also_where_the_clock_was_set_back(database: Database) -> None:
    """By an hour, none was taken for an hour."""
    assert await checkpoints.take_when_due(database, CheckpointPolicy(), 30) is not None
    await execute(database, "UPDATE checkpoints SET taken_at = taken_at + interval '1 h'")
    await execute(database, "UPDATE loop_ticks SET last_run_at = last_run_at + interval '1 h'")
    assert await checkpoints.take_when_due(database, CheckpointPolicy(), 30) is not None
    assert await checkpoints.take_when_due(database, CheckpointPolicy(), 30) is None


async def test_it_is_put_off_after_a_long_one_and_until_events_are_counted(database: Database) -> None:
    """One of 35 s came after every other, and summed a million events that the fold had still to count."""
    policy = CheckpointPolicy(every_completions=3)
    assert await checkpoints.take_when_due(database, policy, 30) is not None
    assert await value(database, "SELECT (result ->> 'seconds')::float8 < 30 FROM loop_ticks WHERE duty = 'checkpoint'")
    await complete(database, 3)
    for table, column in (("checkpoints", "taken_at"), ("loop_ticks", "last_run_at")):
        await execute(database, f"UPDATE {table} SET {column} = now() - interval '100 s'")
    await execute(database, "UPDATE loop_ticks SET result = '{\"seconds\": 35}'")
    assert await checkpoints.take_when_due(database, policy, 30) is None
    await execute(database, "UPDATE loop_ticks SET result = '{\"seconds\": 3.5}'")
    await execute(
        database,
        "INSERT INTO loop_ticks (duty, last_run_at, result) VALUES ($1, now(), '{\"behind\": true}')",
        budget_enforcement.FOLD_DUTY,
    )
    assert await checkpoints.take_when_due(database, policy, 30) is None
    await execute(database, "UPDATE loop_ticks SET result = '{}' WHERE duty = $1", budget_enforcement.FOLD_DUTY)
    assert await checkpoints.take_when_due(database, policy, 30) is not None


_QUEUE = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, max_attempts, retry_delays, request_hash,
                   created_at)
SELECT gen_random_uuid(), 'pending', 'ranking', 2, '{}', '{}', 3, '{}', '', now() FROM generate_series(1, 20000) AS n
"""
_ENDED = """
INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
SELECT gen_random_uuid(), n::text, 1, 'stopped', '{}', '{}', now() FROM generate_series(1, 3000) AS n
"""


@pytest.mark.slow
async def test_leased_tasks_are_found_without_those_that_wait(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where workers were many it read all of a million tasks, for 9 s."""
    await holding(own_database)
    await execute(own_database, _QUEUE)
    await execute(own_database, _ENDED)
    await execute(own_database, "VACUUM ANALYZE tasks, workers, leases")
    async with explained_database(own_database, monkeypatch) as (database, log):
        await take(database, max_tasks=1)
        (cost,) = (cost for query, cost in log.take_by_text().items() if "workers w" in query and "t.seq" in query)
    assert 3000 < cost.rows < 5 * 3000


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
    taken, _ = await take(database)
    await execute(database, "UPDATE checkpoints SET sha256 = sha256('x')")
    assert "SHA-256" in (await checkpoints.verify(database, taken.id)).violations[0]
    await execute(database, "UPDATE checkpoints SET content = set_byte(content, 20, 0)")
    assert (await checkpoints.verify(database, taken.id)).violations


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
