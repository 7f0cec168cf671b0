"""Lists of live and finished tasks: complete, in order, and at a bounded cost whatever the filter."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.states import TaskState
from app.queue.store import listing
from app.queue.store.listing import Selection
from tests.conftest import run_on
from tests.support.dead_letters import failed, fill
from tests.support.factories import holding, submitted
from tests.support.sql import execute, fetch

_DAY = timedelta(days=1)


async def _pages(database: Database, selection: Selection, *, limit: int = 3, look: int = 50_000) -> list[list[UUID]]:
    """The ids on each page, to the end."""
    pages, before = [], None
    while True:
        async with database.transaction() as connection:
            page = await listing.page(connection, selection, below=before, limit=limit, max_rows=look)
        pages.append([row["id"] for row in page.items])
        if page.next is None:
            return pages
        assert before is None or page.next < before
        before = page.next


async def _all(database: Database, selection: Selection, **options: int) -> list[UUID]:
    return [task_id for page in await _pages(database, selection, **options) for task_id in page]


async def _mixed(database: Database) -> list[UUID]:
    """Live and finished tasks in turn, the newest first."""
    ids = []
    for _ in range(5):
        ids += await submitted(database, 2)
        ids += await fill(database, 3)
    return ids[::-1]


@pytest.mark.parametrize("limit", [1, 3, 7, 25, 100])
async def test_pages_follow_each_other_without_gap_or_repetition(database: Database, limit: int) -> None:
    ids = await _mixed(database)
    assert await _all(database, Selection(), limit=limit) == ids


@pytest.mark.parametrize("look", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("labels", [[], [("team", "blue")]])
async def test_a_short_look_costs_pages_but_never_a_task(
    database: Database, look: int, labels: list[tuple[str, str]]
) -> None:
    """One table is looked at further than the other; what lies between must come on a later page, once."""
    ids = await _mixed(database)
    wanted = ids if not labels else ids[::4]
    mark = "SET labels = $2::jsonb WHERE id = ANY ($1)"
    for table in ("tasks", "task_history"):
        await execute(database, f"UPDATE {table} {mark}", wanted, json.dumps({"team": "blue"}))
    for limit in (1, 4, 100):
        assert await _all(database, Selection(labels=labels), limit=limit, look=look) == wanted


async def test_a_filter_that_matches_nothing_ends_after_as_many_looks_as_there_are_rows_for(database: Database) -> None:
    await _mixed(database)
    pages = await _pages(database, Selection(code="nowhere"), limit=50, look=4)
    assert 4 <= len(pages) <= 8
    assert not any(pages)


async def test_leased_tasks_are_found_at_once_however_many_wait_behind_them(database: Database) -> None:
    """They are the oldest: a queue of 300,000 had six empty pages before them."""
    worker, lease = await holding(database, goal_id="run")
    other, older = await holding(database)
    await submitted(database, 30)
    await execute(database, "UPDATE workers SET state = 'lost', ended_at = now() WHERE id = $1", other)
    running = [older.task_id, lease.task_id]
    for states in ([TaskState.EXECUTING], [TaskState.ASSIGNED, TaskState.EXECUTING]):
        assert await _pages(database, Selection(states=states), limit=5, look=3) == [running]
        assert await _pages(database, Selection(states=states), limit=1, look=3) == [[task_id] for task_id in running]
    assert await _pages(database, Selection(states=[TaskState.ASSIGNED]), look=3) == [[]]
    assert await _all(database, Selection(states=[TaskState.EXECUTING], goal_id="run"), look=3) == [lease.task_id]
    assert await _all(database, Selection(states=[TaskState.EXECUTING], worker_id=worker), look=3) == [lease.task_id]


async def test_tasks_of_a_worker_are_found_at_once_however_many_wait_that_are_newer(database: Database) -> None:
    """A long queue left the pages of a worker empty, though it held a task and had finished others."""
    (past,) = await fill(database, 1)
    worker, lease = await holding(database)
    await execute(database, "UPDATE task_history SET worker_id = $1", worker)
    await submitted(database, 30)
    assert await _pages(database, Selection(worker_id=worker), look=3) == [[lease.task_id, past]]
    assert await _pages(database, Selection(worker_id=worker, states=[TaskState.PENDING]), look=3) == [[]]


async def test_a_page_reads_fewer_tasks_where_they_lie_apart(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 dead letters among a million tasks lie on as many pages of 8 KiB, which took 1.5 s."""
    await fill(database, 20, goal_id="@lab/goal")
    monkeypatch.setattr(listing, "MAX_ROWS", 100)
    monkeypatch.setattr(listing, "MAX_SCATTERED_ROWS", 10)
    for selection, leads_on in (
        (Selection(code="nowhere"), False),
        (Selection(code="nowhere", namespace="default"), False),
        (Selection(code="nowhere", states=[TaskState.FAILED]), True),
        (Selection(code="nowhere", goal_id="@lab/goal"), True),
        (Selection(code="nowhere", namespace="lab"), True),
    ):
        async with database.transaction() as connection:
            page = await listing.page(connection, selection, below=None, limit=5)
        assert (page.next is not None) == leads_on, selection


