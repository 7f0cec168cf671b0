"""Every change of state, each exactly once, to whoever stores a cursor."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.db.database import Database
from app.queue.api import event_stream
from app.queue.api import events as routes
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, until


async def _all(service: Service, limit: int = 500, after: str | None = None, **query: Any) -> list[Any]:
    """Follow the pages until one is empty."""
    found: list[Any] = []
    while True:
        page = await service.get("/events", limit=limit, **query, **({"after": after} if after else {}))
        found += page["items"]
        after = page["next"]
        if not page["items"]:
            return found


async def test_the_story_of_a_task(service: Service) -> None:
    task_id = await service.submitted(goal_id="g", agent_type="ranking")
    worker = await service.worker()
    first = await worker.lease(acknowledge=False)
    await worker.on_lease(first, "start")
    await worker.on_lease(first, "fail", error={"code": "c", "message": "m"})
    # Another worker is preferred, so the first would have to wait.
    other = await service.worker()
    second = await other.lease(wait_seconds=30)
    await other.on_lease(second, "release", reason="draining")
    third = await worker.lease()
    await worker.on_lease(third, "complete", result={"secret": "large"})
    story = await _all(service)
    kinds = [event["kind"].removeprefix("task.") for event in story]
    assert kinds[0] == "submitted"
    assert kinds[-1] == "completed"
    for kind in ("assigned", "executing", "retrying", "released"):
        assert kind in kinds, kinds
    assert all(event["kind"].startswith("task.") for event in story)
    assert {event["task_id"] for event in story} == {task_id}
    assert {(event["agent_type"], event["goal_id"]) for event in story} == {("ranking", "g")}
    assert (story[-1]["worker_id"], story[-1]["token"]) == (worker.id, third["token"])
    assert "large" not in str(story)
    assert len({event["cursor"] for event in story}) == len(story)


async def test_each_event_once_whatever_the_page(service: Service) -> None:
    for _ in range(7):
        await service.submitted()
    whole = await _all(service)
    assert len(whole) == 7
    for limit in (1, 2, 3, 7):
        assert await _all(service, limit) == whole
    # Every event's own cursor is as good as `next`.
    assert await _all(service, after=whole[2]["cursor"]) == whole[3:]


async def test_reading_may_begin_at_a_time(service: Service, database: Database) -> None:
    ids = [await service.submitted() for _ in range(4)]
    await execute(database, "UPDATE events SET at = at - interval '1 hour' WHERE $1 = ANY (task_ids)", ids[0])
    await execute(database, "UPDATE events SET at = at - interval '65 seconds' WHERE $1 = ANY (task_ids)", ids[1])
    now = datetime.now(UTC)
    for seconds, count in ((7200, 4), (600, 3), (60, 2), (-60, 0)):
        since = (now - timedelta(seconds=seconds)).isoformat()
        shown = [event["task_id"] for event in await _all(service, since=since)]
        assert shown == ids[4 - count :], seconds
    is_problem(await service.ask("GET", "/events?since=yesterday"), 422, "invalid_request", "since")


async def test_a_reader_misses_nothing_while_many_write(service: Service) -> None:
    """Transactions that began early and commit late are the trap: their numbers are lower than those already read."""
    writing = asyncio.gather(*(service.submitted() for _ in range(40)))
    seen: list[str] = []
    after = "0-0"
    while len(seen) < 40:
        page = await service.get("/events", after=after, limit=3, wait_seconds=5)
        seen += [event["task_id"] for event in page["items"]]
        after = page["next"]
    assert len(seen) == len(set(seen))
    assert set(seen) == set(await writing)


async def test_from_now_on(service: Service) -> None:
    await service.submitted()
    page = await service.get("/events", after="now")
    assert page["items"] == []
    later = await service.submitted()
    following = await service.get("/events", after=page["next"])
    assert [event["task_id"] for event in following["items"]] == [later]


async def test_next_is_usable_after_an_empty_page(service: Service) -> None:
    page = await service.get("/events")
    assert page["items"] == []
    for _ in range(2):
        page = await service.get("/events", after=page["next"])
        assert page["items"] == []
    task_id = await service.submitted()
    page = await service.get("/events", after=page["next"])
    assert [event["task_id"] for event in page["items"]] == [task_id]


async def test_few_among_many_are_found_without_as_many_calls(service: Service) -> None:
    """Each page looked at no more events than it had room for: for the last of 20 a client came 300,000 times."""
    for _ in range(12):
        await service.submitted(goal_id="yours")
    mine = [await service.submitted(goal_id="mine") for _ in range(3)]
    page = await service.get("/events", goal_id="mine", limit=2)
    assert [event["task_id"] for event in page["items"]] == mine[:2]
    page = await service.get("/events", goal_id="mine", limit=1, after=page["next"])
    assert [event["task_id"] for event in page["items"]] == mine[2:]


async def test_others_are_passed_over_in_pages_of_which_one_call_reads_some(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_PAGE", 2)
    monkeypatch.setattr(routes, "_MOST_PAGES", 3)
    for _ in range(9):
        await service.submitted(goal_id="yours")
    mine = await service.submitted(goal_id="mine")
    page = await service.get("/events", goal_id="mine", limit=1)
    assert page["items"] == []
    page = await service.get("/events", goal_id="mine", limit=1, after=page["next"])
    assert [event["task_id"] for event in page["items"]] == [mine]


async def test_events_of_one_goal(service: Service) -> None:
    """The cursor passes over the others, so that a quiet goal in a busy queue is not read again and again."""
    mine = await service.submitted(goal_id="mine")
    for _ in range(6):
        await service.submitted(goal_id="yours")
    page = await service.get("/events", goal_id="mine", limit=3)
    assert [event["task_id"] for event in page["items"]] == [mine]
    await service.submitted(goal_id="yours")
    nothing = await service.get("/events", goal_id="mine", after=page["next"])
    assert nothing["items"] == []
    assert nothing["next"] != page["next"]
    again = await service.submitted(goal_id="mine")
    found = await service.get("/events", goal_id="mine", after=nothing["next"], wait_seconds=10)
    assert [event["task_id"] for event in found["items"]] == [again]


async def test_an_empty_page_tells_whether_there_is_more(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_PAGE", 2)
    monkeypatch.setattr(routes, "_MOST_PAGES", 1)
    for _ in range(3):
        await service.submitted(goal_id="yours")
    await service.submitted(goal_id="mine")
    pages = [await service.get("/events", goal_id="mine", limit=2)]
    while pages[-1]["more"]:
        pages.append(await service.get("/events", goal_id="mine", limit=2, after=pages[-1]["next"]))
    assert [len(page["items"]) for page in pages] == [0, 1, 0]


async def _follower(service: Service, monkeypatch: pytest.MonkeyPatch, **query: Any) -> "asyncio.Task[Any]":
    """A long poll that has begun to wait, and that only a ring can wake."""
    monkeypatch.setattr(event_stream, "_POLL_SECONDS", 600.0)
    listeners = service.app.state.services.database.announcer._listeners
    before = len(listeners)
    poll = asyncio.create_task(service.get("/events", wait_seconds=30, **query))

    async def listens() -> bool:
        return len(listeners) > before

    await until(listens)
    await asyncio.sleep(0.2)
    return poll


async def test_a_long_poll_wakes_when_something_happens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = await _follower(service, monkeypatch, after="now")
    assert not poll.done()
    task_id = await service.submitted()
    async with asyncio.timeout(20):
        page = await poll
    assert [event["task_id"] for event in page["items"]] == [task_id]


async def test_a_long_poll_is_woken_by_events_of_fast_routes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.submitted()
    worker = await service.worker()
    lease = await worker.lease()
    poll = await _follower(service, monkeypatch, after="now")
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    async with asyncio.timeout(20):
        page = await poll
    assert [event["kind"] for event in page["items"]] == ["task.completed"]


async def test_a_long_poll_ends_with_an_empty_page(service: Service) -> None:
    page = await service.get("/events", wait_seconds=0.3)
    assert page["items"] == []
    assert page["next"]


async def test_waiting_holds_no_connection(service: Service, database: Database) -> None:
    """More followers than the pool has connections, and the service still answers."""
    # From one cursor on: one that says `now` itself may come after the task on a busy machine.
    now = (await service.get("/events", after="now"))["next"]
    polls = [asyncio.create_task(service.get("/events", after=now, wait_seconds=20)) for _ in range(30)]
    await asyncio.sleep(0.5)
    async with asyncio.timeout(15):
        task_id = await service.submitted()
        pages = await asyncio.gather(*polls)
    assert all([event["task_id"] for event in page["items"]] == [task_id] for page in pages)
    assert database.announcer is not service.app.state.services.database.announcer


async def test_a_cursor_from_before_the_retention_is_gone(service: Service, database: Database) -> None:
    """Going on from it would leave out what was dropped, without a word."""
    for _ in range(2):
        await service.submitted()
    old = (await service.get("/events", limit=1))["next"]
    kept = (await service.get("/events"))["next"]
    await execute(
        database,
        "INSERT INTO folds (name, transaction, seq) SELECT 'events dropped', max(transaction), max(seq) "
        "FROM every_event",
    )
    await execute(database, "DELETE FROM events")
    await service.submitted()
    for path in (f"/events?after={old}", f"/events/stream?after={old}", f"/outputs?after=o{old}", "/events?after=0-0"):
        answer = await service.ask("GET", path)
        problem = is_problem(answer, 410, "cursor_expired")
        assert "after=now" in problem["detail"]
    for after in (kept, None):
        page = await service.get("/events", **({"after": after} if after else {}))
        assert [event["kind"] for event in page["items"]] == ["task.submitted"]


async def test_a_cursor_ahead_of_all_events_is_refused(service: Service) -> None:
    await service.submitted()
    transaction = int((await service.get("/events", after="now"))["next"].split("-")[0])
    for path in (f"/events?after={transaction + 10**6}-1", f"/outputs?after=o{transaction + 10**6}-1"):
        assert "restored" in is_problem(await service.ask("GET", path), 422, "cursor_ahead")["detail"]
