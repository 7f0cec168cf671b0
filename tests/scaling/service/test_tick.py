"""The pool thinks: each decision of the live loop, from counters and heartbeats to rows of workers."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from app.db.database import Database
from app.goals.service import goals
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.scaling.rules import estimates
from app.scaling.rules import record as records
from app.scaling.service import tick
from app.scaling.store import decisions
from tests.support.factories import goal_request, leased, ready_worker, submitted
from tests.support.pools import arrive, beats, bounds, crew, decided, keep_up, passed
from tests.support.sql import execute, fetch, value


async def _states(database: Database) -> dict[str, int]:
    rows = await fetch(database, "SELECT state, count(*) AS n FROM workers GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


async def test_example_1_to_the_number(database: Database) -> None:
    """10 workers, 500 generation tasks, CPU 85 %: 20 workers, the new ones for generation."""
    await bounds(database, 2, 100)
    ten = await crew(database, 10, cpu_percent=85.0)
    await decided(database)
    await submitted(database, 500, agent_type=AgentType.GENERATION)
    decision = await decided(database)
    assert (decision["current_workers"], decision["target_workers"]) == (10, 20)
    assert (decision["decision_type"], decision["start"]) == ("scale_up", 10)
    new = await fetch(database, "SELECT id, assigned_agent, slot FROM workers WHERE state = 'starting' ORDER BY slot")
    assert [(row["slot"], row["assigned_agent"]) for row in new] == [(slot, "generation") for slot in range(11, 21)]
    assert {str(row["id"]) for row in new} == set(decision["new_workers"])
    assert not {str(worker_id) for worker_id in ten} & set(decision["new_workers"])


async def test_a_lower_maximum_lets_those_go_that_have_not_started(database: Database) -> None:
    await bounds(database, 2, 100)
    ready = await crew(database, 2)
    # Whatever their slots: those of lost workers are filled first.
    await execute(database, "UPDATE workers SET slot = slot + 90, name = host || '-' || slot + 90")
    await bounds(database, 10, 100)
    await decided(database)
    assert await _states(database) == {"ready": 2, "starting": 8}
    await bounds(database, 2, 4)
    decision = await decided(database)
    assert (decision["target_workers"], decision["remove_idle"], decision["drain_busy"]) == (4, 0, 0)
    leaving = await fetch(database, "SELECT id, state FROM workers WHERE directive = 'drain'")
    assert [row["state"] for row in leaving] == ["starting"] * 6
    assert {row["id"] for row in leaving}.isdisjoint(ready)
    assert await value(database, "SELECT size FROM hosts") == 4


async def test_a_growing_pool_decides_again_soon_and_counts_who_is_starting(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    await submitted(database, 400)
    targets = [(await decided(database, seconds=2.0))["target_workers"] for _ in range(5)]
    assert targets == [4, 8, 16, 32, 64]
    assert await _states(database) == {"ready": 2, "starting": 62}


async def test_a_pool_without_a_decision_yet_is_filled_to_its_minimum(database: Database) -> None:
    await bounds(database, 4, 10)
    await keep_up(database, 1)
    decision = await decided(database)
    assert (decision["current_workers"], decision["target_workers"]) == (1, 4)
    assert await _states(database) == {"starting": 4}


async def test_nothing_is_decided_before_it_is_due(database: Database) -> None:
    await bounds(database, 2, 10)
    await decided(database)
    async with database.transaction() as connection:
        assert await tick.tick(connection, database, Mode.PRODUCTION) == {}
    await passed(database, 3.0)
    async with database.transaction() as connection:
        assert await tick.tick(connection, database, Mode.PRODUCTION) == {}


async def test_decisions_go_on_after_the_clock_was_set_back(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 100)
    await passed(database, -3600.0)
    assert await value(database, f"SELECT {tick.IS_DUE}")
    decision = await decided(database, seconds=0.0)
    assert (decision["decision_type"], decision["moved_workers"]) == ("scale_up", 3)
    async with database.transaction() as connection:
        assert await tick.tick(connection, database, Mode.PRODUCTION) == {}


async def test_only_a_decision_that_changes_something_waits_for_the_disk(database: Database) -> None:
    async def durability(seconds: float) -> tuple[str, str]:
        await passed(database, seconds)
        async with database.transaction() as connection:
            result = await tick.tick(connection, database, Mode.PRODUCTION)
            return result["type"], (await connection.execute(text("SHOW synchronous_commit"))).scalar_one()

    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    assert await durability(0.0) == ("rebalance", "on")
    assert await durability(5.0) == ("maintain", "off")
    await submitted(database, 100)
    assert await durability(5.0) == ("scale_up", "on")
    async with database.transaction() as connection:
        assert (await connection.execute(text("SHOW synchronous_commit"))).scalar_one() == "on"


async def test_a_burst_is_answered_before_the_tick(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    await decided(database)
    await submitted(database, 100)
    assert (await decided(database, seconds=2.0))["decision_type"] == "scale_up"


async def _is_decided(database: Database, seconds: float) -> bool:
    await passed(database, seconds)
    async with database.transaction() as connection:
        return bool(await tick.tick(connection, database, Mode.PRODUCTION))


async def test_a_backlog_that_stays_is_decided_on_at_the_tick_and_what_joins_it_at_once(database: Database) -> None:
    """A pool at its maximum decided twice a second for as long as anything waited."""
    await bounds(database, 2, 2)
    await crew(database, 2, cpu_percent=90.0)
    await submitted(database, 100)
    await decided(database)
    assert [await _is_decided(database, seconds) for seconds in (0.5, 0.5, 0.5, 3.5)] == [False, False, False, True]
    await submitted(database)
    assert [await _is_decided(database, 0.5) for _ in range(2)] == [True, False]


async def test_few_long_tasks_that_take_the_place_of_many_short_ones_are_a_burst(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "task_seconds", lambda _known, agent: 600.0 if agent is AgentType.EVOLUTION else 1.0)
    await bounds(database, 2, 2)
    workers = await crew(database, 2, cpu_percent=90.0)
    await submitted(database, 100)
    await decided(database)
    for worker in workers:
        await leased(database, worker)
    assert not await _is_decided(database, 0.5)
    await submitted(database, agent_type=AgentType.EVOLUTION)
    assert await _is_decided(database, 0.5)


async def test_a_burst_that_meets_idle_workers_is_decided_on_again_soon(database: Database) -> None:
    """They hold tasks of it a moment later, and then more workers do help."""
    await bounds(database, 2, 100)
    worker, _ = await crew(database, 2, cpu_percent=10.0)
    await submitted(database, 100)
    assert (await decided(database))["target_workers"] == 2
    await leased(database, worker)
    assert await _is_decided(database, 0.5)


async def test_a_changed_configuration_takes_effect_at_once(database: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 2)
    await decided(database)
    await bounds(database, 6, 100)
    assert (await decided(database, seconds=0.0))["target_workers"] == 6


async def test_the_pool_shrinks_after_it_has_idled_and_only_by_those_who_idle(database: Database) -> None:
    await bounds(database, 2, 100)
    workers = await crew(database, 6)
    await submitted(database)
    await leased(database, workers[5])
    assert (await decided(database))["decision_type"] in ("maintain", "rebalance"), "nobody has idled for long"
    decision = await decided(database, seconds=200.0)
    assert (decision["decision_type"], decision["target_workers"]) == ("scale_down", 2)
    draining = await fetch(database, "SELECT slot FROM workers WHERE state = 'draining' ORDER BY slot")
    assert [row["slot"] for row in draining] == [2, 3, 4, 5]
    assert await value(database, "SELECT size FROM hosts") == 2


async def test_those_who_drain_are_not_replaced(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 6)
    await decided(database)
    await decided(database, seconds=200.0)
    assert (await keep_up(database))["started"] == 0
    assert (await decided(database))["start"] == 0
    assert await _states(database) == {"ready": 2, "draining": 4}


async def test_no_worker_goes_while_a_task_waits(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 6)
    await decided(database)
    await submitted(database)
    assert (await decided(database, seconds=400.0))["target_workers"] == 6


async def test_the_size_never_passes_the_maximum_while_some_drain(database: Database) -> None:
    await bounds(database, 2, 8)
    await crew(database, 8)
    await decided(database)
    await decided(database, seconds=200.0)
    assert await _states(database) == {"ready": 2, "draining": 6}
    await submitted(database, 500)
    await beats(database, [row["id"] for row in await fetch(database, "SELECT id FROM workers")], cpu_percent=90.0)
    decision = await decided(database)
    assert decision["target_workers"] == 2
    assert any("draining" in clamp["limit"] for clamp in decision["clamps"])
    assert await value(database, "SELECT count(*) FROM workers WHERE state IN ('starting','ready','draining')") == 8


async def test_workers_of_others_count_and_are_left_alone(database: Database) -> None:
    await bounds(database, 2, 100)
    others = [await ready_worker(database) for _ in range(4)]
    await crew(database, 2)
    await decided(database)
    decision = await decided(database, seconds=200.0)
    assert (decision["current_workers"], decision["target_workers"]) == (6, 4)
    assert await value(database, "SELECT count(*) FROM workers WHERE id = ANY ($1) AND state = 'ready'", others) == 4
    assert await value(database, "SELECT count(*) FROM workers WHERE state = 'draining'") == 2


async def test_where_nobody_provisions_the_target_is_a_recommendation(database: Database) -> None:
    await bounds(database, 2, 100)
    worker = await ready_worker(database)
    await beats(database, [worker], cpu_percent=90.0)
    await submitted(database, 100)
    decision = await decided(database)
    assert (decision["target_workers"], decision["new_workers"]) == (2, [])
    assert "recommendation" in " ".join(decision["reasons"])
    assert await _states(database) == {"ready": 1}


async def test_a_recommendation_is_not_repeated_in_a_hurry_and_its_repetitions_are_kept_for_a_day(
    database: Database,
) -> None:
    """Nobody of ours starts a worker: twice a second the same was decided, and all of it kept for a month."""
    await bounds(database, 10, 100)
    await ready_worker(database)
    await submitted(database, 100)
    targets = [(await decided(database))["target_workers"] for _ in range(3)]
    assert not await _is_decided(database, 0.5)
    await beats(database, [await ready_worker(database) for _ in range(9)], cpu_percent=90.0)
    targets += [(await decided(database))["target_workers"] for _ in range(3)]
    assert targets == [10, 10, 10, 20, 20, 20]
    await execute(database, "UPDATE decisions SET decided_at = decided_at - interval '2 d'")
    async with database.transaction() as connection:
        assert await tick.prune(connection, 30) == {"decisions": 4}
    rows = await fetch(database, "SELECT target_workers FROM decisions ORDER BY id")
    assert [row["target_workers"] for row in rows] == [10, 20]


async def test_paused_tasks_and_those_that_nobody_can_run_do_not_count(database: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 2)
    await arrive(database, cpu_percent=90.0, capabilities=["generation"])
    await decided(database)
    await submitted(database, 300, agent_type=AgentType.RANKING)
    await submitted(database, 300, agent_type=AgentType.GENERATION)
    await execute(
        database, "INSERT INTO pauses (agent_type, reason, paused_by) VALUES ('generation', $1, 'me')", "so\n" * 700
    )
    decision = await decided(database)
    assert decision["target_workers"] == 2
    told = " ".join(decision["reasons"])
    assert "300 tasks of ranking do not count: no worker can run it" in told
    # A reason may have 2,000 characters, and each decision would keep them.
    assert f"300 tasks of generation do not count: it is paused ({'so ' * 100})" in told


async def test_tasks_of_a_goal_that_is_on_hold_do_not_count(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    async with database.transaction() as connection:
        await goals.create(connection, goal_request(weight=1.0))
        await goals.pause(connection, "goal", "moving house", "me")
    await submitted(database, 300, goal_id="goal")
    decision = await decided(database)
    assert decision["target_workers"] == 2
    assert "300 tasks of generation do not count: their research goals are on hold" in decision["reasons"]
    await submitted(database, 20, goal_id="goal", agent_type=AgentType.RANKING)
    told = "320 tasks of generation (300), ranking (20) do not count: their research goals are on hold"
    assert told in (await decided(database))["reasons"]


async def test_a_cpu_that_nobody_measures_is_not_a_cpu_that_idles(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2)
    await execute(database, "UPDATE workers SET cpu_percent = NULL")
    await submitted(database, 500)
    decision = await decided(database)
    assert decision["target_workers"] == 2
    assert "the CPU is not measured" in " ".join(decision["reasons"])


async def test_memory_of_the_host_is_never_passed(database: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 2, memory_gb=10.0, memory_used_gb=4.0)
    await arrive(database, cpu_percent=90.0)
    await submitted(database, 500)
    await decided(database)
    for _ in range(4):
        decision = await decided(database)
    assert decision["target_workers"] == 5
    assert "memory of the host suffice for 5 workers" in " ".join(decision["reasons"])


async def test_development_keeps_the_size_of_its_setting(database: Database) -> None:
    await bounds(database, 2, 5, Mode.DEVELOPMENT)
    await keep_up(database, 3)
    await arrive(database, cpu_percent=90.0)
    await submitted(database, 500)
    assert (await decided(database))["target_workers"] == 3
    await keep_up(database, 9)
    assert (await decided(database))["target_workers"] == 5
    await keep_up(database, 1)
    assert (await decided(database))["target_workers"] == 2


async def test_who_works_on_what_follows_the_backlog_and_moves_at_intervals(database: Database) -> None:
    await bounds(database, 2, 100)
    workers = await crew(database, 4)
    await decided(database)
    await submitted(database, 3, agent_type=AgentType.RANKING)
    assert (await decided(database, seconds=5.0))["moved_workers"] == 0
    assert (await decided(database, seconds=30.0))["decision_type"] == "rebalance"
    rows = await fetch(database, "SELECT assigned_agent, assigned_memory_gb, assigned_compute_seconds FROM workers")
    assert {row["assigned_agent"] for row in rows} == {"ranking"}
    assert {(row["assigned_memory_gb"], row["assigned_compute_seconds"]) for row in rows} == {(1.0, 600.0)}
    assert len(rows) == len(workers)


@pytest.mark.parametrize("tasks", [0, 50])
async def test_every_decision_replays_to_the_byte(database: Database, tasks: int) -> None:
    await bounds(database, 2, 100)
    await crew(database, 5, cpu_percent=90.0)
    await ready_worker(database)
    await decided(database)
    if tasks:
        await submitted(database, tasks)
        await submitted(database, tasks, agent_type=AgentType.EVOLUTION)
    for seconds in (5.0, 30.0, 200.0):
        await decided(database, seconds=seconds)
    async with database.transaction() as connection:
        stored = await decisions.onward(connection, above=0, limit=100)
    assert len(stored) == 4
    for one in stored:
        assert records.replay(one.roster, one.inputs) == one.output
    assert len({one.roster_id for one in stored}) < 4


@pytest.mark.parametrize(
    ("inputs", "output", "pruned"),
    [
        ({"provisions": False}, {}, 1),
        ({"provisions": True}, {}, 0),
        ({"provisions": False}, {"classes": {"gpu": {"start": 1}}}, 0),
        ({"provisions": False}, {"agent_weight_adjustments": {"ranking": {}}}, 0),
        ({"provisions": False}, {"moved_workers": 2}, 0),
    ],
)
async def test_only_a_repetition_that_has_changed_nothing_is_kept_for_a_day(
    database: Database, inputs: dict[str, Any], output: dict[str, Any], pruned: int
) -> None:
    """The same decision may have removed others: workers that came back since."""
    plain = {"new_workers": [], "moved_workers": 0, "agent_weight_adjustments": {}}
    await execute(
        database,
        "INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output)"
        " SELECT now() - interval '2 d', 'scale_down', 10, 8, $1::json, $2::json FROM generate_series(1, 2)",
        json.dumps(inputs),
        json.dumps({**plain, **output}),
    )
    async with database.transaction() as connection:
        assert await tick.prune(connection, 30) == {"decisions": pruned}


async def test_old_decisions_are_forgotten_and_rosters_that_nobody_needs(database: Database) -> None:
    """What changed nothing is kept for a day, what changed something for as many days as are given."""
    await bounds(database, 3, 100)
    await decided(database)
    await crew(database, 3)
    await decided(database)
    await decided(database)
    kinds = await fetch(database, "SELECT decision_type, roster_id FROM decisions ORDER BY id")
    assert [row["decision_type"] for row in kinds] == ["scale_up", "rebalance", "maintain"]
    await execute(database, "UPDATE decisions SET decided_at = decided_at - interval '2 d'")
    async with database.transaction() as connection:
        assert await tick.prune(connection, 30) == {"decisions": 1}
        assert await tick.prune(connection, 1) == {"decisions": 2}
    assert await value(database, "SELECT count(*) FROM rosters") == 0
    await decided(database)
