"""One suite for all three modes: what must hold in each of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.db.database import now as moment
from app.kernel.access import Role
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.queue.broker.broker import Broker
from app.scaling.rules.target import DecisionType, ScalingSnapshot, decide, scaling_policy
from tests.support.config_calls import change, document
from tests.support.problems import is_problem
from tests.support.service import Service, make_keys, serving
from tests.support.sql import until

_POOLS = {Mode.DEVELOPMENT: (2, 5), Mode.PRODUCTION: (10, 1000), Mode.TRUSTED_TESTER: (5, 50)}


@pytest.fixture(params=list(Mode))
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
async def service(database: Database, mode: Mode) -> AsyncIterator[Service]:
    """A new system that was told its mode."""
    async with serving(database.url, await make_keys(database), mode=mode.value) as service:
        yield service


async def _patch(service: Service, body: Any, version: int, **query: Any) -> Any:
    answer = await change(service, "PATCH", body, version, **{"reason": "test", **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_new_system_has_the_preset(service: Service, mode: Mode) -> None:
    found = await service.get("/config")
    assert (found["mode"], found["version"], found["action"]) == (mode.value, 1, "initial")
    assert (found["worker_pool"]["min_workers"], found["worker_pool"]["max_workers"]) == _POOLS[mode]
    assert sum(found["agent_weights"].values()) == pytest.approx(1)
    assert (found["effective_weights"], found["notes"]) == (found["agent_weights"], [])


async def test_another_setting_changes_nothing_once_there_is_one(
    service: Service, database: Database, mode: Mode
) -> None:
    await service.get("/config")
    for other in Mode:
        async with serving(database.url, service.keys, mode=other.value) as later:
            assert (await later.get("/config"))["mode"] == mode.value


async def test_ranges_and_cross_checks(service: Service) -> None:
    whole = await document(service)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"min_workers": 101}, "invalid_request", "worker_pool.min_workers"),
        ({"min_workers": 3.5}, "invalid_request", "worker_pool.min_workers"),
        ({"min_workers": True}, "invalid_request", "worker_pool.min_workers"),
        ({"max_workers": "5"}, "invalid_request", "worker_pool.max_workers"),
        ({"workers": 5}, "invalid_request", "worker_pool.workers"),
        ({"min_workers": 40, "max_workers": 30}, "config_refused", "worker_pool.min_workers"),
        ({"scale_down_threshold": 0.9}, "config_refused", "worker_pool.scale_down_threshold"),
    ]
    for fields, code, path in cases:
        body = {**whole, "worker_pool": {**whole["worker_pool"], **fields}}
        is_problem(await change(service, "PUT", body, 1, reason="test"), 422, code, path)
        answer = await change(service, "PATCH", {"worker_pool": fields}, 1, reason="test")
        is_problem(answer, 422, code, path)
    assert (await service.get("/config"))["version"] == 1


async def test_the_flow_of_etags(service: Service) -> None:
    whole = await document(service)
    whole["resource_limits"]["max_concurrent_llm_calls"] = 7
    is_problem(await change(service, "PUT", whole, None, reason="test"), 428, "precondition_required")
    is_problem(await change(service, "PUT", whole, 2, reason="test"), 412, "version_stale")
    for _ in range(2):
        answer = await change(service, "PUT", whole, 1, reason="test")
        assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')
    known = await service.ask("GET", "/config", headers={"If-None-Match": '"2"'})
    assert known.status_code == 304
    assert await document(service) == whole


async def test_history_and_rollback(service: Service, mode: Mode) -> None:
    first = await document(service)
    await _patch(service, {"test_time_compute": {"enabled": False}}, 1, reason="saving")
    await _patch(service, {"agent_weights": {"evolution_agent": 0}}, 2)
    answer = await change(service, "POST", {"version": 1, "reason": "as it was"}, 3, "/config/rollback")
    assert answer.status_code == 200, answer.text
    assert (await document(service), answer.json()["mode"]) == (first, mode.value)
    items = (await service.get("/config/history"))["items"]
    assert [item["action"] for item in items] == ["rollback", "patch", "patch", "initial"]
    assert items[2]["changes"] == [{"path": "test_time_compute.enabled", "before": True, "after": False}]
    assert {change["path"] for change in items[0]["changes"]} > {"test_time_compute.enabled"}


async def test_no_agent_can_be_disabled(service: Service) -> None:
    answer = await _patch(service, {"agent_weights": {"evolution_agent": 0}}, 1)
    assert answer["agent_weights"]["evolution_agent"] == 0
    assert answer["effective_weights"]["evolution_agent"] == 0.02
    assert [note["path"] for note in answer["notes"]] == ["agent_weights.evolution_agent"]
    assert sum(answer["effective_weights"].values()) == pytest.approx(1)


async def test_every_other_mode_is_one_order_away_and_so_is_the_way_back(service: Service, mode: Mode) -> None:
    start = await document(service)
    version = 1
    for other in [one for one in Mode if one is not mode]:
        answer = await change(service, "POST", {"mode": other.value, "reason": "test"}, version, "/config/mode")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["worker_pool"]["min_workers"], found["worker_pool"]["max_workers"]) == _POOLS[other]
        assert {**start, "worker_pool": None} == {**await document(service), "worker_pool": None}
        version = found["version"]
    back = await change(service, "POST", {"version": 1, "reason": "test"}, version, "/config/rollback")
    assert back.json()["mode"] == mode.value
    assert await document(service) == start


async def test_a_change_takes_effect_within_one_tick_and_without_a_restart(
    service: Service, database: Database, mode: Mode
) -> None:
    # A process of its own, as the loops are; it was started with another setting.
    other = Database(database.url)
    other.announcer.start()
    elsewhere = CurrentConfig(other, Mode.PRODUCTION)
    await service.get("/config")
    assert (await elsewhere.read()).mode is mode
    most = _POOLS[mode][1] - 1
    await _patch(service, {"worker_pool": {"max_workers": most}, "agent_weights": {"ranking_agent": 0.4}}, 1)

    async def effective() -> bool:
        found = await elsewhere.read()
        return scaling_policy(found.document, found.mode).max_workers == most and found.weights["ranking"] == 0.4  # type: ignore[index]

    # A tick is 5 s.
    await until(effective, within=5)
    await other.close()


async def test_what_the_scaling_rule_makes_of_it(service: Service, database: Database, mode: Mode) -> None:
    """A full pool at its minimum and a flood: the mode decides how far one decision goes."""
    await service.get("/config")
    async with database.transaction() as connection:
        now = await moment(connection)
    config = await CurrentConfig(database, Mode.PRODUCTION).read()
    policy = scaling_policy(config.document, config.mode)
    low, high = _POOLS[mode]
    assert (policy.min_workers, policy.max_workers) == (low, high)
    for workers, expected in ((low, DecisionType.MAINTAIN), (low - 1, DecisionType.SCALE_UP)):
        plan = decide(ScalingSnapshot(idle=workers, busy=0, waiting=[], cpu=0.5), policy, now)
        assert (plan.decision_type, plan.target) == (expected, low)
    assert policy.is_fixed == (mode is Mode.DEVELOPMENT)
    assert policy.growth == (1.25 if mode is Mode.TRUSTED_TESTER else 2.0)
    assert (policy.idle.settle_seconds == 300) == (mode is Mode.TRUSTED_TESTER)


async def test_who_must_say_why(service: Service, mode: Mode) -> None:
    strict = mode is Mode.TRUSTED_TESTER
    calls: list[tuple[str, str, Any]] = [
        ("PATCH", "/config", {"worker_pool": {"worker_timeout_seconds": 90}}),
        ("POST", "/config/rollback", {"version": 1}),
    ]
    for version, (method, path, body) in enumerate(calls, start=1):
        answer = await change(service, method, body, version if not strict else 1, path)
        if strict:
            is_problem(answer, 422, "config_refused", "reason")
        else:
            assert answer.status_code == 200, answer.text


async def test_everything_is_audited_and_the_chain_is_sound(service: Service, mode: Mode) -> None:
    await _patch(service, {"worker_pool": {"worker_timeout_seconds": 90}}, 1, reason="slow agents")
    await asyncio.gather(*(service.ask("GET", "/config", key=Role.READER) for _ in range(5)))
    items = (await service.get("/audit"))["items"]
    changes = [item for item in items if item["action"] == "config.patch"]
    assert [(item["reason"], item["before"]["mode"]) for item in changes] == [("slow agents", mode.value)]
    reads = sum(item["action"] == "config.read" for item in items)
    assert reads == (5 if mode is Mode.TRUSTED_TESTER else 0)
    assert (await service.post("/audit/verify", {}))["ok"]


async def test_the_weights_reach_the_leases(service: Service) -> None:
    weights = {"generation_agent": 0.5, "reflection_agent": 0.1, "ranking_agent": 0.1}
    await _patch(service, {"agent_weights": weights}, 1)
    fairness = service.app.state.services[Broker].fairness

    async def arrived() -> bool:
        return bool(fairness.weights[AgentType.GENERATION] == pytest.approx(0.5))

    await until(arrived)
