"""Checkpoints over the wire."""

import hashlib
import json

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute


async def test_a_checkpoint_is_taken_listed_read_and_verified(service: Service, worker: Worker) -> None:
    await service.submitted()
    lease = await worker.lease()
    waiting = await service.submitted()
    taken = await service.post("/checkpoints", {"reason": "before the upgrade"}, key=Role.OPERATOR)
    assert taken["counts"] == {"tasks": 2, "leased": 1, "dependencies": 0, "context": 0}
    assert (taken["reason"], taken["is_cut"]) == ("before the upgrade", False)
    assert taken["taken_by"] == service.keys[Role.OPERATOR].split("_")[1]
    assert await service.get(f"/checkpoints/{taken['id']}") == taken
    assert (await service.get("/checkpoints"))["items"] == [taken]
    content = await service.ask("GET", f"/checkpoints/{taken['id']}/content", key=Role.READER)
    assert content.headers["content-type"] == "application/json"
    assert hashlib.sha256(content.content).hexdigest() == taken["sha256"]
    assert [task["id"] for task in json.loads(content.content)["tasks"]] == [lease["task_id"], waiting]
    verified = await service.post(f"/checkpoints/{taken['id']}/verify")
    assert (verified["ok"], verified["violations"], verified["checkpoint"]) == (True, [], taken)


async def test_events_go_on_from_its_cursor(service: Service) -> None:
    await service.submitted()
    taken = await service.post("/checkpoints")
    later = await service.submitted()
    page = await service.get("/events", after=taken["event_cursor"])
    assert [event["task_id"] for event in page["items"]] == [later]


async def test_checkpoints_are_listed_in_pages(service: Service) -> None:
    made = [(await service.post("/checkpoints"))["id"] for _ in range(5)]
    first = await service.get("/checkpoints", limit=3)
    second = await service.get("/checkpoints", limit=3, after=first["next"])
    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next"] is None


async def test_a_damaged_one_is_called_so(service: Service, database: Database) -> None:
    taken = await service.post("/checkpoints")
    await execute(database, "UPDATE checkpoints SET sha256 = sha256('x')")
    verified = await service.post(f"/checkpoints/{taken['id']}/verify")
    assert not verified["ok"]
    assert "SHA-256" in verified["violations"][0]


@pytest.mark.parametrize("path", ["", "/content"])
async def test_one_that_does_not_exist(service: Service, path: str) -> None:
    is_problem(await service.ask("GET", f"/checkpoints/7{path}"), 404, "checkpoint_not_found")
    is_problem(await service.ask("GET", f"/checkpoints/x{path}"), 422, "invalid_request", "checkpoint_id")
    is_problem(await service.ask("POST", "/checkpoints/7/verify", {}), 404, "checkpoint_not_found")
