"""Permits for calls of language models, over HTTP."""

from datetime import datetime
from uuid import uuid4

from app.db.database import Database
from app.kernel.access import Role
from tests.support.permit_calls import acquired, permit_body, settled
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value


async def test_a_permit_is_granted_and_settled(service: Service) -> None:
    permit = await acquired(service)
    assert (permit["limit"], permit["in_use"], permit["ttl_seconds"]) == (4, 1, 120)
    answer = await settled(service, permit, prompt_tokens=80, completion_tokens=40, latency_ms=900)
    assert answer == {"limit": 4, "in_use": 0, "cooldown_seconds": 0, "late": False}
    assert (await service.get("/llm/permits"))["items"] == []


async def test_a_repeated_request_gets_the_same_permit(service: Service) -> None:
    body = permit_body()
    first, second = [await service.post("/llm/permits", body, key=Role.SUPERVISOR) for _ in range(2)]
    assert (first["permit_id"], first["token"]) == (second["permit_id"], second["token"])
    assert second["ttl_seconds"] < first["ttl_seconds"], "its time has run on since it was granted"
    await settled(service, first)
    is_problem(await service.ask("POST", "/llm/permits", body, key=Role.SUPERVISOR), 409, "permit_over")


async def test_a_repeated_request_gets_the_same_permit_whatever_model_it_names_now(service: Service) -> None:
    body = permit_body()
    first, second = [
        await service.post("/llm/permits", body | {"model": name}, key=Role.SUPERVISOR) for name in ("a", "b")
    ]
    assert (second["permit_id"], second["model"]) == (first["permit_id"], "a")


async def test_more_than_the_service_bears_is_refused(service: Service) -> None:
    permits = [await acquired(service) for _ in range(4)]
    assert [permit["in_use"] for permit in permits] == [1, 2, 3, 4]
    refusal = await service.ask("POST", "/llm/permits", permit_body(), key=Role.SUPERVISOR)
    is_problem(refusal, 429, "permit_refused")
    problem = refusal.json()
    assert (problem["reason"], problem["fallback_models"], problem["cached"]) == ("concurrency", [], None)
    assert 0 < problem["retry_after"] <= 5
    assert refusal.headers["retry-after"] == "1"


async def test_a_permit_is_renewed_while_it_lives(service: Service) -> None:
    permit = await acquired(service)
    path = f"/llm/permits/{permit['permit_id']}"
    renewed = await service.post(f"{path}/renew", {"token": permit["token"]}, key=Role.SUPERVISOR)
    assert renewed["expires_at"] > permit["expires_at"]
    assert renewed["ttl_seconds"] == permit["ttl_seconds"]
    is_problem(await service.ask("POST", f"{path}/renew", {"token": "x"}), 409, "permit_over")
    await settled(service, permit)
    answer = await service.ask("POST", f"{path}/renew", {"token": permit["token"]})
    is_problem(answer, 409, "permit_over")
    assert answer.json()["reason"] == "settled"
    is_problem(await service.ask("POST", f"/llm/permits/{uuid4()}/renew", {"token": "x"}), 404, "permit_not_found")


async def test_a_settlement_may_be_repeated_but_not_changed(service: Service) -> None:
    permit = await acquired(service)
    first = await settled(service, permit, prompt_tokens=5)
    assert await settled(service, permit, prompt_tokens=5) == first
    changed = {"token": permit["token"], "outcome": "success", "prompt_tokens": 6}
    answer = await service.ask("POST", f"/llm/permits/{permit['permit_id']}/settle", changed)
    is_problem(answer, 409, "permit_over")
    assert answer.json()["reason"] == "settled"


async def test_a_key_that_has_all_permits_leaves_the_next_one_to_others(service: Service, database: Database) -> None:
    """However often it asks, for whatever, and renews: whoever waits is served before it, and then beside it."""
    held = [await acquired(service) for _ in range(4)]
    renewals = [(f"/llm/permits/{permit['permit_id']}/renew", {"token": permit["token"]}) for permit in held]
    await service.post(*renewals[0], key=Role.SUPERVISOR)
    waiting = permit_body(priority="low")
    is_problem(await service.ask("POST", "/llm/permits", waiting, key=Role.OPERATOR), 429, "permit_refused")
    await execute(database, "UPDATE llm_claims SET due = now() + interval '30 s', lapses = now() + interval '60 s'")
    expires_at = await value(database, "SELECT max(expires_at) FROM llm_permits")
    for path, token in renewals:
        await service.post(path, token, key=Role.SUPERVISOR)
    assert await value(database, "SELECT max(expires_at) FROM llm_permits") == expires_at
    # Without an answer, which would raise the limit.
    await settled(service, held[0], "cancelled")
    for number in range(12):
        body = permit_body(agent_type=("ranking", "generation")[number % 2], goal_id=f"g{number}", priority="high")
        is_problem(await service.ask("POST", "/llm/permits", body, key=Role.SUPERVISOR), 429, "permit_refused")
    assert (await service.post("/llm/permits", waiting, key=Role.OPERATOR))["in_use"] == 4
    await service.post(*renewals[1], key=Role.SUPERVISOR)
    assert await value(database, "SELECT max(expires_at) FROM llm_permits") > expires_at


async def test_a_key_keeps_a_permit_for_a_quarter_of_an_hour_at_most(service: Service, database: Database) -> None:
    permit = await acquired(service)
    path, token = f"/llm/permits/{permit['permit_id']}/renew", {"token": permit["token"]}
    await execute(database, "UPDATE llm_permits SET granted_at = now() - interval '890 s'")
    expires_at = datetime.fromisoformat((await service.post(path, token, key=Role.SUPERVISOR))["expires_at"])
    assert expires_at <= datetime.fromisoformat(permit["expires_at"])
    await execute(database, "UPDATE llm_permits SET expires_at = now() + interval '1 s'")
    expires_at = datetime.fromisoformat((await service.post(path, token, key=Role.SUPERVISOR))["expires_at"])
    assert expires_at == await value(database, "SELECT granted_at + interval '900 s' FROM llm_permits")


async def test_a_permit_that_was_not_used_is_given_back(service: Service) -> None:
    permit = await acquired(service)
    for _ in range(2):
        gone = await service.ask("DELETE", f"/llm/permits/{permit['permit_id']}", params={"token": permit["token"]})
        assert gone.status_code == 204
    assert (await acquired(service))["in_use"] == 1


async def test_a_refusal_brings_the_cached_answer(service: Service) -> None:
    key = "ab" * 32
    path, query = f"/llm/cache/{key}", {"model": "gpt-4.1"}
    is_problem(await service.ask("GET", path, key=Role.SUPERVISOR, params=query), 404, "answer_not_cached")
    permit, *_ = [await acquired(service, cache_key=key) for _ in range(4)]
    await settled(service, permit, cache={"key": key, "answer": {"text": "42"}})
    answer = await service.ask("GET", path, key=Role.SUPERVISOR, params=query)
    assert answer.json()["answer"] == {"text": "42"}
    await acquired(service)
    await acquired(service)
    refusal = (await service.ask("POST", "/llm/permits", permit_body(cache_key=key), key=Role.SUPERVISOR)).json()
    assert (refusal["cached"]["answer"], refusal["cached"]["degraded"]) == ({"text": "42"}, True)
