"""What agents achieve reaches the decisions on the pool: weights with their reasons, and more for who gains by it."""

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.scaling.rules import record as records
from app.scaling.store import decisions
from tests.support.agent_results import (
    add_example_2_results,
    add_results,
    configure_example_2,
    fold,
    let_minute_pass,
    tick,
)
from tests.support.factories import leased, submitted
from tests.support.pools import arrive, bounds, crew, decided, keep_up
from tests.support.sql import value

EVOLUTION = AgentType.EVOLUTION


async def gaining(database: Database) -> None:
    """Results of the evolution agent whose quality grows by 0.05 with each doubling of their time, from 1 to 64 s."""
    for _ in range(10):
        for doublings in range(7):
            await add_results(database, EVOLUTION, 0.4 + 0.05 * doublings, 1, seconds=2.0**doublings)
    await fold(database)


async def test_a_decision_tells_the_reason_of_each_weight_with_its_target(database: Database) -> None:
    await configure_example_2(database)
    await crew(database, 2)
    await tick(database)
    await decided(database)
    await add_example_2_results(database)
    await tick(database)
    decision = await decided(database)
    assert decision["decision_type"] == "rebalance"
    assert decision["agent_weight_adjustments"]["reflection_agent"] == {
        "previous_weight": pytest.approx(0.15),
        "new_weight": pytest.approx(0.225),
        "reason": "effectiveness 0.95; target 0.25, at most 50% in one step",
    }
    await let_minute_pass(database)
    await add_example_2_results(database)
    await tick(database)
    again = (await decided(database))["agent_weight_adjustments"]["reflection_agent"]
    assert (round(again["new_weight"], 6), again["reason"]) == (0.25, "effectiveness 0.95; target 0.25")


async def test_who_gains_by_compute_gets_more_and_the_decision_replays(database: Database) -> None:
    await bounds(database, 2, 10)
    await crew(database, 6)
    before = (await decided(database))["allocation"]["sizes"]
    await gaining(database)
    assert await value(database, "SELECT gain FROM agent_results") == pytest.approx(0.05)
    decision = await decided(database)
    after = decision["allocation"]["sizes"]
    assert "quality gains 0.05" in after["evolution_agent"]["reason"]
    assert after["evolution_agent"]["compute_seconds"] > before["evolution_agent"]["compute_seconds"]
    assert after["ranking_agent"] == before["ranking_agent"]
    async with database.transaction() as connection:
        kept = await decisions.latest(connection)
    assert kept is not None
    assert records.replay(kept.roster, kept.inputs) == kept.output


async def test_work_under_way_is_none_that_waits(database: Database) -> None:
    """Where all workers of a type had tasks of a minute it kept the base, as "30 s of work wait for each worker"."""
    await bounds(database, 2, 10)
    workers = await crew(database, 6)
    await gaining(database)
    await submitted(database, 6, agent_type=EVOLUTION)
    for worker_id in workers:
        await leased(database, worker_id, agent_type=EVOLUTION)
    decision = await decided(database)
    assert decision["allocation"]["agents"] == "e" * 6
    reason = "4.0 times the base: quality gains 0.05, few tasks wait"
    assert decision["allocation"]["sizes"]["evolution_agent"]["reason"].startswith(reason)
    await submitted(database, 60, agent_type=EVOLUTION)
    decision = await decided(database)
    reason = f"base: {60 * 20 / decision['target_workers']:.0f} s of work wait for each worker"
    assert decision["allocation"]["sizes"]["evolution_agent"]["reason"] == reason


async def test_no_agent_gets_more_memory_than_the_host_has_for_each_worker(database: Database) -> None:
    """Of 16 GB nine tenths less 4 GB of others are for six workers: 1.73 GB each, which in quarters is 1.5, not 4."""
    await bounds(database, 2, 10)
    await keep_up(database, 6, memory_gb=16.0, memory_used_gb=4.0)
    await arrive(database)
    await gaining(database)
    size = (await decided(database))["allocation"]["sizes"]["evolution_agent"]
    assert size["memory_gb"] == 1.5
    assert "the hosts have 1.5" in size["reason"]


async def test_a_fold_without_news_writes_nothing(database: Database) -> None:
    await gaining(database)
    before = await value(database, "SELECT xmin::text FROM agent_results")
    await fold(database)
    assert await value(database, "SELECT xmin::text FROM agent_results") == before
