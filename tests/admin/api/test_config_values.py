"""Which values the configuration takes, by PUT and by PATCH alike; nothing changes when one is refused."""

import json
from typing import Any

import pytest

from app.kernel.access import Role
from tests.support.config_calls import change, changed, document
from tests.support.problems import is_problem
from tests.support.service import Service

_RANGES: dict[str, tuple[float, float]] = {
    "worker_pool.min_workers": (1, 100),
    "worker_pool.max_workers": (1, 1000),
    "worker_pool.scale_up_threshold": (0.0, 1.0),
    "worker_pool.scale_down_threshold": (0.0, 1.0),
    "worker_pool.worker_timeout_seconds": (60, 3600),
    "worker_pool.wait_target_seconds": (1.0, 3600.0),
    "resource_limits.max_memory_per_worker_gb": (1.0, 64.0),
    "resource_limits.max_cpu_per_worker": (0.5, 16.0),
    "resource_limits.max_concurrent_llm_calls": (1, 100),
    "agent_weights.generation_agent": (0.0, 1.0),
    "agent_weights.reflection_agent": (0.0, 1.0),
    "agent_weights.ranking_agent": (0.0, 1.0),
    "agent_weights.evolution_agent": (0.0, 1.0),
    "agent_weights.proximity_agent": (0.0, 1.0),
    "agent_weights.meta_review_agent": (0.0, 1.0),
    "test_time_compute.min_iterations": (1, 10),
    "test_time_compute.max_iterations": (10, 1000),
    "test_time_compute.improvement_threshold": (0.001, 0.1),
}
# As JSON text, so that also what Python would not write can be sent.
_NEVER = ('"1"', "true", "NaN", "Infinity", "-Infinity", "1e999", "[1]", "{}", str(10**30))


def _beyond(path: str) -> list[str]:
    low, high = _RANGES[path]
    if isinstance(low, int):
        return [str(low - 1), str(int(high) + 1), f"{low}.0", f"{low}.5", f"{low}e0", "-0.0"]
    return [repr(low - 1e-9), repr(high + 1e-9)]


def _nested(path: str, value: Any) -> dict[str, Any]:
    section, _, name = path.partition(".")
    return {section: {name: value}}


async def _sent(service: Service, method: str, whole: dict[str, Any], path: str, text: str) -> Any:
    """Send the value by PUT within the whole document, or by PATCH alone."""
    body = _nested(path, "\x01")
    section, _, name = path.partition(".")
    if method == "PUT":
        body = {**whole, section: {**whole[section], name: "\x01"}}
    content = json.dumps(body).replace('"\\u0001"', text)
    headers = {"If-Match": '"1"', "Content-Type": "application/json"}
    return await service.ask(method, "/config", content=content, headers=headers, params={"reason": "test"})


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_what_is_out_of_range_or_of_the_wrong_type(service: Service, method: str) -> None:
    whole = await document(service)
    for path in _RANGES:
        for text in (*_NEVER, *_beyond(path)):
            answer = await _sent(service, method, whole, path, text)
            problem = is_problem(answer, 422, "invalid_request")
            assert all(error["path"].startswith(path) for error in problem["errors"]), (path, text, problem)
    for text in ("1", "0", '"true"', "null", "1.0"):
        answer = await _sent(service, method, whole, "test_time_compute.enabled", text)
        is_problem(answer, 422, "invalid_request", "test_time_compute.enabled")
    assert (await service.get("/config"))["version"] == 1


@pytest.mark.parametrize("path", [path for path in _RANGES if not path.startswith("agent_weights")])
async def test_the_ends_of_each_range_are_taken(service: Service, path: str) -> None:
    low, high = _RANGES[path]
    helping: dict[str, Any] = {"worker_pool": {"min_workers": 1, "max_workers": 1000}}
    helping["worker_pool"] |= {"scale_up_threshold": 1.0, "scale_down_threshold": 0.0}
    version = (await changed(service, helping, 1))["version"]
    section, _, name = path.partition(".")
    for value in (low, high):
        answer = await change(service, "PATCH", _nested(path, value), version)
        # The other threshold is in the way of what is allowed for itself.
        if (name, value) in (("scale_up_threshold", 0.0), ("scale_down_threshold", 1.0)):
            is_problem(answer, 422, "config_refused", "worker_pool.scale_down_threshold")
            continue
        assert answer.status_code == 200, answer.text
        version = answer.json()["version"]
        assert answer.json()[section][name] == value


