"""The weights of research goals, and what they do to the order of tasks."""

from typing import Any
from urllib.parse import quote

import pytest

from app.domain.access import Role
from app.store.database import Database
from tests.api.problems import is_problem
from tests.api.service import Service, make_keys, serving


async def _weigh(service: Service, goal: str, weight: object, key: Role = Role.SUPERVISOR) -> Any:
    return await service.ask("PUT", f"/goals/{quote(goal, safe='')}/weight", {"weight": weight}, key=key)


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
