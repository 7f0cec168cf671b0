"""Budget enforcement and holds: tasks of a held goal are never leased, are set aside, and come back in order."""

import asyncio
import sys
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest

from app.db import hot_path
from app.db.database import Database
from app.goals.rules.goals import Constraints
from app.goals.service import budget_enforcement, goals
from app.goals.store import goals as goal_store
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.queue.errors import GoalStopped
from app.queue.rules.holds import Hold
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import dead_letters, leases
from app.queue.service.leases import LeaseService
from app.queue.store import claims, holds
from app.queue.store.claims import ClaimRequest, Lease
from app.queue.store.listing import Selection
from app.scaling.rules.estimates import Estimates, ServiceTime
from app.scaling.service import state
from app.scaling.service.state import ScalingState
from tests.goals.service.budgeted_goals import (
    claim_lease,
    create_goal,
    enforce_budgets,
    pause,
    phases,
    ready_tasks,
    recapture_tasks,
    resume,
    stop,
)
from tests.support.factories import (
    GENERATION,
    completion,
    everything,
    fence,
    leased,
    ready_worker,
    submitted,
)
from tests.support.plans import PlanLog, explained_database, nodes_of, plans_of
from tests.support.sql import execute, fetch, value


async def _measure_tasks(database: Database, seconds: float) -> None:
    """Record that tasks of other goals took so long."""
    at = await value(database, "SELECT now()")
    service = {AgentType.GENERATION: ServiceTime(mean_seconds=seconds, tasks=50)}
    known = ScalingState(estimates=Estimates(at=at, service_times=service), again_after_seconds=5.0, weights={})
    async with database.transaction() as connection:
        await state.write(connection, known)


async def create_quick_goal(database: Database, **constraints: float) -> None:
    """Create a goal whose tasks are expected to be short, so that nothing bounds the first ones."""
    await _measure_tasks(database, 1e-6)
    await create_goal(database, "goal", **constraints)


async def _run_for(database: Database, desk: LeaseService, seconds: float, count: int) -> None:
    """Run `count` tasks at once, each on a worker of its own and for so many seconds."""
    workers = [await ready_worker(database) for _ in range(count)]
    held = [(worker, await leased(database, worker)) for worker in workers]
    await execute(database, f"UPDATE tasks SET leased_at = now() - interval '{seconds} s' WHERE worker_id IS NOT NULL")
    await asyncio.gather(*(desk.complete(completion(worker, lease)) for worker, lease in held))


async def test_two_completions_at_once_use_up_a_budget(database: Database, desk: LeaseService) -> None:
    """15 s each of 30: each alone leaves room, both together do not."""
    await create_quick_goal(database, compute_budget_seconds=30)
    await submitted(database, 5)
    await _run_for(database, desk, 15, 2)
    assert await enforce_budgets(database) == {"stopped": ["goal"]}
    assert await claim_lease(database) is None
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {}


async def test_what_runs_is_committed_and_holds_the_rest_back(database: Database, desk: LeaseService) -> None:
    """One of 15 s has ended, and one runs; of 40 s that leaves no room for a third beside it."""
    await create_quick_goal(database, compute_budget_seconds=40)
    await submitted(database, 5)
    await _run_for(database, desk, 15, 1)
    assert await enforce_budgets(database) == {}
    assert await enforce_budgets(database) == {"let_through": 1}
    await leased(database, await ready_worker(database))
    assert await enforce_budgets(database) == {"held": ["goal"]}
    assert await claim_lease(database) is None
    assert await phases(database) == {"executing": 1, "held": 3}
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(compute_budget_seconds=40_000), "me")
    assert await enforce_budgets(database) == {}
    assert await phases(database) == {"executing": 1, "pending": 3}


async def _crowd_leases(database: Database, crowd: list[WorkerId]) -> list[tuple[WorkerId, Lease]]:
    """All of these workers ask at once; return those that get a lease."""
    asks = [ClaimRequest(worker_id=one, request_id=uuid4(), lane=GENERATION, acknowledge=True) for one in crowd]
    claimed = await hot_path.run(database, lambda c: claims.claim(c, asks, LeasePolicy()))
    return [(worker, claim.lease) for worker, claim in zip(crowd, claimed, strict=True) if claim.lease is not None]


