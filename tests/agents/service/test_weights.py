"""The weights in force follow what agents achieve: in steps, by one writer at a time, from the database alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.admin.service.config import CurrentConfig
from app.agents.service import weights
from app.agents.service.weights import follow_weights
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.queue.rules.fair_queueing import FairQueue
from app.queue.service.degradation import CurrentStep
from tests.support.agent_results import (
    REFLECTION,
    add_example_2_results,
    add_results,
    configure,
    configure_example_2,
    fold,
    in_force,
    let_minute_pass,
    tick,
)
from tests.support.sql import execute, fetch, until, until_blocked, value


@pytest.fixture(autouse=True)
async def _configured(database: Database) -> None:
    await configure_example_2(database)


@asynccontextmanager
async def a_tick_that_hesitates(database: Database) -> AsyncIterator[AsyncConnection]:
    """A tick that has done its work, and commits at the end."""
    async with database.transaction() as connection:
        assert "version" in await weights.tick(connection)
        yield connection


async def test_before_the_first_tick_the_weights_are_the_configured_ones(database: Database) -> None:
    current = await in_force(database)
    assert (current.version, len(current.reasons)) == (0, 0)
    assert current.weights[REFLECTION] == pytest.approx(0.15)
    await configure(database, dict.fromkeys((f"{agent}_agent" for agent in AgentType), 1 / 6))
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(1 / 6)


async def test_the_first_tick_begins_with_the_configured_weights(database: Database) -> None:
    assert await tick(database) == {"version": 1, "cause": "config"}
    assert await value(database, "SELECT reason FROM weights") == "as configured"
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(0.15)
    assert "0 new results" in (await tick(database))["kept"]


async def test_example_2_live_and_to_the_number(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    await tick(database)
    first = await in_force(database)
    assert first.weights[REFLECTION] == pytest.approx(0.225, abs=1e-9)
    assert sum(first.weights.values()) == pytest.approx(1.0, abs=1e-9)
    assert first.reasons[REFLECTION] == "effectiveness 0.95; target 0.25, at most 50% in one step"
    assert await tick(database) == {"kept": "0 new results; a step takes 10"}
    await add_example_2_results(database)
    assert "s ago" in (await tick(database))["kept"]
    await let_minute_pass(database)
    await tick(database)
    second = await in_force(database)
    assert second.weights[REFLECTION] == pytest.approx(0.25, abs=1e-6)
    assert sum(second.weights.values()) == pytest.approx(1.0, abs=1e-9)
    assert second.reasons[REFLECTION] == "effectiveness 0.95; target 0.25"
    await let_minute_pass(database)
    await add_example_2_results(database)
    assert await tick(database) == {"kept": "the weights are what the agents have earned"}


@pytest.mark.parametrize(
    ("mode", "step"), [(Mode.DEVELOPMENT, 0.225), (Mode.PRODUCTION, 0.225), (Mode.TRUSTED_TESTER, 0.1875)]
)
async def test_weights_follow_in_every_mode(database: Database, mode: Mode, step: float) -> None:
    async with database.transaction() as connection:
        order = config.ChangeRequest(expected_version=2, by="test", reason="another mode")
        await config.switch(connection, Mode.PRODUCTION, order, mode)
    await tick(database)
    await add_example_2_results(database)
    await tick(database)
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(step)


async def test_three_times_faster_alone_moves_nothing(database: Database) -> None:
    await tick(database)
    for agent in AgentType:
        count, seconds = (90, 1.0) if agent is REFLECTION else (30, 3.0)
        await add_results(database, agent, 0.6, count, seconds)
    await fold(database)
    assert await tick(database) == {"kept": "the weights are what the agents have earned"}


async def test_a_change_of_the_configuration_is_taken_up_in_steps(database: Database) -> None:
    await tick(database)
    await configure(database, dict.fromkeys((f"{agent}_agent" for agent in AgentType), 0.1) | {"ranking_agent": 0.5})
    assert (await tick(database))["cause"] == "config"
    assert (await in_force(database)).weights[AgentType.RANKING] == pytest.approx(0.255)
    await let_minute_pass(database)
    await tick(database)
    await let_minute_pass(database)
    await tick(database)
    assert (await in_force(database)).weights[AgentType.RANKING] == pytest.approx(0.5)


async def test_of_two_ticks_one_writes(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    async with a_tick_that_hesitates(database):
        other = asyncio.create_task(tick(database))
        await until_blocked(database)
    assert await other == {"kept": "somebody else was faster"}
    assert await value(database, "SELECT count(*) FROM weights") == 2
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(0.225)


async def test_a_tick_that_dies_leaves_its_step_to_the_next(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    with pytest.raises(RuntimeError):
        async with a_tick_that_hesitates(database):
            raise RuntimeError("killed before the commit")
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(0.15)
    await tick(database)
    assert (await in_force(database)).weights[REFLECTION] == pytest.approx(0.225)


async def test_another_process_goes_on_where_this_one_ended(database: Database, replica: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    await tick(database)
    assert await in_force(replica) == await in_force(database)
    assert await tick(replica) == {"kept": "0 new results; a step takes 10"}


async def test_rows_are_only_added(database: Database) -> None:
    await tick(database)
    with pytest.raises(Exception, match="only added"):
        await execute(database, "DELETE FROM weights")
    assert len(await fetch(database, "SELECT 1 FROM weights")) == 1


async def test_every_replica_shares_leases_by_the_weights_in_force(database: Database, replica: Database) -> None:
    queues = [FairQueue(), FairQueue()]
    following = [
        asyncio.create_task(follow_weights(each, CurrentConfig(each, Mode.PRODUCTION), queue, CurrentStep()))
        for each, queue in zip((database, replica), queues, strict=True)
    ]
    try:
        await tick(database)
        await add_example_2_results(database)
        await tick(database)

        async def followed() -> bool:
            return all(queue.weights[REFLECTION] == pytest.approx(0.225) for queue in queues)

        await until(followed)
    finally:
        for each in following:
            each.cancel()
        await asyncio.gather(*following, return_exceptions=True)
