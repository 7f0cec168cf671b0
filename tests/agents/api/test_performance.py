"""Results are judged after they were handed in."""

from uuid import uuid4

import pytest

from app.kernel.access import Role
from tests.support.service import Service, Worker


async def test_a_supervisor_judges_results_and_agents(service: Service, worker: Worker) -> None:
    task_id = await service.submitted()
    lease = await worker.lease()
    await worker.on_lease(lease, "complete", result={})
    items = [{"task_id": task_id, "quality": 0.7, "basis": "elo"}, {"agent_type": "MetaReview", "quality": 1}]
    batch = {"request_id": str(uuid4()), "items": items}
    for _ in range(2):
        answer = await service.ask("POST", "/metrics/performance", batch, key=Role.SUPERVISOR)
        assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    other = await service.ask("POST", "/metrics/performance", batch | {"items": items[:1]})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_only_results_can_be_judged(service: Service) -> None:
    waiting = await service.submitted()
    for task_id, status, code in ((waiting, 409, "task_not_completed"), (str(uuid4()), 404, "task_not_found")):
        batch = {"request_id": str(uuid4()), "items": [{"task_id": task_id, "quality": 0.7}]}
        answer = await service.ask("POST", "/metrics/performance", batch)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    "item",
    [
        {"quality": 0.5},
        {"agent_type": "ranking", "task_id": str(uuid4()), "quality": 0.5},
        {"agent_type": "ranking"},
        {"agent_type": "ranking", "quality": -0.1},
        {"agent_type": "painter", "quality": 0.1},
    ],
)
async def test_a_judgement_is_of_one_thing_and_within_its_range(service: Service, item: dict[str, object]) -> None:
    batch = {"request_id": str(uuid4()), "items": [item]}
    assert (await service.ask("POST", "/metrics/performance", batch)).status_code == 422


async def test_workers_and_readers_judge_nothing(service: Service) -> None:
    batch = {"request_id": str(uuid4()), "items": [{"agent_type": "ranking", "quality": 0.5}]}
    for role in (Role.POOL, Role.READER):
        assert (await service.ask("POST", "/metrics/performance", batch, key=role)).status_code == 403
