"""Decisions over HTTP: the specification's shape, lists, replays, suppositions, and the number for autoscalers."""

from datetime import datetime
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.kernel.agents import AgentType
from tests.support.factories import submitted
from tests.support.pools import arrive, bounds, crew, decided, keep_up
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value


@pytest.fixture
async def example_1(service: Service, database: Database) -> dict[str, Any]:
    """The decision of the specification's first example."""
    await bounds(database, 2, 100)
    await crew(database, 10, cpu_percent=85.0)
    await decided(database)
    await submitted(database, 500, agent_type=AgentType.GENERATION)
    await decided(database)
    newest: dict[str, Any] = (await service.get("/scaling/decisions"))["items"][0]
    return newest


async def test_a_decision_has_the_shape_of_the_specification(service: Service, example_1: dict[str, Any]) -> None:
    decision = await service.get(f"/scaling/decisions/{example_1['id']}")
    assert datetime.fromisoformat(decision["timestamp"]).utcoffset() is not None
    assert decision["decision_type"] == "scale_up"
    assert (decision["current_workers"], decision["target_workers"]) == (10, 20)
    assert decision["agent_weight_adjustments"] == {}
    allocation = decision["resource_allocation"]
    assert len(allocation) == 20
    assert set(decision["new_workers"]) < set(allocation)
    for worker_id in decision["new_workers"]:
        assert allocation[worker_id] == {"assigned_agent": "generation_agent", "memory_gb": 1.0, "cpu_cores": 0.5}
    assert decision["inputs"] is None
    with_inputs = await service.get(f"/scaling/decisions/{example_1['id']}", inputs=True)
    assert with_inputs["inputs"]["snapshot"]["cpu"] == 0.85
    assert len(with_inputs["inputs"]["roster"]["ids"]) == 10


async def test_a_decision_is_explained(service: Service, example_1: dict[str, Any]) -> None:
    words = (await service.get(f"/scaling/decisions/{example_1['id']}"))["explanation"]
    assert any("500 tasks" in sentence for sentence in words["drove"])
    assert words["clamps"] == [
        f"max_workers is 100: 100 instead of {example_1['need']}",
        "at most +100% in one step: 20 instead of 100",
    ]
    rejected = {one["alternative"]: one["because"] for one in words["rejected"]}
    assert rejected["to stay at 10"] == "some tasks would wait for longer than 24 s"
    assert rejected[f"to grow to {example_1['need']}"] == "at most +100% in one step"
    assert "to let workers go" in rejected


async def test_decisions_come_in_pages_and_without_those_that_changed_nothing(
    service: Service, database: Database
) -> None:
    await bounds(database, 2, 100)
    for _ in range(3):
        await decided(database)
    await crew(database, 2)
    await bounds(database, 3, 100)
    await decided(database)
    first = await service.get("/scaling/decisions", limit=3)
    rest = await service.get("/scaling/decisions", limit=3, after=first["next"])
    ids = [item["id"] for item in first["items"] + rest["items"]]
    assert ids == sorted(ids, reverse=True)
    assert (len(ids), rest["next"]) == (4, None)
    changed = await service.get("/scaling/decisions", changes=True)
    assert "maintain" not in {item["decision_type"] for item in changed["items"]}
    assert ids[0] in [item["id"] for item in changed["items"]]


async def test_a_replay_compares_to_the_byte(service: Service, database: Database, example_1: dict[str, Any]) -> None:
    path = f"/scaling/decisions/{example_1['id']}/replay"
    assert await service.post(path) == {"id": example_1["id"], "identical": True, "differences": []}
    await execute(
        database,
        "UPDATE decisions SET output = replace(output::text, '\"target_workers\":20', '\"target_workers\":21')::json"
        " WHERE id = $1",
        example_1["id"],
    )
    told = await service.post(path)
    assert told["identical"] is False
    assert told["differences"] == [{"path": "target_workers", "before": 21, "after": 20}]
    many = await service.post("/scaling/decisions/replay", {"after": 0, "limit": 1})
    assert (many["replayed"], many["different"]) == (1, [])
    rest = await service.post("/scaling/decisions/replay", {"after": many["next"], "limit": 100})
    assert [one["id"] for one in rest["different"]] == [example_1["id"]]
    assert rest["next"] is None


@pytest.mark.parametrize(
    ("asked", "target", "why"),
    [
        ({"config": {"worker_pool": {"max_workers": 15}}}, 15, "max_workers is 15"),
        ({"mode": "trusted_tester"}, 12, "+25%"),
        ({"mode": "development"}, 5, "the maximum is 5"),
        ({"wait_target_seconds": 86400}, 10, "start all within"),
    ],
)
async def test_what_if(
    service: Service, database: Database, example_1: dict[str, Any], asked: dict[str, Any], target: int, why: str
) -> None:
    before = await value(database, "SELECT count(*) FROM decisions")
    told = await service.post("/scaling/what-if", asked | {"decision_id": example_1["id"]}, key=Role.READER)
    assert told["decided"]["id"] == example_1["id"]
    assert (told["supposed"]["id"], told["supposed"]["target_workers"]) == (None, target)
    assert why in " ".join(told["supposed"]["reasons"])
    assert {"path": "target_workers", "before": 20, "after": target} in told["differences"]
    assert await value(database, "SELECT count(*) FROM decisions") == before
    assert await value(database, "SELECT count(*) FROM workers") == 20


