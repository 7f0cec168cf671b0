"""The ladder in the database, in the shares of leases, and in whose work waits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest

from app.admin.service.config import CurrentConfig
from app.agents.service import weights
from app.agents.service.weights import refresh_weights
from app.db.database import Database
from app.health.service import observations
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.modes import Mode
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.aging import AgingPolicy
from app.queue.rules.degradation import DegradationStep, LadderMove, LadderPolicy
from app.queue.service import aging, counters, degradation
from app.queue.store import degradation as store
from tests.support.factories import ready_worker, submitted
from tests.support.sql import execute, until_blocked, value

# Everything is tight, at once.
TIGHT = LadderPolicy(tight_share=0.0, easy_share=-1.0, up_after_seconds=0.0)
EVERYTHING = frozenset(AgentType)


async def watch(database: Database, policy: LadderPolicy = TIGHT) -> object:
    async with database.transaction() as connection:
        strain = await observations.latest_strain(connection, CapacityPolicy())
        return await degradation.watch(connection, strain, policy)


async def held(database: Database, step: DegradationStep, minutes: float = 10) -> None:
    async with database.transaction() as connection:
        await degradation.hold(connection, step, timedelta(minutes=minutes), by="ann", reason="test")


async def standing(database: Database) -> store.LadderState:
    async with database.transaction() as connection:
        return await store.read(connection)


async def moves(database: Database) -> list[tuple[LadderMove, int, int, str | None]]:
    async with database.transaction() as connection:
        found = (await store.history(connection, below_id=2**62, limit=100)).items
    return [(move.move, move.old_step, move.new_step, move.by) for move in reversed(found)]


async def test_before_the_first_observation_there_is_no_step(database: Database) -> None:
    assert (await standing(database)).ladder.step is DegradationStep.NONE


async def test_the_duty_climbs_a_step_at_a_time_and_tells_each(database: Database) -> None:
    for _ in range(6):
        await watch(database)
    found = await standing(database)
    assert found.ladder.step is DegradationStep.ESSENTIALS
    assert found.ladder.expires_at is not None
    assert found.ladder.expires_at > found.at
    assert "database_connections" in found.strain["resources"]
    assert await moves(database) == [(LadderMove.UP, n, n + 1, None) for n in range(4)]
    await execute(database, "UPDATE degradation SET expires_at = now()")
    await watch(database, LadderPolicy(tight_share=2.0, easy_share=-1.0))
    assert (await standing(database)).ladder.step is DegradationStep.BATCHES
    assert (await moves(database))[-1] == (LadderMove.EXPIRED, 4, 3, None)


async def test_an_operator_and_the_duty_at_once(database: Database, replica: Database) -> None:
    """Whoever is second sees what the first has done: the duty does not move what is held."""
    await watch(database)
    async with database.transaction() as first:
        await store.lock(first)
        second = asyncio.create_task(watch(replica))
        await until_blocked(database)
        await degradation.hold(first, DegradationStep.NONE, timedelta(minutes=5), by="ann", reason="a demonstration")
    await second
    assert (await standing(database)).ladder.step is DegradationStep.NONE
    assert await moves(database) == [(LadderMove.UP, 0, 1, None), (LadderMove.HELD, 1, 0, "ann")]


async def test_holding_and_letting_go_are_audited(database: Database) -> None:
    await held(database, DegradationStep.DEPTH)
    async with database.transaction() as connection:
        await degradation.release(connection, by="bob", reason="done")
        await degradation.release(connection, by="bob", reason="again")
    query = "SELECT array_agg(action || ' ' || by || ' ' || reason ORDER BY seq) FROM audit"
    assert await value(database, query) == ["degradation.hold ann test", "degradation.release bob done"]
    assert [move[0] for move in await moves(database)] == [LadderMove.HELD, LadderMove.RELEASED]


async def test_old_moves_are_forgotten(database: Database) -> None:
    await held(database, DegradationStep.DEPTH)
    await execute(database, "UPDATE degradation_moves SET at = now() - interval '99 d'")
    await held(database, DegradationStep.BATCHES)
    async with database.transaction() as connection:
        assert await store.prune(connection, 30) == 1
    assert [move[2] for move in await moves(database)] == [3]


async def test_the_shares_are_under_the_step_and_the_weights_stay_what_they_are(database: Database) -> None:
    config = CurrentConfig(database, Mode.PRODUCTION)
    known = await config.read()
    await held(database, DegradationStep.ESSENTIALS)
    async with database.transaction() as connection:
        found = await weights.in_force(connection, known)
    assert found.step is DegradationStep.ESSENTIALS
    assert found.weights == known.weights
    assert found.shares[AgentType.RANKING] == 0.02
    assert sum(found.shares.values()) == pytest.approx(1)
    await held(database, DegradationStep.NONE)
    async with database.transaction() as connection:
        assert (await weights.in_force(connection, known)).shares == known.weights


@pytest.fixture
async def short(database: Database) -> AsyncIterator[Broker]:
    """A broker that has heard of the first step."""
    await held(database, DegradationStep.LOW_RANKED_EVOLUTION)
    async for broker in _broker(database):
        yield broker


async def _broker(database: Database) -> AsyncIterator[Broker]:
    from app.queue.rules.tasks import LeasePolicy

    broker = Broker(database, LeasePolicy())
    config = CurrentConfig(database, Mode.PRODUCTION)
    await refresh_weights(database, config, broker.fairness, broker.degradation)
    broker.start()
    yield broker
    await broker.stop()


async def leases(
    database: Database, broker: Broker, count: int, can_run: frozenset[AgentType] = EVERYTHING
) -> list[str]:
    """The agent types of so many leases, one after the other, each by a worker of its own."""
    given = []
    for _ in range(count):
        call = LeaseCall(worker_id=await ready_worker(database), request_id=uuid4(), agent_types=can_run)
        lease = await broker.lease(call)
        given.append(lease.agent_type if lease else "nothing")
    return given


async def test_low_ranked_evolution_waits_while_other_work_does(database: Database, short: Broker) -> None:
    await submitted(database, 5, agent_type=AgentType.EVOLUTION, priority=Priority.LOW)
    await submitted(database, 15, agent_type=AgentType.RANKING, priority=Priority.LOW)
    given = await leases(database, short, 21)
    assert given[:15] == ["ranking"] * 15
    assert given[15:] == ["evolution"] * 5 + ["nothing"]


async def test_without_the_step_it_has_its_share(database: Database, broker: Broker) -> None:
    await submitted(database, 5, agent_type=AgentType.EVOLUTION, priority=Priority.LOW)
    await submitted(database, 15, agent_type=AgentType.RANKING, priority=Priority.LOW)
    assert "evolution" in await leases(database, broker, 6)


async def test_it_is_never_starved(database: Database, short: Broker) -> None:
    """It is held back as long as its priority is low, which ends after ten minutes."""
    await submitted(database, 3, agent_type=AgentType.EVOLUTION, priority=Priority.LOW)
    await submitted(database, 50, agent_type=AgentType.RANKING)
    assert Counter(await leases(database, short, 25))["evolution"] == 0
    await execute(database, "UPDATE tasks SET waiting_since = now() - interval '11 min' WHERE agent_type = 'evolution'")
    async with database.transaction() as connection:
        await aging.age_tasks(connection, AgingPolicy())
    assert Counter(await leases(database, short, 10))["evolution"] >= 2


async def test_a_worker_that_can_run_nothing_else_is_not_left_idle(database: Database, short: Broker) -> None:
    await submitted(database, 2, agent_type=AgentType.EVOLUTION, priority=Priority.LOW)
    await submitted(database, 5, agent_type=AgentType.RANKING)
    assert await leases(database, short, 2, frozenset({AgentType.EVOLUTION})) == ["evolution"] * 2


async def test_evolution_of_higher_rank_goes_on(database: Database, short: Broker) -> None:
    await submitted(database, 10, agent_type=AgentType.EVOLUTION, priority=Priority.MEDIUM)
    await submitted(database, 10, agent_type=AgentType.RANKING, priority=Priority.MEDIUM)
    assert Counter(await leases(database, short, 10))["evolution"] >= 3


async def test_suspended_agents_keep_their_share_of_one_in_fifty(database: Database) -> None:
    await held(database, DegradationStep.ESSENTIALS)
    async for broker in _broker(database):
        await submitted(database, 70, agent_type=AgentType.GENERATION)
        await submitted(database, 70, agent_type=AgentType.RANKING)
        given = Counter(await leases(database, broker, 60))
    assert given["generation"] >= 54
    assert given["ranking"] >= 3


async def test_every_move_is_an_event_and_the_counters_stand_it(database: Database) -> None:
    await held(database, DegradationStep.DEPTH)
    async with database.transaction() as connection:
        await degradation.release(connection, by="bob", reason="done")
        await counters.fold_events(connection)
    moves = "kind || ' ' || (detail ->> 'move') || ' ' || (detail ->> 'after')"
    query = f"SELECT array_agg({moves} ORDER BY seq) FROM every_event"
    assert await value(database, query) == ["degradation.moved held 2", "degradation.moved released 2"]
