"""A full queue over HTTP: 429 with the depth and when to come again, and nothing changed."""

from collections.abc import AsyncIterator

import pytest

from app.db.database import Database
from tests.support.service import Service, make_keys, serving

_TASK = {"agent_type": "generation"}


@pytest.fixture
async def narrow(database: Database) -> AsyncIterator[Service]:
    """A service in whose queue ten tasks may wait, and five of low priority."""
    async with serving(database.url, await make_keys(database), max_queue_size=10, duplicate_window_seconds=60) as it:
        yield it


def _tasks(count: int, **fields: object) -> dict[str, object]:
    return {"tasks": [{**_TASK, "payload": {"n": n}, "priority": "critical", **fields} for n in range(count)]}


async def test_a_batch_that_does_not_fit_is_refused_whole(narrow: Service) -> None:
    assert (await narrow.ask("POST", "/tasks/batch", _tasks(10))).status_code == 201
    refused = await narrow.ask("POST", "/tasks/batch", _tasks(2, agent_type="ranking"))
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "5"
    assert refused.headers["Content-Type"] == "application/problem+json"
    problem = refused.json()
    assert (problem["code"], problem["depth"], problem["limit"]) == ("queue_full", 10, 10)
    assert "10 tasks wait already and 10 may; 2 of yours do not fit" in problem["detail"]
    assert len((await narrow.get("/tasks"))["items"]) == 10


async def test_a_low_flood_leaves_room_for_urgent_work(narrow: Service) -> None:
    assert (await narrow.ask("POST", "/tasks/batch", _tasks(6, priority="low"))).status_code == 429
    assert (await narrow.ask("POST", "/tasks/batch", _tasks(5, priority="low"))).status_code == 201
    assert (await narrow.ask("POST", "/tasks", {**_TASK, "priority": "low"})).status_code == 429
    assert (await narrow.ask("POST", "/tasks", {**_TASK, "priority": "critical"})).status_code == 201


async def test_a_leased_task_makes_room(narrow: Service) -> None:
    await narrow.ask("POST", "/tasks/batch", _tasks(10))
    worker = await narrow.worker()
    assert await worker.lease() is not None
    assert (await narrow.ask("POST", "/tasks", {**_TASK, "priority": "critical"})).status_code == 201


async def test_a_repeated_submit_is_answered_although_the_queue_is_full(narrow: Service) -> None:
    keyed = {**_TASK, "priority": "critical", "idempotency_key": "once"}
    first = await narrow.ask("POST", "/tasks", keyed)
    await narrow.ask("POST", "/tasks/batch", _tasks(9))
    again = await narrow.ask("POST", "/tasks", keyed)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]


async def test_the_same_work_within_the_window_is_the_same_task(narrow: Service) -> None:
    task = {**_TASK, "payload": {"topic": "orbits"}}
    first, again = [await narrow.ask("POST", "/tasks", task) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