@pytest.mark.parametrize(("memory_gb", "workers"), [(8, 81), (64, 10)])
async def test_what_if_workers_needed_more_memory(
    service: Service, database: Database, memory_gb: int, workers: int
) -> None:
    """Nine tenths of the host less 10 GB are for workers, and each gets a quarter of what the configuration allows."""
    await bounds(database, 2, 100)
    await keep_up(database, 10, memory_gb=192.0)
    await arrive(database, cpu_percent=85.0)
    await decided(database)
    await submitted(database, 500, agent_type=AgentType.GENERATION)
    assert (await decided(database))["target_workers"] == 20
    asked = {"config": {"resource_limits": {"max_memory_per_worker_gb": memory_gb}}}
    supposed = (await service.post("/scaling/what-if", asked, key=Role.READER))["supposed"]
    assert supposed["target_workers"] == min(20, max(10, workers))
    assert f"memory of the host suffice for {workers} workers" in " ".join(supposed["reasons"])


async def test_what_if_of_a_decision_that_kept_no_hosts_holds_for_its_limits(
    service: Service, database: Database, example_1: dict[str, Any]
) -> None:
    """As decisions of before did; everything else can still be varied."""
    await execute(
        database, "UPDATE decisions SET inputs = (inputs::jsonb - 'hosts')::json WHERE id = $1", example_1["id"]
    )
    asked = {"config": {"resource_limits": {"max_memory_per_worker_gb": 64}}, "decision_id": example_1["id"]}
    refused = await service.ask("POST", "/scaling/what-if", asked, key=Role.READER)
    assert (refused.status_code, "kept no hosts" in refused.text) == (422, True)
    asked = {"config": {"worker_pool": {"max_workers": 15}}, "decision_id": example_1["id"]}
    assert (await service.post("/scaling/what-if", asked, key=Role.READER))["supposed"]["target_workers"] == 15


async def test_what_if_nothing_was_different(service: Service, example_1: dict[str, Any]) -> None:
    told = await service.post("/scaling/what-if", {"config": {}})
    assert (told["decided"]["id"], told["differences"]) == (example_1["id"], [])


async def test_what_if_other_weights_applied(service: Service, example_1: dict[str, Any]) -> None:
    told = await service.post("/scaling/what-if", {"config": {"agent_weights": {"ranking_agent": 0.5}}})
    adjustments = told["supposed"]["agent_weight_adjustments"]
    assert adjustments["ranking_agent"]["new_weight"] == pytest.approx(0.5)
    assert example_1["agent_weight_adjustments"] == {}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"config": {"worker_pool": {"max_workers": 0}}}, "body.worker_pool.max_workers"),
        ({"wait_target_seconds": 0}, "body.wait_target_seconds"),
        ({"policy": {}}, "body.policy"),
    ],
)
async def test_suppositions_that_cannot_be_are_refused(
    service: Service, example_1: dict[str, Any], asked: dict[str, Any], field: str
) -> None:
    assert example_1["id"]
    answer = await service.ask("POST", "/scaling/what-if", asked)
    is_problem(answer, 422, "invalid_request")
    assert field.rpartition(".")[2] in answer.text


async def test_suppositions_must_go_together(service: Service, example_1: dict[str, Any]) -> None:
    asked = {"decision_id": example_1["id"], "config": {"worker_pool": {"min_workers": 50, "max_workers": 40}}}
    is_problem(
        await service.ask("POST", "/scaling/what-if", asked), 422, "config_refused", "config.worker_pool.min_workers"
    )


async def test_what_is_not_there_is_not_found(service: Service) -> None:
    is_problem(await service.ask("GET", "/scaling/decisions/7"), 404, "decision_not_found")
    is_problem(await service.ask("POST", "/scaling/decisions/7/replay"), 404, "decision_not_found")
    is_problem(await service.ask("POST", "/scaling/what-if", {}), 404, "decision_not_found")


async def test_the_recommendation_is_flat(service: Service, database: Database) -> None:
    first = await service.get("/scaling/recommendation")
    assert (first["target_workers"], first["decision_id"]) == (10, None)
    await bounds(database, 2, 100)
    await crew(database, 10, cpu_percent=85.0)
    await decided(database)
    await submitted(database, 500)
    await decided(database)
    told = await service.get("/scaling/recommendation")
    assert (told["target_workers"], told["current_workers"], told["waiting_tasks"]) == (20, 10, 500)
    assert all(not isinstance(part, (dict, list)) for part in told.values())
