"""Dead letters over HTTP: listed, read, requeued one by one or by a filter, and purged."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.queue.service.admission import Admission
from tests.support.dead_letters import fill
from tests.support.problems import everything, is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute, value


async def _failed(service: Service, worker: Worker, code: str = "bad", **fields: Any) -> str:
    """The id of a task that this worker has failed for good."""
    task_id = await service.submitted(**fields)
    lease = await worker.lease(wait_seconds=20)
    assert lease["task_id"] == task_id
    await worker.on_lease(lease, "progress", percent=50, message="half", checkpoint={"step": 5})
    error = {"code": code, "message": "it cannot be done", "retryable": False}
    assert (await worker.on_lease(lease, "fail", error=error)).json()["state"] == "failed"
    return task_id


async def test_from_failure_to_a_second_chance(service: Service, worker: Worker) -> None:
    task_id = await _failed(service, worker, goal_id="kepler", payload={"topic": "orbits"}, labels={"team": "blue"})
    (listed,) = (await service.get("/dead-letters"))["items"]
    assert (listed["id"], listed["state"], listed["error"]["code"]) == (task_id, "failed", "bad")
    assert not {"payload", "result", "checkpoint"} & set(listed)
    letter = await service.get(f"/dead-letters/{task_id}")
    assert (letter["payload"], letter["checkpoint"]) == ({"topic": "orbits"}, {"step": 5})
    assert [attempt["outcome"] for attempt in letter["attempts"]] == ["failed"]
    assert letter == await service.get(f"/tasks/{task_id}")
    for _ in range(2):
        path, body = f"/dead-letters/{task_id}/requeue", {"reason": "mended"}
        task = await service.post(path, body, key=Role.SUPERVISOR)
        assert (task["state"], task["attempt"], task["failures"]) == ("pending", 1, 0)
    assert (task["checkpoint"], task["progress"]["percent"], task["labels"]) == ({"step": 5}, 50, {"team": "blue"})
    assert (await service.get("/dead-letters"))["items"] == []
    is_problem(await service.ask("GET", f"/dead-letters/{task_id}"), 404, "dead_letter_not_found")
    lease = await worker.lease(wait_seconds=20)
    assert (lease["task_id"], lease["attempt"], lease["checkpoint"]) == (task_id, 1, {"step": 5})
    assert lease["token"] > letter["token"]
    assert (await worker.on_lease(lease, "complete", result={"ok": True})).status_code == 200
    done = await service.get(f"/tasks/{task_id}")
    assert (done["state"], done["error"], len(done["attempts"])) == ("completed", None, 1)
    kinds = [event["kind"] for event in (await service.get("/events"))["items"]]
    assert kinds.index("task.failed") < kinds.index("task.requeued") < kinds.index("task.completed")
    is_problem(await service.ask("POST", f"/dead-letters/{task_id}/requeue", {}), 409, "task_finished")


async def test_a_requeue_needs_no_room(database: Database, service: Service, worker: Worker) -> None:
    """What was accepted once is never turned away."""
    await fill(database, 20)
    admission = service.app.state.services[Admission]
    admission.policy = replace(admission.policy, max_queue_size=0)
    is_problem(await service.ask("POST", "/tasks", {"agent_type": "generation"}), 429, "queue_full")
    assert (await service.post("/dead-letters/requeue", {"filter": {"all": True}}))["requeued"] == 20


async def test_many_letters_by_filter(service: Service, database: Database) -> None:
    await fill(database, 5, goal_id="a", code="llm_timeout", labels='{"team": "blue"}')
    await fill(database, 3, goal_id="a", code="unsafe")
    await fill(database, 2, goal_id="b", code="llm_timeout")
    body: dict[str, Any] = {"filter": {"goal_id": "a", "code": "llm_timeout", "label": "team:blue"}, "dry_run": True}
    before = await everything(database)
    found = await service.post("/dead-letters/requeue", body, key=Role.SUPERVISOR)
    assert found == {"matched": 5, "requeued": 0, "remaining": 5, "dry_run": True}
    assert await everything(database) == before
    done = await service.post("/dead-letters/requeue", body | {"dry_run": False, "limit": 4, "reason": "mended"})
    assert done == {"matched": 5, "requeued": 4, "remaining": 1, "dry_run": False}
    done = await service.post("/dead-letters/requeue", body | {"dry_run": False})
    assert done == {"matched": 1, "requeued": 1, "remaining": 0, "dry_run": False}
    assert await value(database, "SELECT count(*) FROM tasks WHERE state = 'pending'") == 5
    purge: dict[str, Any] = {"filter": {"code": "unsafe"}, "dry_run": True}
    assert await service.post("/dead-letters/purge", purge) == {
        "matched": 3,
        "purged": 0,
        "remaining": 3,
        "dry_run": True,
    }
    assert (await service.post("/dead-letters/purge", purge | {"dry_run": False}))["purged"] == 3
    left = (await service.get("/dead-letters"))["items"]
    assert {(letter["goal_id"], letter["error"]["code"]) for letter in left} == {("b", "llm_timeout")}
    events = (await service.get("/events", kind="task.purged"))["items"]
    assert [event["detail"]["code"] for event in events] == ["unsafe"] * 3


async def test_purging_is_for_whoever_manages_the_queue(service: Service, database: Database) -> None:
    await fill(database, 1)
    body = {"filter": {"all": True}}
    is_problem(await service.ask("POST", "/dead-letters/purge", body, key=Role.READER), 403, "forbidden")
    assert (await service.post("/dead-letters/purge", body, key=Role.SUPERVISOR))["purged"] == 1


async def test_pages_and_filters(service: Service, database: Database) -> None:
    letters = [str(task_id) for task_id in await fill(database, 7, goal_id="a", labels='{"team": "blue"}')]
    await fill(database, 2, state="cancelled", goal_id="a")
    await fill(database, 2, goal_id="b", code="other")
    first = await service.get("/dead-letters", goal_id="a", limit=4)
    second = await service.get("/dead-letters", goal_id="a", limit=4, after=first["next"])
    assert [letter["id"] for letter in [*first["items"], *second["items"]]] == letters[::-1]
    assert second["next"] is None
    for query, count in (
        ({"code": "other"}, 2),
        ({"agent_type": "GenerationAgent"}, 9),
        ({"agent_type": "ranking"}, 0),
        ({"label": "team:blue"}, 7),
        ({"label": ["team:blue", "team:red"]}, 0),
        ({"failed_after": "2100-01-01T00:00:00Z"}, 0),
        ({"failed_before": "2100-01-01T00:00:00Z"}, 9),
    ):
        assert len((await service.get("/dead-letters", **query))["items"]) == count, query


async def test_what_is_no_dead_letter(service: Service, database: Database) -> None:
    task_id = await service.submitted()
    unknown = uuid4()
    before = await everything(database)
    for path in (f"/dead-letters/{task_id}", f"/dead-letters/{unknown}"):
        is_problem(await service.ask("GET", path), 404, "dead_letter_not_found")
    is_problem(await service.ask("POST", f"/dead-letters/{unknown}/requeue", {}), 404, "dead_letter_not_found")
    assert (await service.post(f"/dead-letters/{task_id}/requeue"))["state"] == "pending"
    assert await everything(database) == before
    await service.post(f"/tasks/{task_id}/cancel")
    is_problem(await service.ask("POST", f"/dead-letters/{task_id}/requeue", {}), 409, "task_finished")


@pytest.mark.parametrize("path", ["/dead-letters/requeue", "/dead-letters/purge"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"filter": {}}, "filter"),
        ({"filter": {"all": False}}, "filter"),
        ({"filter": {"all": True, "goal_id": "a"}}, "filter"),
        ({"filter": {"goal": "a"}}, "filter.goal"),
        ({"filter": {"label": "blue"}}, "filter.label.0"),
        ({"filter": {"label": ":blue"}}, "filter.label.0"),
        ({"filter": {"label": ["a:b"] * 11}}, "filter.label"),
        ({"filter": {"agent_type": "poetry"}}, "filter.agent_type"),
        ({"filter": {"failed_before": "2026-01-01T00:00:00"}}, "filter.failed_before"),
        ({"filter": {"code": "a\x00b"}}, "filter.code"),
        ({"filter": {"goal_id": "a"}, "limit": 0}, "limit"),
        ({"filter": {"goal_id": "a"}, "limit": 10_001}, "limit"),
        ({"filter": {"goal_id": "a"}, "dry_run": "perhaps"}, "dry_run"),
        ({"filter": {"goal_id": "a"}, "sure": True}, "sure"),
    ],
)
async def test_a_call_that_is_not_allowed_changes_nothing(
    service: Service, database: Database, path: str, body: Any, field: str
) -> None:
    await fill(database, 1, goal_id="a")
    before = await everything(database)
    is_problem(await service.ask("POST", path, body), 422, "invalid_request", field)
    assert await everything(database) == before


async def test_of_many_requeues_at_once_one_counts(service: Service, database: Database) -> None:
    (task_id,) = await fill(database, 1)
    path = f"/dead-letters/{task_id}/requeue"
    answers = await asyncio.gather(*(service.post(path, {"reason": str(n)}) for n in range(12)))
    assert {answer["state"] for answer in answers} == {"pending"}
    assert len((await service.get("/events", kind="task.requeued"))["items"]) == 1


async def test_a_requeued_task_begins_anew_with_how_often_it_was_handed_back(
    service: Service, database: Database
) -> None:
    async def hand_back() -> str:
        released = await worker.on_lease(await worker.lease(wait_seconds=20), "release", reason="no room")
        assert released.status_code == 200, released.text
        events = await service.get("/events", kind="task.released")
        return str(events["items"][-1]["detail"]["reason"])

    worker = await service.worker()
    task = await service.submitted(agent_type="ranking")
    await execute(database, "UPDATE tasks SET returns = 10, token = 30")
    assert await hand_back() == "no room; handed back 11 times, so it waits 1.1 s"
    await execute(database, "UPDATE tasks SET run_at = NULL")
    error = {"code": "c", "message": "m", "retryable": False}
    await worker.on_lease(await worker.lease(wait_seconds=20), "fail", error=error)
    await service.post(f"/dead-letters/{task}/requeue", {"reason": "there is room"})
    assert await hand_back() == "no room"