async def test_a_crowd_cannot_overrun_a_budget(database: Database, desk: LeaseService) -> None:
    """20 workers wait, and the rest of the budget is enough for twelve of the tasks: a quarter of these are leased."""
    await create_quick_goal(database, compute_budget_seconds=240)
    ids = await submitted(database, 30)
    await _run_for(database, desk, 15, 4)
    crowd = [await ready_worker(database) for _ in range(20)]
    await enforce_budgets(database)
    assert await phases(database) == {"held": 26}
    # At the most each takes 28.6 s, by the four there are.
    assert await enforce_budgets(database) == {"let_through": 1}
    assert await enforce_budgets(database) == {}, "the same room is not given twice"
    assert await ready_tasks(database) == ids[4:5]
    leases_ = await _crowd_leases(database, crowd)
    assert len(leases_) == 1
    assert await enforce_budgets(database) == {"held": ["goal"]}
    await execute(database, "UPDATE tasks SET leased_at = now() - interval '5 s' WHERE worker_id IS NOT NULL")
    await asyncio.gather(*(desk.complete(completion(worker, lease)) for worker, lease in leases_))
    assert await enforce_budgets(database) == {}, "it took less than was expected, so it is metered again"
    assert await enforce_budgets(database) == {"let_through": 1}
    assert await value(database, "SELECT sum(seconds)::float8 FROM goal_compute") < 240


async def test_a_crowd_cannot_overrun_the_budget_of_a_new_goal(database: Database) -> None:
    """20 workers wait, none of which has run a task of this goal; what is expected may be wrong by ten times."""
    await _measure_tasks(database, 15.0)
    crowd = [await ready_worker(database) for _ in range(20)]
    await create_goal(database, compute_budget_seconds=3000)
    ids = await submitted(database, 30)
    assert await phases(database) == {"held": 30}, "not even before somebody has looked"
    await budget_enforcement.process_holds(database)
    assert await enforce_budgets(database) == {"let_through": 5}
    assert await enforce_budgets(database) == {}, "the same room is not given twice"
    assert await ready_tasks(database) == ids[:5]
    assert len(await _crowd_leases(database, crowd)) == 5
    assert await enforce_budgets(database) == {"held": ["goal"]}


async def test_a_new_goal_is_tried_with_one_task_where_nothing_was_ever_measured(database: Database) -> None:
    await create_goal(database, compute_budget_seconds=1e6)
    await submitted(database, 3)
    await budget_enforcement.process_holds(database)
    crowd = [await ready_worker(database) for _ in range(3)]
    assert await enforce_budgets(database) == {"let_through": 1}
    assert len(await _crowd_leases(database, crowd)) == 1


async def test_the_youngest_are_taken_back_where_not_all_can_end(database: Database, desk: LeaseService) -> None:
    """Of 100 s 50 are spent and 58 taken by what runs; two more seconds are not enough for all three."""
    await create_quick_goal(database, compute_budget_seconds=100)
    await submitted(database, 9)
    await _run_for(database, desk, 10, 5)
    workers = [await ready_worker(database) for _ in range(3)]
    running = [await leased(database, worker) for worker in workers]
    for lease, seconds in zip(running, (50, 4, 4), strict=True):
        await execute(
            database, f"UPDATE tasks SET leased_at = now() - interval '{seconds} s' WHERE id = $1", lease.task_id
        )
    assert await enforce_budgets(database) == {"held": ["goal"], "taken_back": 2}
    await recapture_tasks(database)
    assert await phases(database) == {"executing": 1, "held": 3}
    for lease in running[1:]:
        task = await everything(database, lease.task_id)
        assert (task["failures"], task["rescues"]) == (0, 0), "it costs them nothing"
    assert await enforce_budgets(database) == {}
    await desk.complete(completion(workers[0], running[0]))
    assert await enforce_budgets(database) == {"stopped": ["goal"]}


async def _run_tasks(database: Database, attempts: int, seconds: float) -> None:
    """Run tasks of a goal that was not created yet."""
    query = "INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) VALUES ('goal', 'generation', $1, $2)"
    await execute(database, query, attempts, seconds)