async def test_whole_numbers_are_numbers(service: Service) -> None:
    answer = await changed(service, {"resource_limits": {"max_cpu_per_worker": 4}}, 1)
    assert answer["resource_limits"]["max_cpu_per_worker"] == 4.0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"colour": 1}, "colour"),
        ({"mode": "production"}, "mode"),
        ({"worker_pool": {"workers": 3}}, "worker_pool.workers"),
        ({"agent_weights": {"generation": 0.5}}, "agent_weights.generation"),
        ({"worker_pool": 3}, "worker_pool"),
        ({"worker_pool": None}, "worker_pool"),
        ({"worker_pool": {"min_workers": None}}, "worker_pool.min_workers"),
        ({"agent_weights": []}, "agent_weights"),
        ({"agent_weights": "even"}, "agent_weights"),
    ],
)
async def test_keys_that_nobody_knows_and_values_that_are_taken_away(service: Service, body: Any, field: str) -> None:
    whole = await document(service)
    is_problem(await change(service, "PATCH", body, 1), 422, "invalid_request", field)
    (section,) = body
    inner = body[section]
    if isinstance(inner, dict):
        inner = {name: part for name, part in {**whole[section], **inner}.items() if part is not None}
    put = {name: part for name, part in {**whole, section: inner}.items() if part is not None}
    is_problem(await change(service, "PUT", put, 1), 422, "invalid_request", field)
    assert (await service.get("/config"))["version"] == 1


@pytest.mark.parametrize("body", [[], "text", 3, None, [["worker_pool"]]])
async def test_what_is_no_object(service: Service, body: Any) -> None:
    for method in ("PUT", "PATCH"):
        answer = await service.ask(
            method,
            "/config",
            content=json.dumps(body),
            headers={"If-Match": '"1"', "Content-Type": "application/merge-patch+json"},
        )
        is_problem(answer, 422, "invalid_request")


async def test_a_patch_that_is_nested_without_end(service: Service) -> None:
    for depth in (*range(100, 1000, 25), 3000, 100_000):
        content = '{"worker_pool":' * depth + "1" + "}" * depth
        headers = {"If-Match": '"1"', "Content-Type": "application/json"}
        answer = await service.ask("PATCH", "/config", content=content, headers=headers)
        assert answer.status_code in (400, 413, 422), (depth, answer.text)
    assert (await service.get("/config"))["version"] == 1


async def test_values_that_do_not_go_together(service: Service) -> None:
    cases: list[tuple[Any, str]] = [
        ({"worker_pool": {"min_workers": 50, "max_workers": 49}}, "worker_pool.min_workers"),
        ({"worker_pool": {"scale_down_threshold": 0.9}}, "worker_pool.scale_down_threshold"),
        ({"worker_pool": {"scale_down_threshold": 0.5, "scale_up_threshold": 0.5}}, "worker_pool.scale_down_threshold"),
        ({"agent_weights": dict.fromkeys((await document(service))["agent_weights"], 0)}, "agent_weights"),
    ]
    for body, field in cases:
        is_problem(await change(service, "PATCH", body, 1), 422, "config_refused", field)
    assert (await service.get("/config"))["version"] == 1


async def test_weights_are_scaled_and_none_is_nothing(service: Service) -> None:
    weights = dict.fromkeys((await document(service))["agent_weights"], 0.0)
    body = {**await document(service), "agent_weights": {**weights, "generation_agent": 1, "ranking_agent": 1}}
    answer = (await change(service, "PUT", body, 1)).json()
    assert answer["agent_weights"] == {**weights, "generation_agent": 0.5, "ranking_agent": 0.5}
    effective = answer["effective_weights"]
    assert sum(effective.values()) == pytest.approx(1)
    assert (effective["evolution_agent"], effective["generation_agent"]) == (0.02, pytest.approx(0.46))
    assert "agent_weights.evolution_agent" in {note["path"] for note in answer["notes"]}
    assert len(answer["notes"]) == 4
    read = await service.get("/config")
    assert (read["notes"], read["effective_weights"]) == (answer["notes"], effective)


async def test_a_patch_of_one_weight_means_that_share(service: Service) -> None:
    answer = await changed(service, {"agent_weights": {"generation_agent": 0.5}}, 1)
    assert answer["agent_weights"]["generation_agent"] == 0.5
    assert sum(answer["agent_weights"].values()) == pytest.approx(1)
    assert {found["path"] for found in answer["changes"]} == {
        f"agent_weights.{name}" for name in answer["agent_weights"]
    }
    again = await changed(service, {"agent_weights": {"generation_agent": 0.5}}, 2)
    assert (again["version"], again["changes"]) == (2, [])


async def test_numbers_come_back_as_they_were(service: Service) -> None:
    for value in (0.1, 1 / 3, 0.30000000000000004, 1e-7, 5e-324, 0.0, 1.0):
        base = await service.get("/config")
        pool = {"scale_down_threshold": value, "scale_up_threshold": 1.0}
        answer = await change(service, "PATCH", {"worker_pool": pool}, base["version"])
        if value < 1:
            assert answer.json()["worker_pool"]["scale_down_threshold"] == value
            assert (await document(service))["worker_pool"]["scale_down_threshold"] == value
    verdict = await service.post("/audit/verify", {}, key=Role.READER)
    assert verdict["ok"], verdict
