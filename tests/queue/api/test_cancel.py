"""Cancelling by a filter over HTTP."""

from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.problems import everything, is_problem
from tests.support.service import Service


async def test_waiting_running_and_dependent_tasks(service: Service) -> None:
    running = await service.submitted(goal_id="a", priority="high")
    worker = await service.worker()
    lease = await worker.lease(wait_seconds=20)
    assert lease["task_id"] == running
    waiting = await service.submitted(goal_id="a")
    blocked = await service.submitted(goal_id="b", depends_on=[running])
    other = await service.submitted(goal_id="b")
    body: dict[str, Any] = {"filter": {"goal_id": "a"}, "reason": "wrong data", "dry_run": True}
    found = await service.post("/tasks/cancel", body, key=Role.SUPERVISOR)
    assert found == {"matched": 2, "cancelled": 0, "dependents": 0, "remaining": 2, "dry_run": True}
    done = await service.post("/tasks/cancel", body | {"dry_run": False}, key=Role.SUPERVISOR)
    assert done == {"matched": 2, "cancelled": 2, "dependents": 1, "remaining": 0, "dry_run": False}
    for task_id in (running, waiting, blocked):
        assert (await service.get(f"/tasks/{task_id}"))["state"] == "cancelled"
    assert (await service.get(f"/tasks/{running}"))["attempts"][0]["outcome"] == "cancelled"
    assert (await service.get(f"/tasks/{blocked}"))["error"]["dependency"] == running
    assert (await service.get(f"/tasks/{other}"))["state"] == "pending"
    pulse = await worker.beat(state="busy", lease={"task_id": running, "token": lease["token"]})
    assert [directive["kind"] for directive in pulse["directives"]] == ["cancel_task"]
    again = await service.post("/tasks/cancel", body | {"dry_run": False})
    assert (again["matched"], again["cancelled"]) == (0, 0)


async def test_every_filter(service: Service) -> None:
    await service.submitted(agent_type="ranking", priority="low", labels={"team": "blue", "run": "7"})
    await service.submitted(agent_type="evolution")
    for wanted, matched in (
        ({"agent_type": "RankingAgent"}, 1),
        ({"priority": "low"}, 1),
        ({"priority": 1}, 1),
        ({"state": "pending"}, 2),
        ({"state": "executing"}, 0),
        ({"label": ["team:blue", "run:7"]}, 1),
        ({"label": "team:red"}, 0),
        ({"created_before": "2100-01-01T00:00:00Z"}, 2),
        ({"created_before": "2000-01-01T00:00:00Z"}, 0),
        ({"all": True}, 2),
    ):
        found = await service.post("/tasks/cancel", {"filter": wanted, "dry_run": True})
        assert found["matched"] == matched, wanted
    done = await service.post("/tasks/cancel", {"filter": {"all": True}, "limit": 1})
    assert (done["cancelled"], done["remaining"]) == (1, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"filter": {}}, "filter"),
        ({"filter": {"label": []}}, "filter"),
        ({"filter": {"all": True, "state": "pending"}}, "filter"),
        ({"filter": {"state": "failed"}}, "filter.state"),
        ({"filter": {"priority": "urgent"}}, "filter.priority"),
        ({"filter": {"labels": {"a": "b"}}}, "filter.labels"),
        ({"filter": {"all": True}, "limit": 10_001}, "limit"),
        ({"filter": {"all": True}, "reason": "x" * 2001}, "reason"),
    ],
)
@pytest.mark.usefixtures("unchanged")
async def test_a_call_that_is_not_allowed_changes_nothing(service: Service, body: Any, field: str) -> None:
    is_problem(await service.ask("POST", "/tasks/cancel", body), 422, "invalid_request", field)


async def test_an_empty_filter_is_refused_with_the_way_to_select_all(service: Service, database: Database) -> None:
    await service.submitted()
    before = await everything(database)
    answer = await service.ask("POST", "/tasks/cancel", {"filter": {}})
    assert '{"all": true}' in answer.json()["detail"]
    assert await everything(database) == before
