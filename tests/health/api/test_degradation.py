"""Reading the step of degradation, holding it, and the advice that others get."""

from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.queue.service.degradation import CurrentStep
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute, until, value


async def put(service: Service, key: Role = Role.OPERATOR, **body: Any) -> Any:
    answer = await service.ask("PUT", "/degradation", body, key=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def heard(service: Service, step: int) -> None:
    """Return once the service goes by the step."""

    async def has_advice() -> bool:
        return bool(service.app.state.services[CurrentStep].step == step)

    await until(has_advice)


async def test_as_usual(service: Service) -> None:
    state = await service.get("/degradation")
    assert (state["step"], state["meaning"]) == (0, "everything runs as usual")
    assert state["advice"] is state["hold"] is state["expires_at"] is None
    assert state["reduced_capacity"] == {"is_reduced": False, "reason": None, "lost_share": 0.0}
    assert (await service.get("/queues"))["degradation"] is None
    assert await service.get("/degradation/history") == {"items": [], "next": None}


async def test_holding_a_step_tells_everybody(service: Service, worker: Worker) -> None:
    state = await put(service, step=3, minutes=20, reason="an upgrade")
    assert (state["step"], state["reason"]) == (3, "an upgrade")
    assert state["hold"]["by"] == service.keys[Role.OPERATOR].split("_")[1]
    advice = {"step": 3, "max_depth": 2, "batch_factor": 0.5}
    assert state["advice"] == advice
    await heard(service, 3)
    answer = await service.ask("POST", "/tasks", {"agent_type": "generation"})
    assert answer.headers["convener-degradation"] == "step=3; max-depth=2; batch-factor=0.5"
    batch = await service.ask("POST", "/tasks/batch", {"tasks": [{"agent_type": "generation"}]})
    assert batch.headers["convener-degradation"] == "step=3; max-depth=2; batch-factor=0.5"
    assert (await service.get("/queues"))["degradation"] == advice
    lease = await worker.lease()
    assert lease["degradation"] == advice
    assert (await worker.beat())["degradation"] == advice
    await put(service, step=4)
    await heard(service, 4)
    done = await worker.on_lease(lease, "complete", result={}, next={"request_id": lease["task_id"]})
    assert done.json()["lease"]["degradation"]["step"] == 4
    assert (await service.get("/degradation"))["suspended_agents"] == [
        "evolution",
        "meta_review",
        "proximity",
        "ranking",
    ]


async def test_the_rule_takes_over_again(service: Service, worker: Worker) -> None:
    await put(service, step=0, reason="as usual, whatever happens")
    assert (await service.get("/degradation"))["hold"] is not None
    assert (await put(service, step=None, reason="done"))["hold"] is None
    await service.submitted()
    assert (await worker.lease())["degradation"] is None
    items = (await service.get("/degradation/history"))["items"]
    assert [(item["move"], item["reason"]) for item in items] == [
        ("released", "done"),
        ("held", "as usual, whatever happens"),
    ]
    first = await service.get("/degradation/history", limit=1)
    second = await service.get("/degradation/history", limit=1, after=first["next"])
    assert (first["items"] + second["items"], second["next"]) == (items, None)
    events = (await service.get("/events", kind="degradation.moved"))["items"]
    assert [(event["task_id"], event["detail"]["move"]) for event in events] == [(None, "held"), (None, "released")]
    audited = (await service.get("/audit"))["items"]
    assert [entry["action"] for entry in audited[:2]] == ["degradation.release", "degradation.hold"]


async def test_what_nobody_renews_is_over(service: Service, database: Database) -> None:
    await put(service, step=2)
    await heard(service, 2)
    await execute(database, "UPDATE degradation SET expires_at = now() - interval '1 min'")
    assert (await service.get("/degradation"))["step"] == 0
    await heard(service, 0)
    answer = await service.ask("POST", "/tasks", {"agent_type": "generation"})
    assert "convener-degradation" not in answer.headers


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "step"),
        ({"step": 5}, "step"),
        ({"step": -1}, "step"),
        ({"step": 1.0}, "step"),
        ({"step": True}, "step"),
        ({"step": "2"}, "step"),
        ({"step": 2, "minutes": 0}, "minutes"),
        ({"step": 2, "minutes": 1441}, "minutes"),
        ({"step": 2, "for": 3}, "for"),
    ],
)
async def test_what_cannot_be_held(service: Service, database: Database, body: dict[str, Any], field: str) -> None:
    is_problem(await service.ask("PUT", "/degradation", body), 422, "invalid_request", field)
    assert await value(database, "SELECT count(*) FROM degradation_moves") == 0


async def test_only_operators_hold_it(service: Service) -> None:
    is_problem(await service.ask("PUT", "/degradation", {"step": 1}, key=Role.SUPERVISOR), 403, "forbidden")
