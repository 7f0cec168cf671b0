"""Commands and overrides: clamped like everything else, audited, and safe against each other and the tick."""

import asyncio
from datetime import timedelta

import pytest

from app.admin.service import audit, config
from app.agents.errors import WeightsRefused
from app.agents.rules.steering import Cause, Heading
from app.agents.service import orders, weights
from app.agents.service.orders import Order
from app.agents.store.weights import Version
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import VersionStale
from app.kernel.modes import Mode
from app.kernel.shares import Weights
from tests.support.agent_results import (
    REFLECTION,
    add_example_2_results,
    configure_example_2,
    end_override,
    in_force,
    let_minute_pass,
    tick,
)
from tests.support.sql import fetch, until_blocked, value

HALF = {REFLECTION: 0.5}
ORDER = Order(by="someone", reason="reviews lag behind")


@pytest.fixture(autouse=True)
async def _configured(database: Database) -> None:
    await configure_example_2(database)


async def command(database: Database, named: Weights = HALF, order: Order = ORDER) -> Version:
    async with database.transaction() as connection:
        return _version(await orders.command(connection, Mode.PRODUCTION, order, named))


async def override(database: Database, named: Weights = HALF, seconds: float = 3600.0) -> Version:
    async with database.transaction() as connection:
        return _version(await orders.override(connection, Mode.PRODUCTION, ORDER, named, seconds))


async def release(database: Database) -> Version:
    async with database.transaction() as connection:
        return _version(await orders.release(connection, Mode.PRODUCTION, ORDER))


def _version(version: Version | None) -> Version:
    assert version is not None
    return version


async def reflection(database: Database) -> float:
    return round((await in_force(database)).weights[REFLECTION], 6)


async def weights_after_steps(database: Database, steps: int) -> list[float]:
    """The weight of the reflection agent after each of so many steps, a minute apart."""
    weights = []
    for _ in range(steps):
        await let_minute_pass(database)
        await tick(database)
        weights.append(await reflection(database))
    return weights


async def test_a_command_is_reached_in_steps_and_the_others_share_the_rest(database: Database) -> None:
    version = await command(database)
    assert (version.cause, version.state.heading, version.changed_by) == (Cause.COMMAND, Heading.ORDERED, "someone")
    assert version.adjustments[REFLECTION].reason == "ordered; target 0.5, at most 50% in one step"
    assert await reflection(database) == 0.225
    assert "kept" in await tick(database)
    assert await weights_after_steps(database, 3) == [0.3375, 0.5, 0.5]
    in_force_weights = (await in_force(database)).weights
    assert all(in_force_weights[agent] == pytest.approx(0.1) for agent in AgentType if agent is not REFLECTION)


async def test_a_second_command_within_a_minute_waits_for_its_turn(database: Database) -> None:
    await command(database)
    await command(database, {REFLECTION: 0.05})
    assert await reflection(database) == 0.225
    assert await weights_after_steps(database, 3) == [0.1125, 0.05625, 0.05]


async def test_the_same_command_again_leaves_no_trace(database: Database) -> None:
    first = await command(database)
    again = await command(database)
    assert again.version == first.version
    assert await value(database, "SELECT count(*) FROM audit WHERE action LIKE 'weights.%'") == 1


async def test_results_move_the_weights_around_what_was_commanded(database: Database) -> None:
    await command(database, {REFLECTION: 0.2})
    assert await weights_after_steps(database, 1) == [0.2]
    await add_example_2_results(database)
    (after,) = await weights_after_steps(database, 1)
    assert 0.2 < after <= 0.3


