"""Budgets of goals over HTTP: reserved with permits, settled with real costs, told of in time, and held to."""

import asyncio
from typing import Any

from app.db.database import Database
from app.goals.service import budget_enforcement
from app.kernel.access import Role
from tests.support.permit_calls import allow_many, permit_body, settled
from tests.support.problems import is_problem
from tests.support.service import Service

_GOAL = "kepler"


async def goal(service: Service, **constraints: Any) -> None:
    await service.post("/goals", {"id": _GOAL, "objective": "why?", "constraints": constraints}, key=Role.SUPERVISOR)


async def enforce(database: Database) -> Any:
    async with database.transaction() as connection:
        return await budget_enforcement.enforce_budgets(connection)


async def ask(service: Service, tokens: int = 1000) -> Any:
    body = permit_body(goal_id=_GOAL, estimated_tokens=tokens)
    return await service.ask("POST", "/llm/permits", body, key=Role.OPERATOR)


async def used(service: Service, limit: str) -> float:
    uses = (await service.get(f"/goals/{_GOAL}"))["usage"]
    return float(next(use["used"] for use in uses if use["limit"] == limit))


async def test_sixty_four_at_once_do_not_spend_more_than_the_budget_and_one_call(
    service: Service, database: Database
) -> None:
    await allow_many(service, database)
    await goal(service, money_budget=0.1)
    answers = await asyncio.gather(*(ask(service) for _ in range(64)))
    permits = [answer.json() for answer in answers if answer.status_code == 201]
    assert 1 <= len(permits) <= 10, "each has reserved a cent"
    refusals = [answer.json() for answer in answers if answer.status_code == 429]
    assert "budget" in {refusal["reason"] for refusal in refusals}
    for permit in permits:
        await settled(service, permit, key=Role.OPERATOR, prompt_tokens=500, completion_tokens=700)
    while (answer := await ask(service)).status_code == 201:
        await settled(service, answer.json(), key=Role.OPERATOR, prompt_tokens=500, completion_tokens=700)
    assert answer.json()["reason"] == "budget"
    assert 0.1 <= await used(service, "money") <= 0.112 + 1e-9


async def test_an_answer_whose_tokens_nobody_tells_costs_what_was_reserved_for_it(
    service: Service, database: Database
) -> None:
    """Many a gateway leaves out the usage; a call that failed has cost nothing."""
    await allow_many(service, database)
    await goal(service, money_budget=0.1, token_budget=9000)
    for outcome, tokens, usd in (("success", 4000, 0.04), ("server_error", 4000, 0.04), ("success", 8000, 0.08)):
        await settled(service, (await ask(service, 4000)).json(), outcome, key=Role.OPERATOR)
        assert (await used(service, "tokens"), round(await used(service, "money"), 9)) == (tokens, usd)
    await settled(service, (await ask(service, 4000)).json(), key=Role.OPERATOR)
    assert is_problem(await ask(service, 4000), 429, "permit_refused")["reason"] == "budget"


async def test_four_fifths_are_told_of_and_all_of_it_holds_the_goal_until_it_is_extended(
    service: Service, database: Database
) -> None:
    await allow_many(service, database)
    await goal(service, token_budget=1000)
    await settled(service, (await ask(service, 100)).json(), key=Role.OPERATOR, prompt_tokens=800)
    for _ in range(2):
        assert (await enforce(database))["held"] == []
    events = [event for event in (await service.get("/events"))["items"] if event["kind"] == "goal.budget_low"]
    assert len(events) == 1
    await settled(service, (await ask(service, 100)).json(), key=Role.OPERATOR, prompt_tokens=200)
    assert (await enforce(database))["held"] == [_GOAL]
    assert (await service.get(f"/goals/{_GOAL}"))["hold"] == "budget"
    refusal = is_problem(await ask(service, 100), 429, "permit_refused")
    assert refusal["reason"] == "budget"
    await service.post(f"/goals/{_GOAL}/extend", {"constraints": {"token_budget": 5000}}, key=Role.SUPERVISOR)
    await enforce(database)
    assert (await service.get(f"/goals/{_GOAL}"))["hold"] is None
    assert (await ask(service, 100)).status_code == 201


async def test_reports_and_settlements_are_counted_once(service: Service, database: Database) -> None:
    """Calls cost 0.02 before the first report, which says 0.05; 0.03 before the second, which says 0; then 0.01."""
    await allow_many(service, database)
    await goal(service, money_budget=1.0)

    async def call(tokens: int) -> None:
        await settled(service, (await ask(service, tokens)).json(), key=Role.OPERATOR, prompt_tokens=tokens)

    async def report(number: int, money: float) -> Any:
        body = {"iteration": number, "quality": 0.5, "money": money}
        return await service.post(f"/goals/{_GOAL}/iterations", body, key=Role.SUPERVISOR)

    await call(2000)
    assert await used(service, "money") == 0.02
    assert (await report(1, 0.05))["money_spent"] == 0.05
    await call(3000)
    assert round(await used(service, "money"), 9) == 0.08
    assert round((await report(2, 0.0))["money_spent"], 9) == 0.08
    await call(1000)
    assert round(await used(service, "money"), 9) == 0.09
    replay = await service.get(f"/goals/{_GOAL}/iterations/2/replay")
    assert replay["identical"]
