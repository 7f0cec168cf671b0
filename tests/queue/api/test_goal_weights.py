"""The weights of research goals, and what they do to the order of tasks."""

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.permit_callers import list_models
from tests.support.problems import is_problem
from tests.support.service import Service, make_keys, serving
from tests.support.sql import execute


async def _weigh(service: Service, goal: str, weight: object) -> Any:
    return await service.ask("PUT", f"/goals/{quote(goal, safe='')}/weight", {"weight": weight}, key=Role.SUPERVISOR)


async def test_a_weight_is_kept(service: Service) -> None:
    assert await service.get("/goals/kepler/weight") == {"goal_id": "kepler", "weight": 1.0}
    for weight in (2.5, 2.5, 0.01, 100):
        answer = await _weigh(service, "kepler", weight)
        assert (answer.status_code, answer.json()) == (200, {"goal_id": "kepler", "weight": weight})
        assert (await service.get("/goals/kepler/weight"))["weight"] == weight
    assert (await service.get("/goals/tycho/weight"))["weight"] == 1.0


async def test_a_goal_may_have_any_name(service: Service) -> None:
    await _weigh(service, "Überprüfung of 50 % ?", 3)
    assert (await service.get("/goals/Überprüfung of 50 %25 %3F/weight"))["weight"] == 3


@pytest.mark.parametrize("weight", [0, 0.009, 100.1, -1, "much", None])
async def test_weights_that_make_no_sense(service: Service, weight: object) -> None:
    is_problem(await _weigh(service, "kepler", weight), 422, "invalid_request", "weight")
    assert (await service.get("/goals/kepler/weight"))["weight"] == 1.0


async def test_a_name_that_is_too_long(service: Service) -> None:
    is_problem(await _weigh(service, "x" * 201, 2), 422, "invalid_request", "goal_id")


async def test_a_heavier_goal_gets_more(database: Database) -> None:
    async with serving(database.url, await make_keys(database)) as service:
        await _weigh(service, "heavy", 3)
        for goal in ("light", "heavy"):
            body = {"tasks": [{"agent_type": "ranking", "goal_id": goal}] * 12}
            assert (await service.ask("POST", "/tasks/batch", body)).is_success
        worker = await service.worker()
        served = []
        for _ in range(8):
            lease = await worker.lease()
            served.append(lease["goal_id"])
            await worker.on_lease(lease, "complete", result={})
        assert served.count("heavy") == 6


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
async def test_a_name_that_no_address_can_have_is_refused_where_it_would_begin(service: Service, name: str) -> None:
    task = {"agent_type": "ranking", "goal_id": name}
    problem = is_problem(await service.ask("POST", "/tasks", task), 422, "invalid_request", "goal_id")
    assert "no /" in problem["detail"]
    batch = {"tasks": [{"agent_type": "ranking"}, task]}
    is_problem(await service.ask("POST", "/tasks/batch", batch), 422, "invalid_request", "tasks.1.goal_id")
    is_problem(await service.ask("POST", "/goals", {"id": name, "objective": "o"}), 422, "invalid_request", "id")


async def test_work_of_a_goal_with_such_a_name_from_a_former_version_goes_on(
    service: Service, database: Database
) -> None:
    task_id = await service.submitted(goal_id="former")
    await execute(database, "UPDATE tasks SET goal_id = 'former/goal'")
    assert [task["id"] for task in (await service.get("/tasks", goal_id="former/goal"))["items"]] == [task_id]
    worker = await service.worker()
    lease = await worker.lease()
    assert lease["goal_id"] == "former/goal"
    await list_models(database, "small")
    wanted = {"request_id": str(uuid4()), "model": "small", "agent_type": "generation", "estimated_tokens": 10}
    permit = await worker.ask("/llm/permits", {**wanted, "goal_id": lease["goal_id"]})
    assert permit.status_code == 201, permit.text
    sample = {"name": "ideas", "kind": "counter", "value": 1, "goal": lease["goal_id"]}
    pushed = await worker.ask("/metrics/samples", {"batch_id": str(uuid4()), "samples": [sample]})
    assert pushed.status_code == 201, pushed.text
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    assert [output["task_id"] for output in (await service.get("/outputs", goal_id="former/goal"))["items"]] == [
        task_id
    ]
