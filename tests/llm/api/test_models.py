"""Limits, state and usage of language models, over HTTP."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.permit_calls import acquired, permit_body, reported, settled
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value

_MODEL = "gpt-4.1"


async def limited(service: Service, model: str = _MODEL, version: int = 0, **limits: Any) -> Any:
    """The model after its limits were set."""
    answer = await service.ask(
        "PUT", f"/llm/models/{model}", limits, key=Role.OPERATOR, headers={"If-Match": f'"{version}"'}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(service: Service, **fields: Any) -> Any:
    answer = await service.ask("POST", "/llm/permits", permit_body(**fields), key=Role.SUPERVISOR)
    is_problem(answer, 429, "permit_refused")
    return answer.json()


async def test_a_model_that_nobody_has_listed_has_no_limits(service: Service) -> None:
    answer = await service.ask("GET", "/llm/models/vendor/new:latest")
    model = answer.json()
    assert (answer.headers["etag"], model["model"], model["version"]) == ('"0"', "vendor/new:latest", 0)
    assert (model["requests_per_window"], model["limit"], model["breaker"]) == (None, 4, "closed")
    assert "vendor/new:latest" not in [item["model"] for item in (await service.get("/llm/models"))["items"]]


async def test_a_model_is_used_from_its_first_permit_on(service: Service) -> None:
    assert (await limited(service))["used_at"] is None
    permit = await acquired(service)
    under_way = (await service.get(f"/llm/models/{_MODEL}"))["used_at"]
    assert under_way is not None
    await settled(service, permit)
    assert (await service.get(f"/llm/models/{_MODEL}"))["used_at"] >= under_way


async def test_limits_are_changed_under_a_condition_and_audited(service: Service) -> None:
    limits: dict[str, Any] = {"requests_per_window": 60, "max_concurrency": 2, "fallback_models": ["small"]}
    for _ in range(2):
        changed = await limited(service, **limits)
        assert (changed["version"], changed["requests_per_window"], changed["limit"]) == (1, 60, 2)
    path = f"/llm/models/{_MODEL}"
    is_problem(await service.ask("PUT", path, limits), 428, "precondition_required")
    stale = await service.ask("PUT", path, {}, headers={"If-Match": '"0"'})
    is_problem(stale, 412, "version_stale")
    entries = (await service.get("/audit"))["items"]
    assert [entry["action"] for entry in entries].count("llm_model.set") == 1
    assert entries[0]["after"]["requests_per_window"] == 60
    unchanged = await service.ask("GET", path, headers={"If-None-Match": '"1"'})
    assert unchanged.status_code == 304
    denied = await service.ask("PUT", path, limits, key=Role.POOL, headers={"If-Match": '"1"'})
    assert denied.status_code == 403


async def test_a_version_of_a_model_that_was_removed_is_none_of_one_that_is_listed_again(service: Service) -> None:
    path = f"/llm/models/{_MODEL}"
    for version in range(2):
        await limited(service, version=version, burst=1 + version)
    for former in (2, 3):
        assert (await service.ask("DELETE", path)).status_code == 204
        for _ in range(2):
            assert (await limited(service, burst=9))["version"] == former + 1, "safe to repeat"
    stale = await service.ask("PUT", path, {"burst": 5}, headers={"If-Match": '"1"'})
    is_problem(stale, 412, "version_stale")
    assert (await service.ask("GET", path, headers={"If-None-Match": '"1", "2", "3"'})).status_code == 200
    assert (await limited(service, version=4, burst=5))["version"] == 5
    entries = (await service.get("/audit"))["items"]
    told = [entry["after"]["version"] for entry in entries if entry["action"] == "llm_model.set"]
    assert told == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("limits", [{"burst": 0}, {"window_seconds": 0}, {"max_concurrency": 0}, {"bursts": 3}])
async def test_limits_that_make_no_sense(service: Service, limits: dict[str, Any]) -> None:
    answer = await service.ask("PUT", f"/llm/models/{_MODEL}", limits, headers={"If-Match": '"0"'})
    is_problem(answer, 422, "invalid_request")


async def test_requests_beyond_the_rate_are_told_when_to_come_back(service: Service) -> None:
    await limited(service, requests_per_window=60, burst=1)
    await acquired(service)
    refusal = await refused(service)
    assert refusal["reason"] == "requests"
    assert 0.5 < refusal["retry_after"] <= 1


async def test_tokens_are_charged_as_they_turn_out(service: Service) -> None:
    await limited(service, tokens_per_window=6000, token_burst=1000)
    permit = await acquired(service, estimated_tokens=1000)
    refusal = await refused(service, estimated_tokens=1000)
    assert refusal["reason"] == "tokens"
    assert 9 < refusal["retry_after"] <= 10
    await settled(service, permit, prompt_tokens=0, completion_tokens=0)
    await acquired(service, estimated_tokens=1000)


async def test_a_permit_that_was_given_back_costs_nothing(service: Service) -> None:
    await limited(service, requests_per_window=1, burst=1, window_seconds=3600)
    permit = await acquired(service)
    await refused(service)
    await service.ask("DELETE", f"/llm/permits/{permit['permit_id']}", params={"token": permit["token"]})
    await acquired(service)


async def test_a_429_cools_down_and_is_no_failure(service: Service) -> None:
    await limited(service, fallback_models=["small", "smaller"])
    for _ in range(4):
        permit = await acquired(service, model="small")
        await settled(service, permit, "rate_limited", reset_requests_seconds=-1, reset_tokens_seconds=0)
    permit = await acquired(service)
    answer = await settled(service, permit, "rate_limited", retry_after_seconds=40)
    assert 39 < answer["cooldown_seconds"] <= 40
    refusal = await refused(service)
    assert (refusal["reason"], refusal["fallback_models"]) == ("cooldown", ["small", "smaller"])
    assert 39 < refusal["retry_after"] <= 40
    model = await service.get("/llm/models/small")
    assert (model["breaker"], model["consecutive_failures"]) == ("closed", 0)


async def test_three_failures_open_the_breaker_and_one_call_tries_it(service: Service, database: Database) -> None:
    # One caller alone opens it for nobody else.
    for outcome in ("server_error", "timeout"):
        await reported(service, outcome, Role.SUPERVISOR, Role.OPERATOR)
    assert (await refused(service))["reason"] == "breaker_open"
    assert (await service.get(f"/llm/models/{_MODEL}"))["breaker"] == "open"
    await execute(database, "UPDATE llm_models SET open_until = now()")
    probe = await acquired(service)
    assert (await refused(service))["reason"] == "breaker_open"
    assert (await service.get("/llm/permits"))["items"][0]["is_probe"] is True
    await settled(service, probe)
    assert (await service.get(f"/llm/models/{_MODEL}"))["breaker"] == "closed"
    await acquired(service)
    await acquired(service)


async def test_a_fallback_that_is_out_of_order_is_not_named(service: Service) -> None:
    await limited(service, requests_per_window=1, burst=1, fallback_models=["broken", "new"])
    for _ in range(3):
        await settled(service, await acquired(service, model="broken"), "timeout")
    await acquired(service)
    assert (await refused(service))["fallback_models"] == ["new"]


async def test_usage_is_summed_by_model_agent_and_goal(service: Service, database: Database) -> None:
    await limited(service, input_price_per_million_tokens=2, output_price_per_million_tokens=8)
    for goal, agent in (("kepler", "ranking"), ("kepler", "evolution"), (None, "ranking")):
        permit = await acquired(service, goal_id=goal, agent_type=agent)
        await execute(database, "UPDATE llm_permits SET granted_at = now() - interval '1 s' WHERE ended_at IS NULL")
        await settled(service, permit, prompt_tokens=1000, completion_tokens=500, latency_ms=200)
    await settled(service, await acquired(service), "client_error", cost_usd=0.5)
    (model,) = (await service.get("/llm/usage"))["items"]
    assert (model["name"], model["calls"], model["outcomes"]) == (_MODEL, 4, {"success": 3, "client_error": 1})
    assert model["cost_usd"] == pytest.approx(0.5 + 3 * (1000 * 2 + 500 * 8) / 1e6)
    assert model["latency_ms"]["mean"] == pytest.approx(200)
    by_goal = {item["name"]: item["calls"] for item in (await service.get("/llm/usage", by="goal"))["items"]}
    assert by_goal == {"kepler": 2, None: 2}
    by_agent = {
        item["name"]: item["completion_tokens"] for item in (await service.get("/llm/usage", by="agent"))["items"]
    }
    assert by_agent == {"ranking": 1000, "evolution": 500}


async def test_usage_of_long_ago_is_by_the_hour_and_says_so(service: Service, database: Database) -> None:
    await limited(service)
    await settled(service, await acquired(service))
    await execute(database, "UPDATE llm_minutes SET minute = date_trunc('hour', now(), 'UTC') - interval '5 hours'")
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    asked = (hour + timedelta(minutes=59, seconds=30)).astimezone(timezone(timedelta(hours=5, minutes=30)))
    answer = await service.get("/llm/usage", since=asked.isoformat())
    assert (datetime.fromisoformat(answer["since"]), len(answer["items"])) == (hour, 1)
    assert (await service.get("/llm/usage", since=(hour + timedelta(hours=1)).isoformat()))["items"] == []


async def test_no_key_says_that_its_call_took_longer_than_its_permit_was_held(
    service: Service, database: Database
) -> None:
    """Else the limit would not shrink for as long as the mean latency is said to be."""
    await settled(service, await acquired(service), latency_ms=1e9)
    assert (await service.get(f"/llm/models/{_MODEL}"))["mean_latency_ms"] < 60_000
    assert (await service.get("/llm/usage"))["items"][0]["latency_ms"]["mean"] < 60_000
    permit = await acquired(service)
    await execute(database, "UPDATE llm_permits SET granted_at = now() + interval '1 h' WHERE ended_at IS NULL")
    await settled(service, permit, latency_ms=1)
    assert await value(database, "SELECT latency_seconds >= 0 FROM llm_models WHERE model = $1", _MODEL)


async def test_prometheus_is_told_how_models_stand(service: Service) -> None:
    await limited(service, max_concurrency=3)
    await acquired(service, model="small")
    await reported(service, "rate_limited", Role.SUPERVISOR, Role.OPERATOR, retry_after_seconds=60)
    lines = (await service.ask("GET", "/metrics", key=Role.MONITOR)).text.splitlines()
    assert 'convener_llm_in_use{model="small"} 1.0' in lines
    assert f'convener_llm_limit{{model="{_MODEL}"}} 3.0' in lines
    (cooling,) = [line for line in lines if line.startswith(f'convener_llm_cooldown_seconds{{model="{_MODEL}"}}')]
    assert 50 < float(cooling.split()[-1]) <= 60


async def test_everybody_sees_why_a_model_answers_nobody_and_until_when(service: Service) -> None:
    """Also over an account that is empty until a known time; a single success ends it, and events tell of both."""
    expires_at = "2099-01-01T00:00:00Z"
    await settled(
        service,
        await acquired(service),
        "client_error",
        status=402,
        retry_after_seconds=7200,
        key_expires_at=expires_at,
    )
    refusal = is_problem(
        await service.ask("POST", "/llm/permits", permit_body(), key=Role.SUPERVISOR), 429, "permit_refused"
    )
    assert (refusal["reason"], refusal["state"], refusal["park_seconds"]) == (
        "quota_exhausted",
        "quota_exhausted",
        3600,
    )
    model = await service.get("/llm/models/gpt-4.1", key=Role.READER)
    assert (model["state"], model["breaker"], model["key_expires_at"]) == ("quota_exhausted", "closed", expires_at)
    assert model["state_until"] is not None
    text = (await service.ask("GET", "/metrics", key=Role.MONITOR)).text
    assert 'convener_llm_state{model="gpt-4.1",state="quota_exhausted"} 1.0' in text
    await settled(service, await acquired(service, Role.OPERATOR), key=Role.OPERATOR)
    assert (await service.get("/llm/models/gpt-4.1"))["state"] == "ok"
    events = [event for event in (await service.get("/events"))["items"] if event["kind"] == "llm_model.state"]
    assert [event["detail"]["state"] for event in events] == ["quota_exhausted", "ok"]