async def test_filters(database: Database) -> None:
    worker, lease = await holding(database, agent_type=AgentType.GENERATION, goal_id="run")
    (low,) = await submitted(database, agent_type=AgentType.RANKING, goal_id="wait", priority=Priority.LOW)
    letter, _ = await failed(database, code="llm_timeout", goal_id="fail", labels='{"team": "blue", "run": "7"}')
    old = datetime.now(UTC) - 5 * _DAY
    (past,) = await fill(database, 1, state="cancelled", goal_id="old", finished_at=old, labels='{"team": "blue"}')
    now = datetime.now(UTC)
    for selection, wanted in (
        (Selection(), [past, letter, low, lease.task_id]),
        (Selection(priority=Priority.LOW), [low]),
        (Selection(agent_type=AgentType.RANKING), [low]),
        (Selection(goal_id="fail"), [letter]),
        (Selection(worker_id=worker), [lease.task_id]),
        (Selection(code="llm_timeout"), [letter]),
        (Selection(labels=[("team", "blue")]), [past, letter]),
        (Selection(labels=[("team", "blue"), ("run", "7")]), [letter]),
        (Selection(labels=[("team", "blue"), ("team", "red")]), []),
        (Selection(states=[TaskState.PENDING]), [low]),
        (Selection(states=[TaskState.FAILED]), [letter]),
        (Selection(states=[TaskState.FAILED, TaskState.PENDING]), [letter, low]),
        (Selection(states=[TaskState.FAILED, TaskState.CANCELLED]), [past, letter]),
        (Selection(states=[TaskState.COMPLETED]), []),
        (Selection(finished_after=now - _DAY), [letter]),
        (Selection(finished_before=now - _DAY), [past]),
        (Selection(finished_after=old, finished_before=old + timedelta(seconds=1)), [past]),
        (Selection(finished_after=old + timedelta(seconds=1), finished_before=now - _DAY), []),
        (Selection(finished_after=now, states=[TaskState.PENDING]), []),
        (Selection(created_after=now + _DAY), []),
        (Selection(created_before=now + _DAY, states=[TaskState.PENDING]), [low]),
    ):
        assert await _all(database, selection) == wanted, selection


async def test_an_item_is_whole_but_for_payload_result_and_checkpoint(database: Database) -> None:
    task_id, _ = await failed(database)
    async with database.transaction() as connection:
        (item,) = (await listing.page(connection, Selection(), below=None, limit=5)).items
    assert (item["id"], item["state"], item["error"]["code"]) == (task_id, "failed", "bad")
    assert not {"payload", "result", "checkpoint"} & set(item)


@pytest.mark.slow
async def test_a_page_stays_within_its_look_among_many_tasks(own_database: Database) -> None:
    """By PostgreSQL's own account of the rows it has read, with and without statistics."""
    for _ in range(4):
        await fill(own_database, 5000)
    for analysed in (False, True):
        if analysed:
            await run_on(own_database.url, "ANALYZE")
        for selection in (Selection(code="nowhere"), Selection(labels=[("a", "b")], states=[TaskState.FAILED])):
            read = await _rows_read(own_database, selection)
            assert 1000 <= read <= 2 * 1000 + 100, (analysed, selection)


async def _rows_read(database: Database, selection: Selection) -> int:
    statement = listing._statement(listing._sources(selection, None))
    values = {**selection.values(), "limit": 51, "max_rows": 1000, "last": 999, "page_bytes": 1 << 20}
    names: list[str] = []
    for name in values:
        if f":{name}" in statement:
            names.append(name)
            statement = statement.replace(f":{name}", f"${len(names)}")
    query = f"EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF, TIMING OFF) {statement}"
    (row,) = await fetch(database, query, *(values[name] for name in names))
    return sum(_leaves(json.loads(row[0])[0]["Plan"]))


def _leaves(plan: dict[str, object]) -> list[int]:
    below = plan.get("Plans", [])
    assert isinstance(below, list)
    read = [count for child in below for count in _leaves(child)]
    if plan.get("Relation Name"):
        read.append(int(float(str(plan["Actual Rows"])) + float(str(plan.get("Rows Removed by Filter", 0)))))
    return read
