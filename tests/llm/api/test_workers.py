"""Workers and language models over HTTP: what one worker says and does binds that worker, whoever has its key."""

import asyncio
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.permit_calls import acquired, permit_body, reported, settled
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute, fetch, value

_MODEL = "gpt-4.1"
_KEY = "ab" * 32


async def at_work(service: Service, goal_id: str | None = "kepler", **task: Any) -> tuple[Worker, Any]:
    """A worker with the lease of a new task."""
    await service.submitted(**({"goal_id": goal_id} if goal_id else {}), **task)
    worker = await service.worker()
    lease = await worker.lease()
    assert lease is not None
    return worker, lease


def body(**fields: Any) -> dict[str, Any]:
    """What a worker sends: nothing about its task."""
    return {"request_id": str(uuid4()), "model": _MODEL, "estimated_tokens": 100} | fields


async def granted(worker: Worker, **fields: Any) -> Any:
    answer = await worker.ask("/llm/permits", body(**fields))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def settle(worker: Worker, permit: Any, outcome: str = "success", **fields: Any) -> Any:
    answer = await worker.ask(
        f"/llm/permits/{permit['permit_id']}/settle", {"token": permit["token"], "outcome": outcome} | fields
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_permit_says_what_the_lease_says(service: Service) -> None:
    worker, lease = await at_work(service, priority="critical")
    await granted(worker)
    await granted(worker, task_id=lease["task_id"])
    for permit in (await service.get("/llm/permits"))["items"]:
        assert permit["worker_id"] == worker.id
        assert (permit["agent_type"], permit["goal_id"], permit["task_id"], permit["priority"]) == (
            "generation",
            "kepler",
            lease["task_id"],
            "critical",
        )


@pytest.mark.parametrize(
    "claim",
    [{"agent_type": "ranking"}, {"goal_id": "newton"}, {"task_id": str(uuid4())}, {"priority": "critical"}],
    ids=lambda claim: next(iter(claim)),
)
async def test_a_claim_that_the_lease_does_not_bear_out_is_refused(service: Service, claim: dict[str, str]) -> None:
    worker, _ = await at_work(service)
    is_problem(await worker.ask("/llm/permits", body(**claim)), 409, "lease_mismatch")
    assert (await service.get("/llm/permits"))["items"] == []


async def test_a_worker_without_a_task_gets_no_permit_and_renews_none(service: Service, database: Database) -> None:
    idle = await service.worker()
    is_problem(await idle.ask("/llm/permits", body()), 403, "lease_required")
    worker, lease = await at_work(service)
    permit = await granted(worker)
    path, token = f"/llm/permits/{permit['permit_id']}", {"token": permit["token"]}
    assert (await worker.ask(f"{path}/renew", token)).status_code == 200
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    is_problem(await worker.ask("/llm/permits", body()), 403, "lease_required")
    is_problem(await worker.ask(f"{path}/renew", token), 409, "permit_over")
    await settle(worker, permit)
    assert await value(database, "SELECT count(*) FROM llm_permits") == 1


async def test_a_lease_that_has_expired_is_none(service: Service, database: Database) -> None:
    worker, _ = await at_work(service)
    permit = await granted(worker)
    await execute(database, "UPDATE tasks SET lease_expires_at = now()")
    is_problem(await worker.ask("/llm/permits", body()), 403, "lease_required")
    path = f"/llm/permits/{permit['permit_id']}"
    is_problem(await worker.ask(f"{path}/renew", {"token": permit["token"]}), 409, "permit_over")
    await settle(worker, permit)


@pytest.mark.parametrize("state", ["starting", "stopped", "lost", "failed"])
async def test_a_worker_that_is_over_gets_none_whatever_its_lease_says(
    service: Service, database: Database, state: str
) -> None:
    worker, _ = await at_work(service)
    await execute(database, "UPDATE workers SET state = $1", state)
    answer = await worker.ask("/llm/permits", body())
    assert answer.status_code in (401, 403, 409), answer.text
    assert await value(database, "SELECT count(*) FROM llm_permits") == 0


async def test_the_permit_of_a_worker_is_of_no_use_to_another(service: Service) -> None:
    (one, _), (other, _) = await at_work(service), await at_work(service)
    permit = await granted(one)
    path, token = f"/llm/permits/{permit['permit_id']}", {"token": permit["token"]}
    for key in (other.key, service.keys[Role.ADMIN]):
        is_problem(await service.ask("POST", f"{path}/renew", token, key=key), 409, "permit_over")
        answer = await service.ask("POST", f"{path}/settle", {**token, "outcome": "timeout"}, key=key)
        is_problem(answer, 409, "permit_over")
        is_problem(await service.ask("DELETE", path, key=key, params=token), 409, "permit_over")
    await settle(one, permit)


async def test_people_say_what_a_call_is_for_and_it_is_booked_under_their_key(service: Service) -> None:
    request = permit_body()
    del request["agent_type"]
    answer = await service.ask("POST", "/llm/permits", request, key=Role.SUPERVISOR)
    is_problem(answer, 422, "agent_type_missing", "agent_type")
    urgent = permit_body(priority="critical")
    is_problem(await service.ask("POST", "/llm/permits", urgent, key=Role.SUPERVISOR), 403, "forbidden")
    assert (await service.ask("POST", "/llm/permits", urgent, key=Role.OPERATOR)).status_code == 201
    await settled(service, await acquired(service, goal_id="kepler", task_id=str(uuid4())), prompt_tokens=7)
    worker, _ = await at_work(service)
    await settle(worker, await granted(worker), prompt_tokens=5)
    by_key = {item["name"]: item["prompt_tokens"] for item in (await service.get("/llm/usage", by="key"))["items"]}
    supervisor = service.keys[Role.SUPERVISOR].split("_")[1]
    assert by_key == {supervisor: 7, None: 5}


@pytest.mark.parametrize("name", ["gpt-5", "gpt-4.1 ", "GPT-4.1"])
async def test_only_listed_models_are_granted(service: Service, database: Database, name: str) -> None:
    worker, _ = await at_work(service)
    problem = is_problem(await worker.ask("/llm/permits", body(model=name)), 404, "model_not_allowed")
    assert _MODEL in problem["models"]
    answer = await service.ask("POST", "/llm/permits", permit_body(model=name), key=Role.SUPERVISOR)
    is_problem(answer, 404, "model_not_allowed")
    assert not await fetch(database, "SELECT FROM llm_models WHERE model = $1", name)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u202egpt", "x" * 201, ""])
async def test_a_name_that_is_none_is_refused(service: Service, name: str) -> None:
    worker, _ = await at_work(service)
    is_problem(await worker.ask("/llm/permits", body(model=name)), 422, "invalid_request", "model")


async def test_a_model_that_was_taken_from_the_list_is_granted_no_more(service: Service) -> None:
    worker, _ = await at_work(service)
    permit, other = await granted(worker), body()
    assert (await worker.ask("/llm/permits", other)).status_code == 201
    path = f"/llm/models/{_MODEL}"
    assert (await service.ask("DELETE", path, key=Role.SUPERVISOR)).status_code == 403
    assert (await service.ask("DELETE", path, key=Role.OPERATOR)).status_code == 204
    is_problem(await service.ask("DELETE", path, key=Role.OPERATOR), 404, "model_not_allowed")
    is_problem(await worker.ask("/llm/permits", body()), 404, "model_not_allowed")
    assert (await worker.ask("/llm/permits", other)).status_code == 201, "calls under way go on"
    await settle(worker, permit, "rate_limited", retry_after_seconds=5)
    assert (await service.get("/audit"))["items"][0]["action"] == "llm_model.remove"


async def test_one_worker_switches_a_model_off_for_itself_alone(service: Service) -> None:
    (rogue, _), (honest, _) = await at_work(service), await at_work(service)
    answer = await settle(rogue, await granted(rogue), "rate_limited", retry_after_seconds=1e9)
    assert 299 < answer["cooldown_seconds"] <= 300
    refusal = is_problem(await rogue.ask("/llm/permits", body()), 429, "permit_refused")
    assert refusal["reason"] == "cooldown"
    await settle(honest, await granted(honest))
    model = await service.get(f"/llm/models/{_MODEL}")
    assert (model["cooldown_seconds"], model["breaker"]) == (0, "closed")
    (held_back,) = model["held_back"]
    assert (held_back["caller"], held_back["breaker_open_seconds"]) == (rogue.id, 0)
    assert 299 < held_back["cooldown_seconds"] <= 300


@pytest.mark.parametrize("outcome", ["server_error", "timeout", "rate_limited"])
async def test_nor_does_it_by_many_reports_at_once(service: Service, outcome: str) -> None:
    (rogue, _), (honest, _) = await at_work(service), await at_work(service)
    before = await service.get(f"/llm/models/{_MODEL}")
    permits = [await granted(rogue) for _ in range(3)]
    for permit in permits:
        await settle(rogue, permit, outcome, retry_after_seconds=1e9, latency_ms=1e9)
    is_problem(await rogue.ask("/llm/permits", body()), 429, "permit_refused")
    after = await service.get(f"/llm/models/{_MODEL}")
    assert (after["limit"], after["breaker"], after["cooldown_seconds"]) == (before["limit"], "closed", 0)
    assert (after["mean_latency_ms"] or 0) < 60_000
    await settle(honest, await granted(honest))


@pytest.mark.parametrize("reporting", [["pool", "other"], ["pool", "pool", "pool"]])
async def test_what_workers_of_two_keys_or_three_of_the_only_one_report_holds_for_all(
    service: Service, database: Database, reporting: list[str]
) -> None:
    workers = [(await at_work(service))[0] for _ in reporting]
    last, _ = await at_work(service)
    for worker, key in zip(workers, reporting, strict=True):
        await execute(database, "UPDATE workers SET registered_by = $2 WHERE id = $1", UUID(worker.id), key)
    permits = [(worker, await granted(worker)) for worker in workers]
    for worker, permit in permits:
        await settle(worker, permit, "rate_limited", retry_after_seconds=40)
    refusal = is_problem(await last.ask("/llm/permits", body()), 429, "permit_refused")
    assert refusal["reason"] == "cooldown"
    assert 39 < refusal["retry_after"] <= 40


async def test_workers_of_one_key_cannot_confirm_each_other_while_one_of_another_calls(
    service: Service, database: Database
) -> None:
    rogues = [(await at_work(service))[0] for _ in range(4)]
    honest, _ = await at_work(service)
    await execute(database, "UPDATE workers SET registered_by = 'ours' WHERE id = $1", UUID(honest.id))
    call = await granted(honest)
    for rogue, outcome in product(rogues, ("rate_limited", "server_error", "server_error")):
        answer = await rogue.ask("/llm/permits", body())
        if answer.status_code == 201:
            await settle(rogue, answer.json(), outcome, retry_after_seconds=1e9)
    model = await service.get(f"/llm/models/{_MODEL}")
    assert (model["cooldown_seconds"], model["breaker"], len(model["held_back"])) == (0, "closed", 4)
    await settle(honest, call)
    await settle(honest, await granted(honest))


async def test_a_reset_lifts_everything_and_is_written_down(service: Service, database: Database) -> None:
    await reported(service, "rate_limited", Role.SUPERVISOR, Role.OPERATOR, retry_after_seconds=300)
    await execute(database, "UPDATE llm_models SET open_until = now() + interval '30 s', concurrency = 1")
    worker, _ = await at_work(service)
    is_problem(await worker.ask("/llm/permits", body()), 429, "permit_refused")
    path = f"/llm/models/{_MODEL}/reset"
    for key in (Role.SUPERVISOR, Role.READER, worker.key):
        assert (await service.ask("POST", path, key=key)).status_code == 403
    for _ in range(2):
        model = await service.post(path, key=Role.OPERATOR)
        assert (model["breaker"], model["cooldown_seconds"], model["limit"], model["held_back"]) == ("closed", 0, 4, [])
    await granted(worker)
    entry = (await service.get("/audit"))["items"][0]
    assert (entry["action"], entry["before"]["model"]) == ("llm_model.reset", _MODEL)
    events = await fetch(database, "SELECT detail FROM every_event WHERE kind = 'llm_model.reset'")
    assert len(events) == 2
    is_problem(await service.ask("POST", "/llm/models/gpt-5/reset", key=Role.OPERATOR), 404, "model_not_allowed")


async def test_one_worker_never_has_every_permit(service: Service) -> None:
    (rogue, _), (honest, _) = await at_work(service), await at_work(service)
    answers = [await rogue.ask("/llm/permits", body()) for _ in range(8)]
    assert [answer.status_code for answer in answers].count(201) == 3
    assert is_problem(answers[-1], 429, "permit_refused")["reason"] == "share"
    await granted(honest)


async def cached(worker: Worker, model: str = _MODEL) -> Any:
    answer = await worker.service.ask("GET", f"/llm/cache/{_KEY}", key=worker.key, params={"model": model})
    return answer.json()["answer"] if answer.status_code == 200 else None


def answer_of(text: str) -> dict[str, Any]:
    return {"key": _KEY, "answer": {"text": text}}


async def test_an_answer_serves_within_its_goal_and_is_not_replaced(service: Service) -> None:
    (writer, _), (reader, _), (elsewhere, _) = [await at_work(service, goal) for goal in ("kepler", "kepler", "newton")]
    await settle(writer, await granted(writer, cache_key=_KEY), cache=answer_of("a law"))
    await settle(reader, await granted(reader, cache_key=_KEY), cache=answer_of("a lie"))
    assert [await cached(worker) for worker in (writer, reader, elsewhere)] == [{"text": "a law"}] * 2 + [None]
    assert await cached(reader, "small") is None
    permit = await granted(elsewhere, model="small", cache_key=_KEY)
    await settle(elsewhere, permit, cache=answer_of("a lie"))
    assert await cached(reader) == {"text": "a law"}


async def test_an_answer_of_no_goal_serves_its_worker_alone(service: Service) -> None:
    (writer, _), (reader, _) = await at_work(service, None), await at_work(service, None)
    await settle(writer, await granted(writer, cache_key=_KEY), cache=answer_of("mine"))
    assert [await cached(writer), await cached(reader)] == [{"text": "mine"}, None]


async def test_an_answer_is_stored_under_the_question_of_its_permit(service: Service) -> None:
    worker, lease = await at_work(service)
    permits = [await granted(worker), await granted(worker, cache_key="cd" * 32)]
    for permit in permits:
        forged = {"token": permit["token"], "outcome": "success", "cache": answer_of("a lie")}
        answer = await worker.ask(f"/llm/permits/{permit['permit_id']}/settle", forged)
        is_problem(answer, 422, "cache_key_mismatch")
        await settle(worker, permit)
    assert await cached(worker) is None
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    is_problem(
        await service.ask("GET", f"/llm/cache/{_KEY}", key=worker.key, params={"model": _MODEL}), 403, "lease_required"
    )


async def test_a_worker_makes_up_no_costs_and_no_latencies(service: Service) -> None:
    worker, _ = await at_work(service)
    prices = {"input_price_per_million_tokens": 2}
    await service.ask("PUT", f"/llm/models/{_MODEL}", prices, key=Role.OPERATOR, headers={"If-Match": '"0"'})
    await settle(worker, await granted(worker), prompt_tokens=1000, cost_usd=1e6, latency_ms=1e9)
    (usage,) = (await service.get("/llm/usage"))["items"]
    assert usage["cost_usd"] == pytest.approx(0.002)
    assert usage["latency_ms"]["mean"] < 60_000


async def test_a_claim_of_many_tokens_stops_others_for_no_more_than_a_window(service: Service) -> None:
    limits = {"tokens_per_window": 6000, "token_burst": 1000, "window_seconds": 60}
    await service.ask("PUT", f"/llm/models/{_MODEL}", limits, key=Role.OPERATOR, headers={"If-Match": '"0"'})
    (rogue, _), (honest, _) = await at_work(service), await at_work(service)
    permits = [await granted(rogue, estimated_tokens=1) for _ in range(2)]
    await asyncio.sleep(0.2)  # more than the burst is granted only once nothing is owed
    permits.append(await granted(rogue, estimated_tokens=100_000_000))
    refusal = is_problem(await honest.ask("/llm/permits", body()), 429, "permit_refused")
    assert (refusal["reason"], refusal["retry_after"] < 60) == ("tokens", True)
    for permit in permits:
        await settle(rogue, permit, prompt_tokens=100_000_000)
    refusal = is_problem(await honest.ask("/llm/permits", body()), 429, "permit_refused")
    assert refusal["retry_after"] < 60


@pytest.mark.parametrize("limits", [{"requests_per_window": 60}, {"tokens_per_window": 6000}], ids=["calls", "tokens"])
async def test_one_worker_takes_half_of_a_rate_at_most_while_others_want_it(
    service: Service, database: Database, limits: dict[str, Any]
) -> None:
    limits = limits | {"window_seconds": 3600}
    await service.ask("PUT", f"/llm/models/{_MODEL}", limits, key=Role.OPERATOR, headers={"If-Match": '"0"'})
    (rogue, _), (honest, _) = await at_work(service), await at_work(service)
    under_way = await granted(honest)
    for _ in range(6):
        await settle(rogue, await granted(rogue), prompt_tokens=100)
        await execute(database, "UPDATE llm_models SET requests_tat = NULL, tokens_tat = NULL")
    refusal = is_problem(await rogue.ask("/llm/permits", body()), 429, "permit_refused")
    assert refusal["reason"] == next(iter(limits)).partition("_")[0]
    await settle(honest, await granted(honest))
    await settle(honest, under_way)
