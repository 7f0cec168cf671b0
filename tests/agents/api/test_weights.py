"""Weights over HTTP: read with their reasons, commanded, overridden; and agents with what they achieve."""

from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support import pools
from tests.support.agent_results import (
    add_example_2_results,
    configure,
    configure_example_2,
    fold,
    let_minute_pass,
    tick,
)
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute

_HALF = {"weights": {"reflection_agent": 0.5}, "reason": "reviews lag behind"}


@pytest.fixture(autouse=True)
async def _configured(service: Service, database: Database) -> None:
    await configure_example_2(database)


async def put(
    service: Service, body: Any, path: str = "/weights", key: Role = Role.SUPERVISOR, version: int | None = None
) -> Any:
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    answer = await service.ask("PUT", path, body, key=key, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_before_anything_has_moved_them(service: Service) -> None:
    body = await service.get("/weights")
    assert (body["version"], body["at"], body["heading"], body["override"]) == (0, None, "earning", None)
    assert body["weights"] == body["configured"] == body["base"] == body["target"]
    assert body["rule"] == {"floor": 0.02, "largest_step": 0.5, "least_results": 10, "least_seconds": 60}
    assert (await service.get("/weights/history")) == {"items": [], "next": None}


async def test_example_2_from_the_results_to_the_reasons(service: Service, database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    await tick(database)
    body = await service.get("/weights")
    assert body["cause"] == "tick"
    adjustment = body["agent_weight_adjustments"]["reflection_agent"]
    assert adjustment == {
        "previous_weight": pytest.approx(0.15),
        "new_weight": pytest.approx(0.225),
        "target": pytest.approx(0.25),
        "reason": "effectiveness 0.95; target 0.25, at most 50% in one step",
    }
    assert body["weights"]["reflection_agent"] == pytest.approx(0.225)
    assert sum(body["weights"].values()) == pytest.approx(1.0)
    agents = {agent["agent_type"]: agent for agent in (await service.get("/agents"))["items"]}
    reflection = agents["reflection"]
    assert reflection["effectiveness"] == pytest.approx(0.95, abs=1e-6)
    assert (reflection["weight"], reflection["configured_weight"]) == (pytest.approx(0.225), pytest.approx(0.15))
    assert reflection["target_weight"] == pytest.approx(0.25)
    assert reflection["service_seconds"] == 1.0
    assert reflection["tasks_per_second"] > 0
    assert reflection["evidence"]["results"] == reflection["evidence"]["judged"] == 332
    assert agents["ranking"]["effectiveness"] == pytest.approx(0.5, abs=1e-6)
    assert agents["ranking"]["is_bottleneck"] is None
    lines = (await service.ask("GET", "/metrics", key=Role.MONITOR)).text.splitlines()
    parts = [line.rpartition(" ") for line in lines if line.startswith("convener_agent_")]
    gauges = {name: float(number) for name, _, number in parts}
    assert gauges['convener_agent_weight{agent="reflection"}'] == pytest.approx(0.225)
    assert gauges['convener_agent_target_weight{agent="reflection"}'] == pytest.approx(0.25)
    assert gauges['convener_agent_effectiveness{agent="reflection"}'] == pytest.approx(0.95, abs=1e-6)


async def test_commands_and_overrides_of_supervisors_and_operators(service: Service, database: Database) -> None:
    for role in (Role.SUPERVISOR, Role.OPERATOR):
        body = await put(service, _HALF, key=role)
        assert (body["version"], body["cause"], body["heading"]) == (1, "command", "ordered")
        assert body["reason"] == "reviews lag behind"
        assert body["target"]["reflection_agent"] == pytest.approx(0.5)
        assert body["weights"]["reflection_agent"] == pytest.approx(0.225)
    override = {"weights": {"Ranking": 0.5}, "expires_in_seconds": 60, "reason": "a deadline"}
    body = await put(service, override, "/weights/override")
    assert body["override"]["weights"]["ranking_agent"] == pytest.approx(0.5)
    assert body["override"]["reason"] == "a deadline"
    # It makes no step within the minute, and so the last step's reasons still hold.
    assert body["agent_weight_adjustments"]["reflection_agent"]["new_weight"] == pytest.approx(0.225)
    assert (await service.get("/weights/history"))["items"][0]["agent_weight_adjustments"] == {}
    await let_minute_pass(database)
    ended = await service.ask("DELETE", "/weights/override", params={"reason": "all is done"}, key=Role.OPERATOR)
    assert (ended.status_code, ended.json()["override"], ended.json()["heading"]) == (200, None, "ordered")
    assert (ended.headers["ETag"], ended.json()["reason"]) == ('"3"', "all is done")
    history = await service.get("/weights/history", limit=2)
    assert [item["cause"] for item in history["items"]] == ["release", "override"]
    rest = await service.get("/weights/history", limit=2, after=history["next"])
    assert ([item["version"] for item in rest["items"]], rest["next"]) == ([1], None)


async def test_the_audit_log_has_only_a_reason_that_was_given(service: Service) -> None:
    """It showed why no step was due as the reason of whoever had given none."""
    await put(service, {"weights": {"ranking": 0.5}})
    await put(service, {"weights": {"ranking": 0.4}})
    await put(service, _HALF)
    entries = (await service.get("/audit", key=Role.OPERATOR))["items"]
    assert [entry["reason"] for entry in entries if entry["action"] == "weights.command"] == [_HALF["reason"], "", ""]


async def test_a_command_may_name_the_version_that_it_builds_on(service: Service) -> None:
    assert (await put(service, _HALF, version=0))["version"] == 1
    stale = await service.ask("PUT", "/weights", {"weights": {"ranking": 0.5}}, headers={"If-Match": '"0"'})
    is_problem(stale, 412, "version_stale")
    assert (await service.get("/weights"))["version"] == 1


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/weights", {"weights": {}}, "weights"),
        ("/weights", {"weights": {"painter": 0.5}}, "weights"),
        ("/weights", {"weights": {"ranking": 1.5}}, "weights"),
        ("/weights", {"weights": {"ranking": 0.6, "proximity": 0.6}}, "weights"),
        ("/weights", {"weights": {"ranking": 0.3, "ranking_agent": 0.1}}, "weights"),
        ("/weights", {}, "weights"),
        ("/weights/override", {"weights": {"ranking": 0.5}}, "expires_in_seconds"),
        ("/weights/override", {"weights": {"ranking": 0.5}, "expires_in_seconds": 0}, "expires_in_seconds"),
        ("/weights/override", {"weights": {"ranking": 0.5}, "expires_in_seconds": 1e9}, "expires_in_seconds"),
    ],
)
async def test_what_cannot_be_changes_nothing(service: Service, path: str, body: Any, where: str) -> None:
    answer = await service.ask("PUT", path, body)
    assert answer.status_code == 422
    assert where in answer.json()["errors"][0]["path"]
    assert (await service.get("/weights"))["version"] == 0


