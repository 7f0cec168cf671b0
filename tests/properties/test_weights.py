"""Whatever is ordered, achieved and configured at once, by however many: no weight breaks the sum, the floor, the step
or the pause, and every reader sees the same."""

import asyncio
import random
from itertools import pairwise

import pytest

from app.agents.rules.weights import WeightPolicy
from app.agents.service import orders, weights
from app.agents.service.orders import Order
from app.agents.store import weights as store
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import VersionStale
from app.kernel.modes import Mode
from app.kernel.shares import raise_to_floor
from app.memory.store import invariants
from tests.support.agent_results import (
    add_results,
    configure,
    configure_example_2,
    end_override,
    fold,
    in_force,
    let_minute_pass,
    tick,
)

_ROUNDS = 40


async def _deed(database: Database, draw: random.Random) -> None:
    named = {agent: draw.random() for agent in draw.sample(list(AgentType), 6)}
    what = draw.choice(["tick", "tick", "command", "override", "release", "configure"])
    order = Order(by="someone", expected_version=draw.choice([None, None, draw.randrange(20)]))
    async with database.transaction() as connection:
        match what:
            case "tick":
                await weights.tick(connection)
            case "command":
                await orders.command(connection, Mode.PRODUCTION, order, named)
            case "override":
                await orders.override(connection, Mode.PRODUCTION, order, named, 600.0)
            case "release":
                await orders.release(connection, Mode.PRODUCTION, order)
            case _:
                pass
    if what == "configure":
        shares = raise_to_floor(named, WeightPolicy().floor)
        await configure(database, {f"{agent}_agent": share for agent, share in shares.items()})


async def _between(database: Database, draw: random.Random) -> None:
    """Time passes, and agents achieve something."""
    if draw.random() < 0.3:
        await add_results(database, draw.choice(list(AgentType)), draw.random(), 12)
        await fold(database)
    if draw.random() < 0.2:
        await end_override(database)
    if draw.random() < 0.6:
        await let_minute_pass(database)


@pytest.mark.parametrize("seed", range(3))
async def test_no_storm_of_orders_breaks_the_weights(database: Database, replica: Database, seed: int) -> None:
    draw = random.Random(seed)
    await configure_example_2(database)
    await tick(database)
    for _ in range(_ROUNDS):
        before = await in_force(database)
        deeds = [_deed(draw.choice([database, replica]), draw) for _ in range(3)]
        done = await asyncio.gather(*deeds, return_exceptions=True)
        assert all(found is None or isinstance(found, VersionStale) for found in done), done
        after = await in_force(replica)
        assert after == await in_force(database)
        for agent, weight in before.weights.items():
            # However many were at it: a minute has not passed, so there was one step at most.
            assert abs(after.weights[agent] - weight) <= 0.5 * weight + 1e-9
        await _between(database, draw)
    await _check_all(database)


async def _check_all(database: Database) -> None:
    async with database.transaction() as connection:
        versions = (await store.history(connection, end_version=2**62, limit=1000)).items[::-1]
        (check,) = [check for check in invariants.CHECKS if check.name == "weights"]
        assert (await invariants.run_check(connection, check)).violations == 0
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    assert sum(bool(version.adjustments) for version in versions) > _ROUNDS / 10
    for one, other in pairwise(versions):
        moved = one.state.current != other.state.current
        assert moved == bool(other.adjustments)
        assert sum(other.state.current.values()) == pytest.approx(1.0, abs=1e-9)
