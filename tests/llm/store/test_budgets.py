"""Budgets of many owners, under charge from several connections at once."""

import asyncio
from datetime import datetime, timedelta

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.llm.rules.outcomes import Outcome
from app.llm.rules.spending import Amount, BudgetOwner, BudgetPeriod, BudgetScope
from app.llm.store import budgets, models, usage
from app.llm.store.budgets import BudgetLimits
from app.llm.store.usage import FinishedCall
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch, until_blocked, value

_TWO = """
INSERT INTO llm_budgets (scope, name, token_budget, period, tokens, is_low) VALUES
('key', 'me', 100, 'day', 90, false), ('agent', 'ranking', 100, 'day', 90, false)
"""


async def _now(database: Database) -> datetime:
    now: datetime = await value(database, "SELECT now()")
    return now


def _call(tokens: int, key_id: str = "me") -> FinishedCall:
    return FinishedCall(
        model="m",
        agent_type=AgentType.RANKING,
        goal_id=None,
        key_id=key_id,
        paying_key=key_id,
        outcome=Outcome.SUCCESS,
        prompt_tokens=tokens,
        completion_tokens=0,
        cost_usd=0.0,
        held_seconds=1.0,
        latency_seconds=1.0,
    )


async def test_who_tells_of_low_budgets_waits_for_nobody_who_charges_them(
    database: Database, replica: Database
) -> None:
    """Rows lie in another order than that in which calls lock them, so who waited could wait in a circle."""
    await execute(database, _TWO)
    async with database.transaction() as charging:
        await charging.exec_driver_sql("SELECT FROM llm_budgets WHERE scope = 'agent' FOR UPDATE")
        async with replica.transaction() as telling:
            assert [row["scope"] for row in await budgets.note_low(telling, 0.8)] == ["key"]
        await charging.exec_driver_sql("SELECT FROM llm_budgets WHERE scope = 'key' FOR UPDATE")
    async with replica.transaction() as telling:
        assert [row["scope"] for row in await budgets.note_low(telling, 0.8)] == ["agent"]


async def test_two_replicas_charge_a_budget_at_once_and_at_the_end_of_its_period(
    database: Database, replica: Database
) -> None:
    """The second waits for the first, which has begun the next period."""
    await execute(database, _TWO)
    await execute(database, "UPDATE llm_budgets SET ends_at = now() - interval '1 s'")
    # A call that ended just before the period did, and one that ended after it.
    late = await value(database, "SELECT now()")
    early = await value(database, "SELECT now() - interval '2 s'")

    async def charge_late() -> None:
        async with replica.transaction() as connection:
            await usage.add(connection, [_call(7), _call(1)], early)

    async with database.transaction() as connection:
        await usage.add(connection, [_call(5)], late)
        other = asyncio.create_task(charge_late())
        await until_blocked(database)
    await other
    rows = await fetch(database, "SELECT tokens, max_tokens, ends_at > now() AS is_new FROM llm_budgets")
    assert [tuple(row) for row in rows] == [(13, 7, True)] * 2


async def test_what_calls_cost_is_learned_anew_in_each_period_and_when_the_limits_are_set(database: Database) -> None:
    """Else one dear call of the past would be reserved for each call of all days to come."""
    owner = BudgetOwner(BudgetScope.KEY, "me")

    async def costs(*tokens: int) -> tuple[int, int, Amount | None]:
        async with database.transaction() as connection:
            if tokens:
                await usage.add(connection, [_call(number) for number in tokens], await _now(database))
            stored = await budgets.read(connection, owner)
        assert stored is not None
        return stored.budget.dearest.tokens, stored.budget.ended_calls, stored.budget.mean

    limits = BudgetLimits(token_budget=1000, period=BudgetPeriod.DAY)
    async with database.transaction() as connection:
        await budgets.write(connection, owner, limits)
    assert await costs(90, 1) == (90, 2, Amount(tokens=46))
    await execute(database, "UPDATE llm_budgets SET ends_at = now() - interval '1 s'")
    assert (await costs())[:2] == (0, 0)
    assert await costs(7) == (7, 1, Amount(tokens=7))
    async with database.transaction() as connection:
        await budgets.write(connection, owner, limits)
    assert await costs() == (0, 0, None)


async def test_a_call_that_is_charged_by_a_moment_before_the_period_takes_nothing_back(database: Database) -> None:
    """It waited for the lock while another began the new period."""
    owner = BudgetOwner(BudgetScope.KEY, "me")
    async with database.transaction() as connection:
        await budgets.write(connection, owner, BudgetLimits(token_budget=1000, period=BudgetPeriod.HOUR))
        moments = [await _now(database) + timedelta(hours=hours) for hours in (1, 0)]
        for tokens, at in zip((5, 3), moments, strict=True):
            await usage.add(connection, [_call(tokens)], at)
    assert await value(database, "SELECT tokens FROM llm_budgets") == 8


async def test_of_many_budgets_only_those_that_are_awaited_are_read(database: Database) -> None:
    await execute(
        database,
        "INSERT INTO llm_budgets (scope, name, token_budget, period, tokens)"
        " SELECT 'key', 'key ' || n, 10, 'day', CASE WHEN n % 2 = 0 THEN 10 ELSE 9 END FROM generate_series(1, 50) n",
    )
    owners = [BudgetOwner(BudgetScope.KEY, f"key {n}") for n in (1, 2, 99)]
    assert [BudgetOwner.awaited(owner.waits_for) for owner in owners] == owners
    assert BudgetOwner.awaited("gpt-4.1") is None
    async with database.transaction() as connection:
        assert await budgets.used_up(connection, owners) == {owners[1]}


_FILL = """
WITH budget AS (
    INSERT INTO llm_budgets (scope, name, token_budget, period) SELECT 'key', 'key ' || n, 100, 'day'
    FROM generate_series(1, 200) AS n
), model AS (
    INSERT INTO llm_models (model, concurrency) SELECT 'model ' || n, 10 FROM generate_series(1, 200) AS n
)
INSERT INTO llm_permits (id, key_id, request_id, token, model, agent_type, priority, estimated_tokens, is_probe,
                         granted_at, expires_at, reserved_tokens)
SELECT gen_random_uuid(), 'key ' || n % 100, gen_random_uuid(), '', 'model ' || n % 100, 'ranking', 2, 1, false, now(),
       now() + interval '1 h', 5
FROM generate_series(1, 1000) AS n
"""


async def test_lists_look_at_the_live_permits_once(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """They looked at all of them for each budget and each model: 500 budgets and 2,000 permits took 3 to 7 s."""
    await execute(own_database, _FILL)
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        async with database.transaction() as connection:
            page = await budgets.page(connection, after="key:key 1", limit=150)
            one = await budgets.read(connection, BudgetOwner(BudgetScope.KEY, "key 2"))
        of_budgets = log.take()
        async with database.transaction() as connection:
            statuses = await models.status_page(connection, after_name="", limit=150)
        of_models = log.take()
    found = {stored.owner.name: stored.budget for stored in page.items}
    assert (len(found), page.has_more) == (150, True)
    assert (found["key 12"].calls, found["key 12"].reserved.tokens) == (10, 50)
    assert (found["key 112"].calls, found["key 112"].reserved.tokens) == (0, 0)
    assert one is not None
    assert (one.budget.calls, one.budget.reserved.tokens) == (10, 50)
    permits = {status.model.name: status.permits for status in statuses.items}
    assert (permits["model 12"], permits["model 112"]) == (10, 0)
    assert 1000 < of_budgets.rows < 60 * 1000
    assert 1000 < of_models.rows < 20 * 1000