async def test_readers_and_workers_command_nothing(service: Service) -> None:
    for role in (Role.READER, Role.POOL):
        assert (await service.ask("PUT", "/weights", _HALF, key=role)).status_code == 403


async def test_an_agent_and_its_trend(service: Service, worker: Worker, database: Database) -> None:
    task_id = await service.submitted()
    await worker.on_lease(await worker.lease(), "complete", result={}, quality=0.9)
    ratings = {"request_id": str(uuid4()), "items": [{"task_id": task_id, "quality": 0.5}]}
    await service.post("/metrics/performance", ratings)
    await fold(database)
    body = await service.get("/agents/generate_hypothesis", per="hour")
    assert (body["agent_type"], body["effectiveness"], body["per"]) == ("generation", None, "hour")
    assert body["evidence"] == {
        "results": 1,
        "succeeded": 1,
        "judged": 1,
        "quality": 0.5,
        "decayed_results": 1.0,
    }
    (span,) = body["trend"]
    assert (span["results"], span["successes"], span["judged"]) == (1, 1, 2)
    assert span["quality"] == pytest.approx(0.7)
    assert (await service.get("/agents/ranking"))["trend"] == []
    assert (await service.ask("GET", "/agents/painter")).status_code == 422


async def test_while_agents_are_suspended_the_shares_differ(service: Service) -> None:
    assert (body := await service.get("/weights"))["shares"] == body["weights"]
    held = await service.ask("PUT", "/degradation", {"step": 4, "minutes": 5, "reason": "test"}, key=Role.OPERATOR)
    assert held.status_code == 200, held.text
    body = await service.get("/weights")
    assert body["weights"]["ranking_agent"] == pytest.approx(0.17)
    assert body["shares"]["ranking_agent"] == pytest.approx(0.02)


async def test_the_configuration_moves_the_weights_in_steps(service: Service, database: Database) -> None:
    await tick(database)
    await configure(database, dict.fromkeys(_NAMES, 0.1) | {"ranking_agent": 0.5})
    await tick(database)
    body = await service.get("/weights")
    assert (body["cause"], body["heading"]) == ("config", "ordered")
    assert body["configured"]["ranking_agent"] == pytest.approx(0.5)
    assert body["weights"]["ranking_agent"] == pytest.approx(0.255)


_NAMES = [f"{name}_agent" for name in ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")]


async def test_the_bottleneck_is_that_of_a_decision_within_the_last_minute(
    service: Service, database: Database
) -> None:
    async def of_ranking() -> tuple[bool | None, bool | None]:
        agents = {agent["agent_type"]: agent["is_bottleneck"] for agent in (await service.get("/agents"))["items"]}
        return agents["ranking"], agents["generation"]

    assert await of_ranking() == (None, None)
    await pools.keep_up(database)
    await pools.decided(database)
    assert await of_ranking() == (False, False)
    await service.submitted(agent_type="ranking")
    await pools.decided(database)
    assert await of_ranking() == (True, False)
    assert (await service.get("/agents/ranking"))["is_bottleneck"]
    await execute(database, "UPDATE scaling_state SET decided_at = decided_at - interval '61 s'")
    assert await of_ranking() == (None, None)
