"""Workers that can run some agent types alone: whom they help, and whom they keep waiting."""

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.scaling.service import snapshot
from app.workers.rules.hosts import Host
from app.workers.service import workers
from app.workers.service.roster import Pool
from tests.support.factories import leased, ready_worker, submitted
from tests.support.pools import arrive, bounds, crew, decided, drain, keep_up, living
from tests.support.sql import execute, fetch

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


async def _emptied(database: Database, minutes: int = 0) -> None:
    """A pool whose only worker, which ranks, has left so many minutes ago."""
    await bounds(database, 0, 100)
    await keep_up(database, 1)
    ours = await arrive(database, capabilities=RANKING)
    await drain(database, ours)
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, ours[0], "drained")
    await execute(database, "UPDATE workers SET ended_at = ended_at - make_interval(mins => $1)", minutes)
    await execute(database, "UPDATE hosts SET size = 0")
    await keep_up(database, 0)


@pytest.mark.parametrize("has_other", [True, False])
async def test_an_empty_pool_does_not_grow_for_what_its_last_workers_could_not_run(
    database: Database, has_other: bool
) -> None:
    """It filled up, the newcomers could run nothing of it, idled and left, and it filled up again."""
    await _emptied(database)
    if has_other:
        other = await ready_worker(database, "lab", capabilities=[AgentType.PROXIMITY])
        await submitted(database, 1, agent_type=AgentType.PROXIMITY)
        await leased(database, other, agent_type=AgentType.PROXIMITY)
    await submitted(database, 50, agent_type=AgentType.PROXIMITY)
    for _ in range(3):
        decision = await decided(database)
        assert await living(database) == has_other, decision["reasons"]
    assert any("50 tasks of proximity do not count" in reason for reason in decision["reasons"])
    await submitted(database, 50, agent_type=AgentType.RANKING)
    await decided(database)
    assert await living(database) > has_other


async def test_an_empty_pool_is_tried_again_after_a_while(database: Database) -> None:
    """Its next workers may have other handlers than the last, which only they can tell."""
    await _emptied(database, minutes=11)
    await submitted(database, 50, agent_type=AgentType.PROXIMITY)
    assert (await decided(database))["target_workers"] == 1


async def test_a_recommendation_falls_although_a_task_waits_that_no_worker_can_run(database: Database) -> None:
    """Without hosts of ours one task kept all the workers that others had started, for as long as it waited."""
    await bounds(database, 2, 100)
    for number in range(6):
        await ready_worker(database, f"pod-{number}", capabilities=RANKING)
    await submitted(database, 1, agent_type=AgentType.GENERATION)
    decisions = [await decided(database) for _ in range(12)]
    assert decisions[-1]["target_workers"] == 2, decisions[-1]["reasons"]
    assert "1 task of generation does not count: no worker can run it" in decisions[-1]["reasons"]


async def test_a_host_without_workers_is_a_help_by_what_its_last_ones_could_run(database: Database) -> None:
    """Tasks that no worker of the other host could run waited, though this one had started some that could."""
    await bounds(database, 0, 100)
    await keep_up(database, 1, "generating")
    (ours,) = await arrive(database, capabilities=[AgentType.GENERATION])
    await drain(database, [ours])
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, ours, "drained")
    await execute(database, "UPDATE hosts SET size = 0")
    await keep_up(database, 0, "generating")
    await keep_up(database, 1, "ranking")
    (ranking,) = await arrive(database, capabilities=RANKING)
    await submitted(database, 1, agent_type=AgentType.RANKING)
    await leased(database, ranking, agent_type=AgentType.RANKING)
    await submitted(database, 50, agent_type=AgentType.GENERATION)
    await decided(database)
    hosts = await fetch(database, "SELECT DISTINCT host FROM workers WHERE state = 'starting'")
    assert [row["host"] for row in hosts] == ["generating"]


def _host(name: str) -> Host:
    return Host(provisioner="local", host=name, size=0, usual_size=0, memory_gb=8, memory_used_gb=1, cpu_cores=4)


@pytest.mark.parametrize(
    ("former", "agents"),
    [
        ({}, set(AgentType)),
        ({"a": "ranking"}, set(AgentType)),
        ({"a": "ranking", "b": "evolution"}, {AgentType.RANKING, AgentType.EVOLUTION}),
    ],
)
def test_new_workers_of_an_empty_pool_run_what_the_last_ones_of_each_host_could(
    former: dict[str, str], agents: set[AgentType]
) -> None:
    """A host of which nothing is known may run anything."""
    keys: dict[tuple[str | None, str | None], str] = {("local", host): names for host, names in former.items()}
    pool = Pool(workers=[], hosts=[_host("a"), _host("b")], by_host={}, former=keys)
    assert snapshot.agents_of_new_workers(pool) == agents
