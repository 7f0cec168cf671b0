"""What entries of the audit log tell: of rivals what the one before left, of an act all that it changed."""

import asyncio
from typing import Any

import pytest

from app.admin.store import audit
from app.db.database import Database
from app.llm.store import models
from tests.support.service import Service
from tests.support.sql import until_blocked

# Requests of two rivals that change the same thing, in any order.
_RIVALS: dict[str, list[tuple[str, str, Any]]] = {
    "pauses": [("POST", "/queues/ranking/pause", {}), ("POST", "/queues/evolution/pause", {})],
    "weight": [("PUT", "/goals/g/weight", {"weight": 2}), ("PUT", "/goals/g/weight", {"weight": 3})],
    "budget": [
        ("PUT", "/llm/budgets/agent/ranking", {"token_budget": 2}),
        ("PUT", "/llm/budgets/agent/ranking", {"token_budget": 3}),
    ],
}


async def _entries(service: Service, number: int) -> list[Any]:
    """The last entries, oldest first."""
    items: list[Any] = (await service.get("/audit", limit=number))["items"]
    return items[::-1]


async def _rivals(service: Service, database: Database, requests: list[tuple[str, str, Any]]) -> None:
    """Send requests at once; none may record what it has done before all have come as far as they can."""
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await audit.lock_tail(connection, "nobody")
        rivals = [group.create_task(service.ask(*request)) for request in requests]
        await until_blocked(database, len(rivals))
    assert all(rival.result().is_success for rival in rivals), [rival.result().text for rival in rivals]


@pytest.mark.parametrize("subject", _RIVALS)
async def test_the_second_tells_what_the_first_has_left(service: Service, database: Database, subject: str) -> None:
    await _rivals(service, database, _RIVALS[subject])
    first, second = await _entries(service, 2)
    left, found = first["after"], second["before"]
    assert found is not None
    assert {name: left[name] for name in found} == found


async def test_a_pause_that_another_was_quicker_with_is_told_once(service: Service, database: Database) -> None:
    await _rivals(service, database, [("POST", "/queues/ranking/pause", {})] * 2)
    actions = [entry["action"] for entry in await _entries(service, 9)]
    assert actions.count("queues.pause") == 1


@pytest.mark.parametrize("end", ["evict", "lost"])
async def test_a_worker_is_evicted_in_the_state_that_another_left_it_in(
    service: Service, database: Database, end: str
) -> None:
    worker = await service.worker()
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await audit.lock_tail(connection, "nobody")
        group.create_task(service.ask("POST", f"/workers/{worker.id}/drain", {}))
        await until_blocked(database)
        group.create_task(service.ask("POST", f"/workers/{worker.id}/{end}", {}))
        await until_blocked(database, 2)
    (entry,) = await _entries(service, 1)
    assert entry["before"]["state"] == "draining"


async def test_an_eviction_tells_that_the_worker_was_lost_before(service: Service) -> None:
    worker = await service.worker()
    await service.post(f"/workers/{worker.id}/lost")
    await service.post(f"/workers/{worker.id}/evict")
    (entry,) = await _entries(service, 1)
    assert (entry["action"], entry["before"]["state"]) == ("worker.evict", "lost")


async def test_a_model_that_somebody_removes_meanwhile_is_listed_anew(service: Service, database: Database) -> None:
    new = {"If-Match": '"0"'}
    await service.ask("PUT", "/llm/models/m", {"max_concurrency": 2}, headers=new)
    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await models.lock(connection, ["m"])
        answer = group.create_task(service.ask("PUT", "/llm/models/m", {"max_concurrency": 3}, headers=new))
        await until_blocked(database)
        await models.remove(connection, "m")
    assert answer.result().is_success, answer.result().text
    (entry,) = await _entries(service, 1)
    assert (entry["action"], entry["before"]) == ("llm_model.set", None)
    assert (entry["after"]["version"], entry["after"]["max_concurrency"]) == (1, 3)


async def test_a_new_goal_is_told_with_its_weight(service: Service) -> None:
    await service.post("/goals", {"id": "g", "objective": "to know", "weight": 3})
    (entry,) = await _entries(service, 1)
    assert entry["after"]["weight"] == 3


async def test_a_requeue_tells_the_priority_that_it_gave(service: Service) -> None:
    worker = await service.worker()
    for path, body in (("/dead-letters/{}/requeue", {}), ("/dead-letters/requeue", {"filter": {"all": True}})):
        task_id = await service.submitted()
        lease = await worker.lease(wait_seconds=20)
        await worker.on_lease(lease, "fail", error={"code": "bad", "message": "m", "retryable": False})
        await service.post(path.format(task_id), body | {"priority": "low"})
        (entry,) = await _entries(service, 1)
        assert entry["after"]["priority"] == "low"
        await service.post(f"/tasks/{task_id}/cancel")


async def test_the_objective_of_a_goal_is_for_those_who_may_read_content(service: Service) -> None:
    await service.post("/goals", {"id": "g", "objective": "what moves the planets?"})
    body = {"role": "reader", "label": "figures", "withheld": ["content:read"]}
    key = (await service.post("/keys", body))["key"]
    assert (await service.ask("GET", "/goals/g", key=key)).status_code == 403
    answer = await service.ask("GET", "/audit", key=key)
    assert answer.json()["items"][1]["action"] == "goal.created"
    assert "planets" not in answer.text