async def test_a_new_goal_whose_tasks_have_run_before_it_was_created(database: Database) -> None:
    """What they took counts; as all workers are busy none of the five that are let through begins."""
    for _ in range(20):
        await ready_worker(database)
    await _run_tasks(database, 100, 1500)
    await create_goal(database, compute_budget_seconds=1850)
    ids = await submitted(database, 30)
    await budget_enforcement.process_holds(database)
    assert await enforce_budgets(database) == {"let_through": 5}
    assert await enforce_budgets(database) == {}, "the same room is not given twice"
    assert await ready_tasks(database) == ids[:5]


async def test_a_new_goal_whose_budget_was_used_up_before_it_was_created(database: Database) -> None:
    await ready_worker(database)
    await _run_tasks(database, 10, 150)
    await create_goal(database, compute_budget_seconds=100)
    await submitted(database, 3)
    assert await phases(database) == {"held": 3}, "not even before somebody has looked"
    assert await enforce_budgets(database) == {"stopped": ["goal"]}


async def test_a_new_goal_of_which_too_much_is_expected_is_tried_with_one_task(
    database: Database, desk: LeaseService
) -> None:
    await _measure_tasks(database, 1000.0)
    worker = await ready_worker(database)
    await create_goal(database, compute_budget_seconds=80)
    await submitted(database, 30)
    await budget_enforcement.process_holds(database)
    assert await enforce_budgets(database) == {"let_through": 1}
    lease = await leased(database, worker)
    assert await enforce_budgets(database) == {"held": ["goal"]}
    await desk.complete(completion(worker, lease))
    assert await enforce_budgets(database) == {}, "it was short, so there is plenty of room"
    assert (await enforce_budgets(database))["let_through"] > 1


async def test_plenty_of_room_ends_the_metering(database: Database, desk: LeaseService) -> None:
    await create_quick_goal(database, compute_budget_seconds=80)
    await submitted(database, 5)
    await _run_for(database, desk, 15, 3)
    await enforce_budgets(database)
    assert await phases(database) == {"held": 2}
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(compute_budget_seconds=80_000), "me")
    assert await enforce_budgets(database) == {}
    assert await phases(database) == {"pending": 2}
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def test_a_pause_outlives_the_extension_of_a_budget(database: Database) -> None:
    await create_goal(database, compute_budget_seconds=40)
    await submitted(database)
    await pause(database)
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(compute_budget_seconds=400), "me")
    await budget_enforcement.process_holds(database)
    assert await phases(database) == {"held": 1}


async def test_failed_and_cancelled_attempts_cost_what_they_took(database: Database, desk: LeaseService) -> None:
    await create_quick_goal(database, compute_budget_seconds=1000)
    await submitted(database, 2)
    workers = [await ready_worker(database) for _ in range(2)]
    held = [await leased(database, worker) for worker in workers]
    await execute(database, "UPDATE tasks SET leased_at = now() - interval '10 s'")
    async with database.transaction() as connection:
        await leases.fail(
            connection, fence(workers[0], held[0]), leases.Failure(code="c", message="m", retryable=False)
        )
    await stop(database)
    await budget_enforcement.process_holds(database)
    await enforce_budgets(database)
    row = (await fetch(database, "SELECT attempts, seconds FROM goal_compute"))[0]
    assert row["attempts"] == 2
    assert row["seconds"] == pytest.approx(20, abs=3)


async def test_two_replicas_fold_and_enforce_once(database: Database, replica: Database, desk: LeaseService) -> None:
    await create_quick_goal(database, compute_budget_seconds=20)
    await submitted(database, 2)
    await _run_for(database, desk, 15, 2)
    async with database.transaction() as connection:
        await budget_enforcement.fold_compute(connection)
    found = await asyncio.gather(enforce_budgets(database), enforce_budgets(replica), return_exceptions=True)
    stopped = [name for outcome in found if isinstance(outcome, dict) for name in outcome.get("stopped", [])]
    assert stopped == ["goal"]
    assert await value(database, "SELECT sum(seconds)::float8 FROM goal_compute") == pytest.approx(30, abs=3)


