"""Workers that can run some agent types alone: whom they help, and whom they keep waiting."""

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from tests.support.factories import leased, ready_worker, submitted
from tests.support.pools import arrive, bounds, crew, decided, keep_up
from tests.support.sql import fetch

RANKING = [AgentType.RANKING]


async def test_idle_workers_that_cannot_run_what_waits_are_no_reason_against_growth(database: Database) -> None:
    """The five that idle rank, and generation had five workers for as long as it took."""
    await bounds(database, 2, 100)
    ours = await crew(database, 5)
    for number in range(5):
        await ready_worker(database, f"lab-{number}", capabilities=RANKING)
    await submitted(database, 5, agent_type=AgentType.GENERATION)
    for worker_id in ours:
        await leased(database, worker_id)
    await decided(database)
    await submitted(database, 100, agent_type=AgentType.GENERATION)
    decision = await decided(database)
    assert decision["target_workers"] > 10, decision["reasons"]


async def test_idle_workers_leave_although_tasks_wait_that_no_worker_can_run(database: Database) -> None:
    """A task that nobody could run kept the whole pool, with the reason that nothing waits."""
    await bounds(database, 2, 100)
    await keep_up(database, 6)
    await arrive(database, capabilities=RANKING)
    await submitted(database, 1, agent_type=AgentType.GENERATION)
    decisions = [await decided(database) for _ in range(12)]
    assert decisions[-1]["target_workers"] == 2, decisions[-1]["reasons"]
    assert "1 task of generation does not count: no worker can run it" in decisions[-1]["reasons"]


async def test_tasks_that_no_new_worker_could_run_make_no_pool_grow(database: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 4)
    ours = await arrive(database, capabilities=RANKING)
    other = await ready_worker(database, "lab", capabilities=[AgentType.PROXIMITY])
    await submitted(database, 4, agent_type=AgentType.RANKING)
    for worker_id in ours:
        await leased(database, worker_id, agent_type=AgentType.RANKING)
    await submitted(database, 500, agent_type=AgentType.PROXIMITY)
    await leased(database, other, agent_type=AgentType.PROXIMITY)
    decision = await decided(database)
    assert decision["target_workers"] == 5, decision["reasons"]


async def test_a_pool_does_not_grow_by_workers_that_can_run_nothing_of_what_waits(database: Database) -> None:
    """Others start them by the target: each that came, and idled, called for one more, up to the maximum."""
    await bounds(database, 2, 100)
    for number in range(5):
        await ready_worker(database, f"pod-{number}", capabilities=RANKING)
    await submitted(database, 1, agent_type=AgentType.GENERATION)
    decision = await decided(database)
    assert decision["target_workers"] == 5, decision["reasons"]


@pytest.mark.parametrize("has_room", [True, False])
async def test_hosts_with_other_handlers_help_as_long_as_the_right_one_has_room(
    database: Database, has_room: bool
) -> None:
    """Workers of the other came instead, by its larger room, and each that idled called for one more, without end."""
    await bounds(database, 2, 100)
    await keep_up(database, 4, "generating", cpu_cores=16.0 if has_room else 0.125)
    generating = await arrive(database, capabilities=[AgentType.GENERATION])
    await keep_up(database, 4, "ranking")
    await arrive(database, capabilities=RANKING)
    await submitted(database, 4, agent_type=AgentType.GENERATION)
    for worker_id in generating:
        await leased(database, worker_id)
    await submitted(database, 100, agent_type=AgentType.GENERATION)
    decision = await decided(database)
    assert (decision["target_workers"] > 8) is has_room, decision["reasons"]
    hosts = await fetch(database, "SELECT DISTINCT host FROM workers WHERE state = 'starting'")
    assert [row["host"] for row in hosts] == ["generating"] * has_room


async def test_the_minimum_is_refilled_where_there_is_room(database: Database) -> None:
    """Also by workers that can run nothing of what waits: no host gets more than it has room for."""
    await bounds(database, 2, 100)
    await keep_up(database, 4, "generating", cpu_cores=0.125)
    await arrive(database, capabilities=[AgentType.GENERATION])
    await keep_up(database, 4, "ranking")
    await arrive(database, capabilities=RANKING)
    await submitted(database, 1, agent_type=AgentType.GENERATION)
    await bounds(database, 12, 100)
    assert (await decided(database))["target_workers"] == 12
    hosts = await fetch(database, "SELECT host FROM workers WHERE state = 'starting'")
    assert [row["host"] for row in hosts] == ["ranking"] * 4