async def test_an_override_goes_first_and_the_automatic_weights_go_on_when_it_expires(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    await override(database)
    assert await weights_after_steps(database, 3) == [0.3375, 0.5, 0.5]
    await end_override(database)
    assert (await tick(database))["cause"] == "expiry"
    assert await weights_after_steps(database, 2) == [0.25, 0.25]
    (last, *_) = await fetch(database, "SELECT heading, override FROM weights ORDER BY version DESC")
    assert tuple(last) == ("earning", "{}")


async def test_an_override_can_be_ended_and_replaced(database: Database) -> None:
    first = await override(database)
    second = await override(database, {REFLECTION: 0.1}, 60.0)
    assert first.state.override is not None
    assert second.state.override is not None
    assert second.state.override.expires_at < first.state.override.expires_at - timedelta(minutes=50)
    ended = await release(database)
    assert (ended.state.override, ended.state.heading) == (None, Heading.RETURNING)
    assert await weights_after_steps(database, 1) == [0.15]
    assert (await release(database)).version == await value(database, "SELECT max(version) FROM weights")


async def test_ending_no_override_does_nothing_not_even_a_step_that_is_due(database: Database) -> None:
    async with database.transaction() as connection:
        assert await orders.release(connection, Mode.PRODUCTION, ORDER) is None
    await tick(database)
    await add_example_2_results(database)
    assert (await release(database)).version == 1
    assert await reflection(database) == 0.15


async def test_the_reason_of_a_step_is_told_also_after_an_order_that_only_turned_the_course(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    await tick(database)
    await override(database)
    assert (await in_force(database)).reasons[REFLECTION].startswith("effectiveness 0.95; target 0.25")


async def test_what_cannot_be_is_refused(database: Database) -> None:
    for named in ({REFLECTION: 0.6, AgentType.RANKING: 0.6}, dict.fromkeys(AgentType, 0.0)):
        with pytest.raises(WeightsRefused):
            await command(database, named)
    with pytest.raises(VersionStale):
        await command(database, order=Order(by="someone", expected_version=7))
    assert await value(database, "SELECT count(*) FROM weights") == 0


async def test_no_agent_is_disabled(database: Database) -> None:
    version = await command(database, {REFLECTION: 1.0})
    assert min(version.target.values()) == pytest.approx(0.02)
    assert version.target[REFLECTION] == pytest.approx(0.9)


async def test_trusted_testers_say_why(database: Database) -> None:
    async with database.transaction() as connection:
        last = await config.current(connection, Mode.PRODUCTION)
        order = config.ChangeRequest(expected_version=last.version, by="test", reason="guests")
        await config.switch(connection, Mode.PRODUCTION, order, Mode.TRUSTED_TESTER)
    with pytest.raises(WeightsRefused, match="say why"):
        await command(database, order=Order(by="someone"))
    await command(database)
    assert await reflection(database) == 0.1875


async def test_a_command_that_waits_for_a_tick_builds_on_it(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    async with database.transaction() as connection:
        assert "version" in await weights.tick(connection)
        waiting = asyncio.create_task(command(database))
        await until_blocked(database)
    version = await waiting
    assert version.version == 3
    # The tick has just made a step, so the command must wait for a minute.
    assert not version.adjustments
    assert await reflection(database) == 0.225
    assert await weights_after_steps(database, 2) == [0.3375, 0.5]


async def test_a_tick_that_waits_for_a_command_leaves_it_alone(database: Database) -> None:
    await tick(database)
    await add_example_2_results(database)
    async with database.transaction() as connection:
        await orders.command(connection, Mode.PRODUCTION, ORDER, {REFLECTION: 0.05})
        waiting = asyncio.create_task(tick(database))
        await until_blocked(database)
    assert await waiting == {"kept": "somebody else was faster"}
    assert await reflection(database) == 0.075


async def test_of_two_commands_at_once_both_are_kept_and_one_step_is_version(database: Database) -> None:
    async with database.transaction() as connection:
        await orders.command(connection, Mode.PRODUCTION, ORDER, HALF)
        waiting = asyncio.create_task(command(database, {REFLECTION: 0.4}))
        await until_blocked(database)
    second = await waiting
    assert (second.version, len(second.adjustments)) == (2, 0)
    assert second.state.base[REFLECTION] == pytest.approx(0.4)
    assert await reflection(database) == 0.225


async def test_an_override_that_expires_while_its_tick_waits(database: Database) -> None:
    """Whatever the order, it is over once, and the weights change by at most half in the minute."""
    await override(database, seconds=1.0)
    await end_override(database)
    async with database.transaction() as connection:
        await orders.command(connection, Mode.PRODUCTION, ORDER, {REFLECTION: 0.3})
        waiting = asyncio.create_task(tick(database))
        await until_blocked(database)
    await waiting
    await tick(database)
    rows = await fetch(database, "SELECT override, heading FROM weights ORDER BY version DESC LIMIT 1")
    assert tuple(rows[0]) == ("{}", "ordered")
    assert await reflection(database) == 0.225


async def test_every_order_is_in_the_audit_log(database: Database) -> None:
    await command(database)
    await override(database)
    await release(database)
    rows = await fetch(database, "SELECT action, by, reason FROM audit ORDER BY seq")
    orders = [tuple(row) for row in rows if row["action"].startswith("weights.")]
    assert orders == [(f"weights.{what}", "someone", ORDER.reason) for what in ("command", "override", "release")]
    assert (await audit.verify(database)).violation is None