async def test_dead_letters_of_a_stopped_goal_stay_where_they_are(database: Database) -> None:
    await create_goal(database)
    letters = {}
    for goal_id in ("goal", "other"):
        (letters[goal_id],) = await submitted(database, goal_id=goal_id)
        worker = await ready_worker(database)
        lease = await leased(database, worker)
        async with database.transaction() as connection:
            failure = leases.Failure(code="c", message="m", retryable=False)
            await leases.fail(connection, fence(worker, lease), failure)
    await stop(database)
    with pytest.raises(GoalStopped):
        async with database.transaction() as connection:
            await dead_letters.requeue(connection, letters["goal"], "again")
    outcome = await dead_letters.requeue_many(database, Selection(), limit=10, reason="again")
    assert (outcome.matching_count, outcome.processed_count) == (1, 1)
    assert await ready_tasks(database) == [letters["other"]]
    assert (await dead_letters.purge(database, Selection(), limit=10, reason="gone")).processed_count == 1


async def _commit_budget(database: Database, desk: LeaseService) -> None:
    """Two of 15 s fit into 40: one is done and one runs, so there is no room for a third."""
    await create_quick_goal(database, compute_budget_seconds=40)
    await submitted(database, 5)
    await _run_for(database, desk, 15, 1)
    for _ in range(2):
        await enforce_budgets(database)
    await leased(database, await ready_worker(database))
    assert await enforce_budgets(database) == {"held": ["goal"]}


async def test_an_extension_of_something_else_opens_no_budget(database: Database, desk: LeaseService) -> None:
    await _commit_budget(database, desk)
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(patience=5), "me")
    await budget_enforcement.process_holds(database)
    assert await claim_lease(database) is None


async def test_an_extension_that_is_not_enough_opens_no_budget(database: Database, desk: LeaseService) -> None:
    await _commit_budget(database, desk)
    async with database.transaction() as connection:
        await goals.extend(connection, "goal", Constraints(compute_budget_seconds=41), "me")
    await budget_enforcement.process_holds(database)
    assert await claim_lease(database) is None


async def test_a_pause_on_the_way_opens_no_budget(database: Database, desk: LeaseService) -> None:
    await _commit_budget(database, desk)
    await pause(database)
    assert await enforce_budgets(database) == {}
    await resume(database)
    assert await claim_lease(database) is None
    assert await enforce_budgets(database) == {"held": ["goal"]}
    assert await claim_lease(database) is None
    assert await phases(database) == {"executing": 1, "held": 3}


async def test_a_resumed_goal_with_room_goes_on_after_a_look(database: Database) -> None:
    await create_goal(database, compute_budget_seconds=400)
    await submitted(database, 3)
    await pause(database)
    await budget_enforcement.process_holds(database)
    await resume(database)
    assert await enforce_budgets(database) == {}
    assert await phases(database) == {"pending": 3}
    assert await value(database, "SELECT count(*) FROM holds") == 0


async def _count_lines(database: Database, number: int) -> int:
    """Lines of Python of goals that a turn runs for so many goals, each with compute of three types of agents."""
    await execute(database, "TRUNCATE goals, goal_compute")
    await execute(
        database,
        """INSERT INTO goals (id, weight, state, objective, created_by, request_hash, started_at,
                              compute_budget_seconds)
           SELECT 'goal-' || n, 1, 'running', '', '', '', now(), 1e9 FROM generate_series(1, $1::int) n""",
        number,
    )
    await execute(
        database,
        """INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds)
           SELECT 'goal-' || n, agent, 10, 10 FROM generate_series(1, $1::int) n,
                  unnest(ARRAY['generation', 'reflection', 'ranking']) agent""",
        number,
    )
    lines, former = 0, sys.gettrace()

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count if "/app/goals/" in frame.f_code.co_filename else None

    async with database.transaction() as connection:
        sys.settrace(count)
        try:
            await budget_enforcement.enforce_budgets(connection)
        finally:
            sys.settrace(former)
    return lines


async def test_the_work_of_a_turn_grows_with_the_number_of_goals_and_no_faster(database: Database) -> None:
    """A walk over the rows of all goals for each of 4000 kept the loop of events waiting for 3.7 s of every second."""
    few, many = await _count_lines(database, 50), await _count_lines(database, 400)
    assert few > 50 * 20
    assert many < 8.5 * few


async def _judged_ids(database: Database) -> set[str]:
    async with database.transaction() as connection:
        return {goal.id for goal in await goal_store.read_limited(connection)}


