"""Budgets of agent types and keys over HTTP: reserved and settled like those of goals, and told of in time."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.llm.service import budgets, parking
from tests.support.permit_calls import allow_many, permit_body, settled
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value

_AGENT = "/llm/budgets/agent/generation"


@pytest.fixture
async def model(service: Service, database: Database) -> None:
    await allow_many(service, database)


async def put(service: Service, path: str, **limits: Any) -> Any:
    answer = await service.ask("PUT", path, limits, key=Role.OPERATOR)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def key_budget(database: Database, role: Role = Role.OPERATOR) -> str:
    return f"/llm/budgets/key/{await value(database, 'SELECT id FROM keys WHERE role = $1', role.value)}"


async def ask(service: Service, agent: str = "generation", key: Role = Role.OPERATOR) -> Any:
    body = permit_body(agent_type=agent, estimated_tokens=1000)
    return await service.ask("POST", "/llm/permits", body, key=key)


async def spend(service: Service, tokens: int, **call: Any) -> None:
    permit = (await ask(service, **call)).json()
    await settled(service, permit, key=call.get("key", Role.OPERATOR), prompt_tokens=tokens)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("scope", ["agent", "key"])
async def test_sixty_four_at_once_overshoot_by_one_call_at_most(
    service: Service, database: Database, scope: str
) -> None:
    """Each reserves a cent, and costs 1.2."""
    path = _AGENT if scope == "agent" else await key_budget(database)
    await put(service, path, money_budget=0.1)
    while True:
        answers = await asyncio.gather(*(ask(service) for _ in range(64)))
        permits = [answer.json() for answer in answers if answer.status_code == 201]
        if not permits:
            break
        now = await service.get(path)
        assert (now["calls"], now["reserved_tokens"]) == (len(permits), sum(1000 for _ in permits)) or now["spent_usd"]
        await asyncio.gather(*(settled(service, one, key=Role.OPERATOR, prompt_tokens=1200) for one in permits))
    now = await service.get(path)
    assert 0.1 <= now["spent_usd"] <= 0.112 + 1e-9
    assert (now["calls"], now["reserved_usd"], now["is_used_up"]) == (0, 0, True)


@pytest.mark.usefixtures("model")
async def test_a_refusal_says_whose_budget_is_used_up_and_until_when(service: Service, database: Database) -> None:
    await put(service, _AGENT, token_budget=1000, period="day")
    await put(service, await key_budget(database), token_budget=1500, period="month")
    await spend(service, 1000)
    refusal = is_problem(await ask(service), 429, "permit_refused")
    until = (await service.get(_AGENT))["until"]
    assert (refusal["reason"], refusal["waits_for"]) == ("budget", "budget:agent:generation")
    assert (refusal["budget"]["scope"], refusal["budget"]["name"]) == ("agent", "generation")
    assert until.startswith(refusal["budget"]["until"][:16])
    assert "the budget of the agent type generation is used up until 20" in refusal["detail"]
    assert refusal["park_seconds"] > 1
    # Another agent type of the same key, then another key.
    await spend(service, 500, agent="ranking")
    refusal = is_problem(await ask(service, "ranking"), 429, "permit_refused")
    assert refusal["budget"]["scope"] == "key"
    assert (await ask(service, "ranking", Role.SUPERVISOR)).status_code == 201


@pytest.mark.usefixtures("model")
async def test_what_others_have_reserved_is_waited_for_in_place(service: Service) -> None:
    """A worker that is told to wait for longer hands its task back, and does all of it again."""
    await put(service, _AGENT, token_budget=1000)
    assert (await ask(service)).status_code == 201
    refusal = is_problem(await ask(service), 429, "permit_refused")
    assert (refusal["reason"], refusal["retry_after"], refusal["waits_for"]) == ("budget", 0.5, "gpt-4.1")


@pytest.mark.usefixtures("model")
async def test_a_budget_is_whole_again_when_its_period_ends(service: Service, database: Database) -> None:
    await put(service, _AGENT, token_budget=1000, period="hour")
    await spend(service, 1000)
    assert (await ask(service)).status_code == 429
    await execute(database, "UPDATE llm_budgets SET ends_at = now() - interval '1 s'")
    fresh = await service.get(_AGENT)
    assert (fresh["spent_tokens"], fresh["spent_usd"], fresh["is_used_up"]) == (0, 0, False)
    assert await value(database, "SELECT $1::text::timestamptz > now()", fresh["until"])
    await spend(service, 300)
    assert (await service.get(_AGENT))["spent_tokens"] == 300
    assert await value(database, "SELECT ends_at > now() FROM llm_budgets")


@pytest.mark.usefixtures("model")
async def test_a_budget_of_a_period_that_is_to_come_is_whole_after_the_clock_was_set_back(
    service: Service, database: Database
) -> None:
    """What was used up while the clock was a year ahead stayed so for a year, also when the budget was raised."""
    await put(service, _AGENT, token_budget=1000, period="hour")
    await spend(service, 1000)
    await execute(database, "UPDATE llm_budgets SET ends_at = ends_at + interval '1 year'")
    fresh = await service.get(_AGENT)
    assert (fresh["spent_tokens"], fresh["is_used_up"]) == (0, False)
    assert await value(database, "SELECT $1::text::timestamptz <= now() + interval '1 hour'", fresh["until"])
    await spend(service, 300)
    assert (await service.get(_AGENT))["spent_tokens"] == 300
    assert await value(database, "SELECT ends_at <= now() + interval '1 hour' FROM llm_budgets")


@pytest.mark.usefixtures("model")
async def test_an_absurd_report_uses_up_no_budget_of_others_and_makes_none_serial(
    service: Service, database: Database
) -> None:
    await put(service, _AGENT, token_budget=10_000_000, money_budget=1000, period="day")
    for _ in range(20):
        await spend(service, 1000)
    permit = (await ask(service)).json()
    absurd: dict[str, Any] = {"prompt_tokens": 100_000_000, "completion_tokens": 100_000_000, "cost_usd": 1e6}
    await settled(service, permit, key=Role.OPERATOR, **absurd)
    now = await service.get(_AGENT)
    assert (now["spent_tokens"], now["spent_usd"]) == (20 * 1000 + 2_097_152, pytest.approx(0.2 + 20.97152))
    assert [(await ask(service, key=Role.SUPERVISOR)).status_code for _ in range(5)] == [201] * 5
    await execute(database, "UPDATE llm_budgets SET ends_at = now() - interval '1 s'")
    await execute(database, "UPDATE llm_permits SET ended_at = now(), ending = 'released' WHERE ended_at IS NULL")
    await spend(service, 1000)
    assert [(await ask(service)).status_code for _ in range(5)] == [201] * 5


@pytest.mark.usefixtures("model")
async def test_four_fifths_are_told_of_once(service: Service, database: Database) -> None:
    async def tell() -> int:
        async with database.transaction() as connection:
            return int((await budgets.tell_of_low_budgets(connection))["low"])

    await put(service, _AGENT, token_budget=1000, period="day")
    await spend(service, 799)
    assert await tell() == 0
    await spend(service, 1)
    assert [await tell(), await tell()] == [1, 0]
    (event,) = [event for event in (await service.get("/events"))["items"] if event["kind"] == "llm_budget.low"]
    assert (event["detail"]["scope"], event["detail"]["name"], event["detail"]["share"]) == ("agent", "generation", 0.8)
    await put(service, _AGENT, token_budget=900, period="day")
    assert (await service.get(_AGENT))["spent_tokens"] == 800, "a change of the limit forgets nothing"
    assert await tell() == 1


@pytest.mark.usefixtures("model")
async def test_tasks_that_wait_for_a_budget_are_woken_when_it_is_raised(service: Service, database: Database) -> None:
    async def wake() -> int:
        async with database.transaction() as connection:
            return int((await parking.wake_parked(connection)).get("woken", 0))

    worker = await service.worker()
    await service.submitted()
    lease = await worker.lease()
    await put(service, _AGENT, token_budget=1000)
    await spend(service, 1000)
    refusal = is_problem(await worker.ask("/llm/permits", permit_body(agent_type=None)), 429, "permit_refused")
    delay = {"delay_seconds": refusal["park_seconds"], "waits_for_model": refusal["waits_for"]}
    await worker.on_lease(lease, "release", reason="no budget", **delay)
    assert await wake() == 0
    assert await worker.lease(wait_seconds=0) is None
    await put(service, _AGENT, token_budget=5000)
    assert await wake() == 1
    task = await service.get(f"/tasks/{lease['task_id']}")
    assert (task["failures"], task["rescues"]) == (0, 0)
    assert await value(database, "SELECT run_at <= now() FROM tasks")


@pytest.mark.usefixtures("model")
async def test_calls_of_workers_use_the_budget_of_the_key_by_which_they_registered(
    service: Service, database: Database
) -> None:
    path = await key_budget(database, Role.POOL)
    await put(service, path, token_budget=1000)
    worker = await service.worker()
    await service.submitted()
    assert await worker.lease() is not None
    permit = await worker.ask("/llm/permits", permit_body(agent_type=None))
    assert permit.status_code == 201, permit.text
    assert (await service.get(path))["calls"] == 1
    await settled(service, permit.json(), key=worker.key, prompt_tokens=1000)
    assert (await service.get(path))["spent_tokens"] == 1000
    refusal = is_problem(await worker.ask("/llm/permits", permit_body(agent_type=None)), 429, "permit_refused")
    assert refusal["budget"]["scope"] == "key"


async def test_budgets_are_listed_removed_and_audited(service: Service, database: Database) -> None:
    agent, key = await put(service, _AGENT, money_budget=5, period="day"), await key_budget(database)
    await put(service, key, token_budget=7)
    first = await service.get("/llm/budgets", limit=1)
    rest = await service.get("/llm/budgets", after=first["next"])
    assert [item["scope"] for item in (*first["items"], *rest["items"])] == ["agent", "key"]
    assert first["items"] == [agent]
    assert (await service.ask("DELETE", f"{_AGENT}?reason=over", key=Role.OPERATOR)).status_code == 204
    is_problem(await service.ask("DELETE", _AGENT, key=Role.OPERATOR), 404, "budget_not_found")
    is_problem(await service.ask("GET", _AGENT), 404, "budget_not_found")
    actions = [entry["action"] for entry in (await service.get("/audit"))["items"]]
    assert actions.count("llm_budget.set") == 2
    assert actions.count("llm_budget.remove") == 1


async def test_budgets_of_nobody_and_of_nothing_are_refused(service: Service) -> None:
    for path in ("/llm/budgets/agent/cook", "/llm/budgets/key/nobody"):
        is_problem(await service.ask("PUT", path, {"money_budget": 1}), 404, "budget_owner_not_found")
    for body in ({}, {"money_budget": 0}, {"token_budget": -1}, {"money_budget": 1, "period": "blue moon"}):
        assert (await service.ask("PUT", _AGENT, body)).status_code == 422
    assert (await service.ask("PUT", "/llm/budgets/goal/kepler", {"money_budget": 1})).status_code == 422
    alias = await service.ask("PUT", "/llm/budgets/agent/MetaReview", {"money_budget": 1})
    assert alias.json()["name"] == "meta_review"
