"""The plans of the hot statements, also with stale statistics: a plan that walks the table ruins the throughput."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.goals.store import compute
from app.queue.store import attempts, claims, completions, holds, lanes, meters, missed_tasks, ready_lanes
from app.workers.store import workers
from tests.conftest import empty_database, run_on
from tests.support.factories import GENERATION, ready_worker, submitted
from tests.support.sql import execute

_FILL = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at, tag)
SELECT gen_random_uuid(), 'pending', (ARRAY['generation', 'ranking', 'evolution'])[1 + n % 3], 1 + n % 4, '{}', '{}',
       60, 3, '{}', '', now(), n
FROM generate_series(1, 50000) AS n
"""
_BATCHES = (1, 8, 64, 512)
# The lowest floor of a lane's requests, in a generic plan and in one for just these.
_FLOOR = r"\(min\(\((?:\$5|'\{[^}]*\}'::double precision\[\])\)\[request_1\.turn\]\)\)"


@pytest.fixture(scope="module", params=["never analysed", "analysed when empty", "analysed"])
async def full(server_url: str, template: str, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A full queue, about which the planner knows nothing, something that was true once, or the truth."""
    async with empty_database(server_url, template) as database:
        await execute(database, "ALTER TABLE tasks SET (autovacuum_enabled = off)")
        if request.param == "analysed when empty":
            await submitted(database)
            await execute(database, "DELETE FROM tasks")
            await execute(database, "VACUUM ANALYZE tasks")
        await run_on(database.url, _FILL)  # without the limit of a hot statement
        if request.param == "analysed":
            await run_on(database.url, "ANALYZE")
        yield database


async def _plans(database: Database, statement: str, *values: Any) -> str:
    """How PostgreSQL runs the statement for these values, and once it has stopped looking at values."""
    connection = await database.connect()
    try:
        custom = await _explain(connection, statement, values)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        return custom + await _explain(connection, statement, values)
    finally:
        await connection.close()


async def _explain(connection: "asyncpg.Connection[asyncpg.Record]", statement: str, values: Any) -> str:
    rows = await connection.fetch(f"EXPLAIN {statement}", *values)
    return "\n".join(row[0] for row in rows) + "\n"


def _walks(plan: str, table: str) -> list[str]:
    return re.findall(rf"(?:Seq Scan|Bitmap Heap Scan) on {table}\b.*", plan)


def _plain(statement: str, *names: str) -> str:
    """As asyncpg wants it: numbers instead of names."""
    for number, name in enumerate(names, 1):
        statement = re.sub(rf":{name}\b", f"${number}", statement)
    return statement


def _ids(count: int) -> list[UUID]:
    return [uuid4() for _ in range(count)]


@pytest.mark.slow
async def test_a_claim_reads_the_head_of_the_queue(full: Database) -> None:
    worker = await ready_worker(full)
    for batch in _BATCHES:
        lanes = [["generation"] * batch, [2] * batch, [17.0] * batch]
        asks = [[worker, *_ids(batch - 1)], _ids(batch), *lanes, [False] * batch, [None] * batch]
        plan = await _plans(full, claims._CLAIMS[False, False, False], *asks, 15.0, 5.0, 5.0, 300.0)
        assert plan.count("Index Scan using tasks_claim on tasks") == 2
        assert len(re.findall(rf"tag >= {_FLOOR}", plan)) == 2
        assert plan.count("using leases_pkey on leases l") == 2
        assert plan.count("using tasks_pkey on tasks held") == 2
        assert plan.count("Index Scan Backward using workers_pkey on workers newest") == 2
        assert not _walks(plan, "tasks")
        assert not _walks(plan, "leases")


@pytest.mark.slow
async def test_a_claim_with_results_finds_their_tasks_by_key(full: Database) -> None:
    worker = await ready_worker(full)
    for batch in _BATCHES:
        lanes = [["generation"] * batch, [2] * batch, [17.0] * batch]
        asks = [[worker, *_ids(batch - 1)], _ids(batch), *lanes, [False] * batch, [None] * batch]
        results = [_ids(batch), [1] * batch, ["{}"] * batch, [b""] * batch, None, None]
        plan = await _plans(full, claims._CLAIMS[False, False, True], *asks, 15.0, 5.0, 5.0, 300.0, *results)
        assert plan.count("Index Scan using tasks_claim on tasks") == 2
        assert plan.count("using tasks_pkey on tasks held") == 2
        assert plan.count("Index Scan using tasks_pkey on tasks t") == 2
        assert plan.count("Tid Scan on tasks") == 4
        assert not _walks(plan, "tasks")
        assert not _walks(plan, "leases")


@pytest.mark.slow
async def test_a_claim_of_a_class_reads_the_range_of_its_own_lanes(full: Database) -> None:
    worker, lane = await ready_worker(full), replace(GENERATION, resource_class=3)
    for batch in _BATCHES:
        lanes = [["generation"] * batch, [2] * batch, [lane.bottom] * batch]
        asks = [[worker, *_ids(batch - 1)], _ids(batch), *lanes, [False] * batch, [None] * batch]
        requests = [lane.ceiling] * batch, ['{"gpus": 1}'] * batch
        plan = await _plans(full, claims._CLAIMS[False, True, False], *asks, 15.0, 5.0, 5.0, 300.0, *requests)
        assert plan.count("Index Scan using tasks_claim on tasks") == 2
        assert len(re.findall(rf"tag >= {_FLOOR}\) AND \(tag < request_1\.ceiling", plan)) == 2
        assert not _walks(plan, "tasks")
        assert not _walks(plan, "leases")


@pytest.mark.slow
async def test_completions_signs_and_heartbeats_find_their_rows_by_key(full: Database) -> None:
    """A partial index of leases must not hijack the plan: walking all leases costs a hundredfold."""
    for batch in _BATCHES:
        ids, tokens, nothing = _ids(batch), [1] * batch, [None] * batch
        fence = [ids, tokens, _ids(batch)]
        complete = await _plans(full, completions._COMPLETE, *fence, ["{}"] * batch, [b""] * batch, nothing, nothing)
        sign = await _plans(full, completions._RENEW, *fence, nothing, nothing, 15.0)
        numbers = [0.0] * batch
        beats = [_ids(batch), [False] * batch, ids, tokens, numbers, numbers, nothing, nothing, 15.0]
        beat = await _plans(full, workers._HEARTBEATS, *beats)
        for plan in (complete, sign, beat):
            assert "Index Scan using tasks_pkey on tasks" in plan
            assert not _walks(plan, "tasks")
            assert "using tasks_claim" not in plan
            assert "using tasks_submitted_tags" not in plan


@pytest.mark.slow
async def test_looking_for_work_is_one_probe_a_lane(full: Database) -> None:
    for statement in (ready_lanes._FIND, missed_tasks._LOWEST):
        plan = await _plans(full, statement, ["generation", "proximity"], [1, 2], [0.0, 5.0], [inf] * 2)
        assert plan.count("Index Scan using tasks_claim on tasks") == 2
        assert re.search(r"\(tag >= \w+\.\w+\) AND \(tag < \w+\.\w+\)", plan)
        assert not _walks(plan, "tasks")


@pytest.mark.slow
async def test_the_place_of_a_goal_is_one_probe(full: Database) -> None:
    plan = await _plans(
        full, _plain(lanes._READ_FLOWS.text, "agents", "priorities", "goals"), ["ranking"], [2], ["goal"]
    )
    assert "using tasks_submitted_tags on tasks" in plan
    assert not _walks(plan, "tasks")


@pytest.mark.slow
async def test_sums_of_many_goals_compare_no_row_with_each_of_them(full: Database) -> None:
    for statement in (compute._TOTALS, compute._RUNNING):
        plan = await _plans(full, _plain(statement.text, "goal_ids"), [f"goal-{number}" for number in range(1000)])
        assert "goal_id = ANY" not in plan
        assert not _walks(plan, "tasks")


@pytest.mark.slow
async def test_the_sweep_goes_by_worker(full: Database) -> None:
    plan = await _plans(full, _plain(attempts._COUNT.text, "grace", "since"), 10.0, 3600.0)
    assert "using leases_pkey on leases l" in plan
    assert "using tasks_pkey on tasks held" in plan
    assert not _walks(plan, "tasks")


@pytest.mark.slow
async def test_strays_are_found_by_the_time_since_when_they_wait(full: Database) -> None:
    lanes_asked = [["generation", "ranking"], [1, 2], [0.0, 5.0]]
    plan = await _plans(full, ready_lanes._FIND_BELOW, *lanes_asked, datetime.now(UTC), [0.0, 0.0])
    assert "using tasks_waiting on tasks" in plan
    assert plan.count("waiting_since >=") == 2
    assert not _walks(plan, "tasks")


@pytest.mark.slow
async def test_the_tasks_of_a_held_goal_are_found_by_their_goal(full: Database) -> None:
    """Taking them away goes on from where it was, and bringing them back begins at the first."""
    ahead = await _plans(full, _plain(holds._AHEAD.text, "goal_id", "after", "limit"), "goal", 0, 1000)
    assert ahead.count("using tasks_goal on tasks") == 2
    back = await _plans(full, _plain(holds._BRING_BACK_HEAD.text, "goal_id", "limit"), "goal", 1000)
    assert back.count("using tasks_held on tasks") >= 2
    look = _plain(holds._READY_IN_CLOSED.text, "since", "limit", "window")
    strays = await _plans(full, look, datetime.now(UTC), 1000, 10_000)
    assert strays.count("using tasks_waiting on tasks") == 2
    shift = await _plans(full, _plain(holds.SHIFT.text, "goal_id"), "goal")
    assert shift.count("using tasks_held on tasks") == 2
    first = await _plans(full, _plain(compute._FIRST_TYPES.text, "goal_ids"), ["goal", "none"])
    assert first.count("using tasks_goal on tasks") == 2
    lost = await _plans(full, _plain(holds._LOST.text, "after", "limit"), "", 1000)
    assert lost.count("using tasks_held on tasks") == 4
    names, kinds = ("agents", "classes", "goal_id", "limit"), (["generation"], [0])
    chosen = "".join(
        [
            await _plans(full, _plain(s.text, *names), *kinds, "goal", 10)
            for s in (meters._CHOOSE, meters._CHOOSE_SERVED)
        ]
    )
    assert chosen.count("using tasks_held_free on tasks") == 4
    assert "Sort" not in chosen
    metered = await _plans(full, _plain(meters._READ.text, "agents", "classes", "goal_ids"), *kinds, ["goal"])
    assert metered.count("using tasks_held_free on tasks") == 2
    assert metered.count("Index Cond: (goal_id = h.goal_id)") == 2
    for plan in (ahead, back, strays, shift, first, lost, chosen, metered):
        assert not _walks(plan, "tasks")