async def test_goals_far_from_their_limits_are_not_judged(database: Database) -> None:
    """But whatever the rules may act on or tell of is, and a goal that waits for its budget, which may have room."""
    limits = {"time_limit_seconds": 1000, "money_budget": 1000, "token_budget": 1000}
    for name, limit in limits.items():
        await create_goal(database, name, **{name: limit})
    await create_goal(database, "nothing", money_budget=1e-12)
    await create_goal(database, "computing", compute_budget_seconds=1e9)
    await create_goal(database, "held", money_budget=1000)
    async with database.transaction() as connection:
        await holds.close(connection, "held", Hold.BUDGET)
    assert await _judged_ids(database) == {"nothing", "computing", "held"}
    await execute(
        database, "INSERT INTO llm_spending VALUES ('money_budget', 300, 0, 1, 1), ('token_budget', 1, 0, 1, 1)"
    )
    await execute(database, "UPDATE goals SET money_base = 600, money_since = 200 WHERE id = 'money_budget'")
    for used, judged_ids in ((780, set()), (800, set(limits))):
        await execute(database, "UPDATE goals SET money_base = $1 - 100 WHERE id = 'money_budget'", float(used))
        await execute(database, "UPDATE llm_spending SET tokens = $1 WHERE goal_id = 'token_budget'", used)
        seconds = used if used < 800 else 1000
        await execute(database, "UPDATE goals SET started_at = now() - make_interval(secs => $1)", float(seconds))
        assert await _judged_ids(database) - {"nothing", "computing", "held"} == judged_ids


async def _pages_of_a_turn(database: Database, log: PlanLog) -> int:
    for _ in range(2):  # the first asks for the types of values
        log.take()
        async with database.transaction() as connection:
            await budget_enforcement.enforce_budgets(connection)
    return log.take().pages


@pytest.mark.slow
async def test_a_turn_does_not_read_what_goals_have_reported(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last decision of each of 17,000 goals was four fifths of the pages that a turn read."""
    await _count_lines(own_database, 400)
    pages = []
    async with explained_database(own_database, monkeypatch) as (database, log):
        for _ in range(2):
            pages.append(await _pages_of_a_turn(database, log))
            await execute(
                own_database,
                """INSERT INTO goal_iterations (goal_id, number, request_hash, report, inputs, decision)
                   SELECT id, number, '', '{}', '{}', '{}' FROM goals, generate_series(1, 5) number
                   ON CONFLICT DO NOTHING""",
            )
    assert 0 < pages[1] <= 1.05 * pages[0]


@pytest.mark.slow
async def test_a_turn_does_not_read_the_compute_of_goals_that_have_ended(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 250 goals among 20,000 a turn read all of 120,000 rows, every second."""
    await _count_lines(own_database, 100)
    pages = []
    for _ in range(2):
        await execute(own_database, "VACUUM ANALYZE goals, goal_compute")
        async with explained_database(own_database, monkeypatch) as (database, log):
            pages.append(await _pages_of_a_turn(database, log))
        await execute(
            own_database,
            """INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds)
               SELECT 'former-' || n, agent, 10, 10 FROM generate_series(1, 10000) n,
                      unnest(ARRAY['generation', 'reflection', 'ranking']) agent ON CONFLICT DO NOTHING""",
        )
    assert 0 < pages[1] <= 1.5 * pages[0]


@pytest.mark.slow
async def test_a_turn_starts_no_other_processes_of_the_server(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner takes a third of all events for those that no fold has counted yet."""
    await _count_lines(own_database, 10)
    name = await value(own_database, "SELECT current_database()")
    for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_index_scan_size"):
        await execute(own_database, f"ALTER DATABASE {name} SET {setting} = 0")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            await budget_enforcement.enforce_budgets(connection)
        nodes = [node for plan in log.plans for node in nodes_of(plan["Plan"])]
    assert nodes
    assert [node["Workers Launched"] for node in nodes if "Workers Launched" in node] == []


async def test_a_turn_looks_for_the_task_of_each_worker_once(database: Database) -> None:
    """Twice, the second time only to count the workers, with 10,000 of them it was 76,000 pages more every second."""
    await create_goal(database, compute_budget_seconds=1000)
    await submitted(database, goal_id=None)
    await leased(database, await ready_worker(database))

    async def turn() -> None:
        async with database.transaction() as connection:
            await budget_enforcement.enforce_budgets(connection)

    assert sum(" on leases" in plan for plan in await plans_of(database, turn)) == 1
