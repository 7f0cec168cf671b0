"""What one statement does to many tasks is one row of events, and still an event of its own for each task."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db import hot_path, retention
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, completions, counters, event_rows, events, throughput
from app.queue.store.claims import ClaimRequest
from app.queue.store.event_tables import EVENTS_IN_A_ROW
from app.queue.store.events import BEGINNING, Cursor, Event
from tests.support.factories import GENERATION, completion, ready_worker, submitted
from tests.support.sql import execute, fetch, value

_POLICY = LeasePolicy(avoid_seconds=0)
GENERATION_HIGH = Lane(agent_type=AgentType.GENERATION, priority=Priority.HIGH)


async def all_events(database: Database, page_size: int = 1000) -> list[Event]:
    """All events, read in pages."""
    items: list[Event] = []
    cursor = BEGINNING
    while True:
        async with database.transaction() as connection:
            batch = await events.read_batch(connection, cursor, None, page_size)
        if not batch.items:
            return items
        assert len(batch.items) <= page_size
        items += batch.items
        cursor = batch.next


async def claimed(database: Database, lanes: int | Sequence[Lane]) -> list[completions.Completion]:
    """Results for the leases that as many workers have just received by one statement."""
    lanes = [GENERATION] * lanes if isinstance(lanes, int) else lanes
    asks = [ClaimRequest(await ready_worker(database), uuid4(), lane, acknowledge=True, floor=0.0) for lane in lanes]
    outcomes = await hot_path.run(database, lambda c: claims.claim(c, asks, _POLICY))
    leases = [(outcome.lease, ask.worker_id) for outcome, ask in zip(outcomes, asks, strict=True) if outcome.lease]
    assert len(leases) == len(lanes)
    return [completion(worker, lease, quality=0.5 if place else None) for place, (lease, worker) in enumerate(leases)]


async def test_a_statement_writes_one_row(own_database: Database) -> None:
    task_ids = await submitted(own_database, 3)
    results = await claimed(own_database, 3)
    await hot_path.run(own_database, lambda c: completions.complete(c, results))
    rows = await fetch(own_database, "SELECT kind, next_kind, size FROM events WHERE task_ids IS NOT NULL ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        ("task.submitted", None, 3),
        ("task.assigned", "task.executing", 6),
        ("task.completed", None, 3),
    ]
    story = [event for event in await all_events(own_database) if event.task_id]
    assert [event.task_id for event in story[:3]] == task_ids
    for task_id, result in zip(task_ids, results, strict=True):
        own = [event for event in story if event.task_id == task_id]
        assert [event.kind for event in own] == ["task.submitted", "task.assigned", "task.executing", "task.completed"]
        assert [event.token for event in own] == [None, 1, 1, 1]
        assert [event.worker_id for event in own] == [None, *[result.worker_id] * 3]
    rest = await fetch(own_database, "SELECT kind, task_id, seconds IS NULL AS no_seconds, quality FROM every_event")
    assert {row["kind"] for row in rest if not row["no_seconds"]} == {"task.assigned", "task.completed"}
    qualities = {row["task_id"]: row["quality"] for row in rest if row["kind"] == "task.completed"}
    assert qualities == {result.task_id: result.quality for result in results}


@pytest.mark.parametrize("kind", ["task.submitted", "task.assigned", "task.executing", "task.completed"])
async def test_rows_of_other_kinds_are_not_unfolded(own_database: Database, kind: str) -> None:
    await submitted(own_database, 40)
    results = await claimed(own_database, 40)
    await hot_path.run(own_database, lambda c: completions.complete(c, results))
    counts = f"SELECT count(*) FROM every_event WHERE kind = '{kind}' AND {event_rows.of_kinds([kind])}"
    assert await value(own_database, counts) == 40
    plan = await value(own_database, f"EXPLAIN (ANALYZE, FORMAT JSON) {counts}")
    steps = 2 if kind in ("task.assigned", "task.executing") else 1
    assert _unfolded(json.loads(plan)[0]["Plan"]) == 40 * steps


def _unfolded(plan: dict[str, Any]) -> float:
    """How many events the second step of a nested loop makes of the rows that the first has found."""
    inner = [child for child in plan.get("Plans", ()) if child.get("Parent Relationship") == "Inner"]
    if plan["Node Type"] == "Nested Loop" and inner and "events" not in json.dumps(inner[0]):
        return float(inner[0]["Actual Rows"] * inner[0]["Actual Loops"])
    return sum(map(_unfolded, plan.get("Plans", ())))


async def test_tasks_of_all_goals_and_lanes_share_a_row(own_database: Database) -> None:
    expected: dict[UUID, tuple[str, str | None]] = {}
    for goal in ("one", "other", None):
        for agent in AgentType:
            for task_id in await submitted(own_database, 2, agent_type=agent, goal_id=goal):
                expected[task_id] = agent, goal
    for task_id in await submitted(own_database, 2, goal_id="one", priority=Priority.HIGH):
        expected[task_id] = AgentType.GENERATION, "one"
    lanes = [Lane(agent_type=agent, priority=Priority.MEDIUM) for agent in AgentType for _ in range(6)]
    results = await claimed(own_database, [*lanes, *[GENERATION_HIGH] * 2])
    await hot_path.run(own_database, lambda c: completions.complete(c, results))
    rows = await fetch(own_database, "SELECT kind, size FROM events WHERE kind <> 'task.submitted'")
    assert sorted((row["kind"], row["size"]) for row in rows) == [
        ("task.assigned", 2 * 7),
        ("task.assigned", 2 * 31),
        ("task.completed", 7),
        ("task.completed", 31),
    ]
    story = await fetch(own_database, "SELECT * FROM every_event WHERE kind <> 'task.submitted'")
    assert len(story) == 3 * len(expected)
    priorities = Counter(row["priority"] for row in story)
    assert priorities == {Priority.MEDIUM: 3 * 36, Priority.HIGH: 3 * 2}
    for row in story:
        assert (row["agent_type"], row["goal_id"]) == expected[row["task_id"]]
        assert row["token"] == 1


async def test_what_is_alike_for_all_tasks_of_a_row_is_there_once(own_database: Database) -> None:
    await submitted(own_database, 4, goal_id="one")
    results = await claimed(own_database, 2)
    await execute(own_database, "UPDATE tasks SET token = 6 WHERE worker_id IS NULL")
    await hot_path.run(own_database, lambda c: completions.complete(c, results))
    await claimed(own_database, 2)
    alike = "goal_id, goal_ids, token, tokens FROM events WHERE task_ids IS NOT NULL"
    rows = await fetch(own_database, f"SELECT {alike} AND kind <> 'task.submitted' ORDER BY seq")
    assert [tuple(row) for row in rows] == [("one", None, token, None) for token in (1, 1, 7)]
    await submitted(own_database, 2, goal_id=None)
    await execute(own_database, "UPDATE tasks SET token = seq WHERE worker_id IS NULL")
    await claimed(own_database, 2)
    (row,) = await fetch(own_database, f"SELECT {alike} AND tokens IS NOT NULL")
    assert (row["goal_id"], row["goal_ids"], row["token"]) == (None, [None, None], None)
    assert len(set(row["tokens"])) == 2


async def test_rows_of_one_lane_as_former_versions_write_them_are_read_as_ever(own_database: Database) -> None:
    await submitted(own_database, 3)
    results = await claimed(own_database, 3)
    await hot_path.run(own_database, lambda c: completions.complete(c, results))
    query = "SELECT * FROM every_event ORDER BY seq"
    before = await fetch(own_database, query)
    former = "agent_type = 'generation', priority = 2, lanes = NULL, tokens = array_fill(token, ARRAY[3]), token = NULL"
    await execute(own_database, f"UPDATE events SET {former} WHERE task_ids IS NOT NULL")
    assert await fetch(own_database, query) == before


async def test_every_page_size_gives_the_same(database: Database) -> None:
    await submitted(database, 5)
    await claimed(database, 4)
    expected = await all_events(database)
    assert len({event.cursor for event in expected}) == len(expected)
    for page_size in (1, 2, 3, 7):
        assert await all_events(database, page_size) == expected


async def test_more_tasks_than_a_row_takes(database: Database) -> None:
    count = EVENTS_IN_A_ROW + 100
    task_ids = await submitted(database, count)
    assert await value(database, "SELECT max(size) FROM events") <= EVENTS_IN_A_ROW // 2
    story = [event for event in await all_events(database, 400) if event.task_id]
    assert {event.task_id for event in story} == set(task_ids)
    assert len(story) == count
    assert sorted(story, key=lambda event: event.cursor) == story


async def test_a_batch_of_a_fold_ends_behind_the_row_that_fills_it(database: Database) -> None:
    for _ in range(3):
        await submitted(database, 4)
    async with database.transaction() as connection:
        sizes = []
        while (batch := await throughput.fold(connection, 6)).events:
            sizes.append((batch.events, batch.has_more))
    assert sum(size for size, _ in sizes) == await value(database, "SELECT count(*) FROM every_event")
    assert all(size <= 6 for size, _ in sizes)
    assert [more for _, more in sizes] == [True] * (len(sizes) - 1) + [False]
    async with database.transaction() as connection:
        assert (await throughput.totals(connection))["task.submitted"] == 12


async def test_what_is_dropped_reaches_to_the_last_event_of_a_row(own_database: Database) -> None:
    await submitted(own_database, 4)
    last = (await all_events(own_database))[-1]
    await execute(own_database, "ALTER TABLE events DETACH PARTITION events_default")
    partition = await value(own_database, "SELECT tableoid::regclass::text FROM events LIMIT 1")
    async with own_database.transaction() as connection:
        assert await retention.drop(connection, partition)
        kept = await events.kept_span(connection)
    assert kept.dropped_until == Cursor(transaction=last.cursor.transaction, seq=last.cursor.seq)


async def test_statements_that_count_themselves_are_counted_once_and_others_still(database: Database) -> None:
    await submitted(database, 4, goal_id="@lab/goal")
    await execute(database, "UPDATE tasks SET submitted_priority = 1 WHERE seq = (SELECT min(seq) FROM tasks)")
    results = await claimed(database, 3)
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []

    async def both(connection: hot_path.HotConnection) -> None:
        async with connection.transaction():
            assert len(await completions.complete(connection, results[:2])) == 2
            await connection.execute("UPDATE tasks SET run_at = now() + interval '1 h' WHERE state = 'pending'")

    await hot_path.run(database, both)
    async with database.transaction() as connection:
        assert await counters.differences(connection) == []
        assert {(count.phase, count.tasks) for count in await counters.read(connection)} == {
            ("delayed", 1),
            ("executing", 1),
        }
