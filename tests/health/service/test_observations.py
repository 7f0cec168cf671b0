"""Observations for alerts and degradation."""

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.health.rules.checks import worker_starvation
from app.health.rules.snapshot import FOR_ALERTS, Observations
from app.health.rules.utilisation import Measure, host_subject, single_sample
from app.health.service import observations
from app.health.store import utilisation
from app.kernel.agents import AgentType
from app.kernel.resources import Resources
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.degradation import Strain
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS
from tests.support.factories import leased, ready_worker, submitted
from tests.support.plans import plans_of
from tests.support.sql import execute
from tests.support.watching import neglect_task, observe


async def _observed(connection: AsyncConnection) -> Observations:
    return await observations.observe(connection, CapacityPolicy(max_queue_size=10), FOR_ALERTS)


async def test_what_is_not_measured_is_not_zero(database: Database) -> None:
    async with database.transaction() as connection:
        strain = observations.strain(await _observed(connection))
    assert (strain.resources["cpu"], strain.resources["memory"]) == (None, None)
    assert strain.resources["llm_permits"] == 0


async def test_the_fullest_host_counts(database: Database) -> None:
    async with database.transaction() as connection:
        samples = [
            single_sample(host_subject(name), Measure.CPU, percent) for name, percent in (("a", 20.0), ("b", 91.0))
        ]
        await utilisation.add_samples(
            connection, [*samples, single_sample(host_subject("a"), Measure.MEMORY, 40.0)], apart_seconds=5
        )
        observed = await _observed(connection)
    strain = observations.strain(observed)
    # The room in the queue is not among them: less work is taken on where it is full.
    assert set(strain.resources) == {"cpu", "memory", "llm_permits", "database_connections"}
    assert strain.resources["cpu"] == 0.91
    assert strain.resources["memory"] == 0.40
    assert observed.resources is not None
    assert set(observed.resources) == {"queue", "cpu", "memory", "llm_permits"}


async def test_budgets_of_hundreds_of_goals_and_keys_are_watched_where_they_are_nearly_used_up(
    database: Database,
) -> None:
    await execute(
        database,
        "INSERT INTO goals (id, state, token_budget) SELECT 'g' || n, 'running', 100 FROM generate_series(1, 300) n",
    )
    await execute(
        database,
        "INSERT INTO llm_spending (goal_id, cost_usd, tokens, max_cost_usd, max_tokens)"
        " SELECT 'g' || n, 0, CASE WHEN n = 1 THEN 79 WHEN n = 2 THEN 80 ELSE 100 + n END, 0, 0"
        " FROM generate_series(1, 300) n",
    )
    await execute(
        database,
        "INSERT INTO llm_budgets (scope, name, token_budget, tokens, period)"
        " SELECT 'key', goal_id, 100, tokens, 'total' FROM llm_spending",
    )
    async with database.transaction() as connection:
        observed = await _observed(connection)
    assert observed.budgets is not None
    assert observed.budgets.keys() == {f"g{n}" for n in range(2, 301)}
    assert observed.llm_budgets == {f"key {goal}": share for goal, share in observed.budgets.items()}


async def test_degradation_goes_by_what_the_watch_for_alerts_has_just_seen(database: Database) -> None:
    """And looks by itself where that does not watch: its turns may fail, or be the former version's."""
    await observe(database)

    async def latest() -> Strain:
        async with database.transaction() as connection:
            return await observations.latest_strain(connection, CapacityPolicy())

    seen = await latest()
    assert set(seen.resources) == {"cpu", "memory", "llm_permits", "database_connections"}
    await submitted(database, 3)
    await neglect_task(database, minutes=7)
    assert await latest() == seen
    # A newer version may tell more.
    await execute(database, "UPDATE loop_ticks SET result = jsonb_set(result, '{strain,later}', '1')")
    assert await latest() == seen
    for late in (
        "UPDATE loop_ticks SET last_run_at = now() - interval '8 s' WHERE duty = 'watch for alerts'",
        "UPDATE loop_ticks SET last_run_at = now(), result = result #- '{strain,resources}'",
        "UPDATE loop_ticks SET result = result - 'strain' WHERE duty = 'watch for alerts'",
        "DELETE FROM loop_ticks WHERE duty = 'watch for alerts'",
    ):
        await execute(database, late)
        assert (await latest()).oldest_wait_seconds > 400
    await observe(database)
    assert (await latest()).oldest_wait_seconds > 400


async def test_the_queue_is_a_resource(database: Database) -> None:
    await submitted(database, 9)
    async with database.transaction() as connection:
        observed = await _observed(connection)
    assert observed.resources is not None
    assert observed.resources["queue"] == 0.9
    assert [depth.tasks for depth in observed.depths] == [9]


async def test_a_worker_does_not_starve_beside_tasks_that_ask_for_what_it_lacks(database: Database) -> None:
    worker = await ready_worker(database)
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min'")
    await submitted(database, 3, resources=Resources(gpus=1).text())
    await submitted(database, 1, resources=Resources(gpus=2).text(), agent_type=AgentType.RANKING)

    assert await _starvation(database) == []
    await execute(database, "UPDATE workers SET gpus = 1 WHERE id = $1", worker)
    assert await _starvation(database) == ["1 worker idles although tasks wait that could be run there: 3"]
    await execute(database, "UPDATE workers SET gpus = 0")
    await submitted(database, 2, agent_type=AgentType.RANKING)
    assert await _starvation(database) == ["1 worker idles although tasks wait that could be run there: 2"]


async def test_a_worker_that_ends_starves_only_beside_tasks_that_end_before_it(database: Database) -> None:
    """By their own timeouts, in the time that the worker gives their agent."""
    worker = await ready_worker(database)
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min'")
    await submitted(database, 2, timeout_seconds=None)
    (own,) = await submitted(database, timeout_seconds=1800)
    for minutes, seconds, share, tasks in (
        (None, 1800, 1, 3),  # it never ends
        (6, 1800, 1, 2),  # the usual timeout is five minutes
        (4, 1800, 1, 0),
        (4, 60, 1, 1),
        (4, 100, 2, 1),
        (4, 200, 2, 0),  # of four minutes, with twice the usual time
        (-1, 1, 1, 0),
    ):
        await execute(
            database,
            "UPDATE workers SET ends_at = now() + $2 * interval '1 min', assigned_agent = 'generation',"
            " assigned_compute_seconds = $3 WHERE id = $1",
            worker,
            minutes,
            share * BASE_COMPUTE_SECONDS,
        )
        await execute(database, "UPDATE tasks SET timeout_seconds = $2 WHERE id = $1", own, seconds)
        message = f"1 worker idles although tasks wait that could be run there: {tasks}"
        assert await _starvation(database) == ([message] if tasks else []), (minutes, seconds)


async def test_only_those_idle_workers_starve_for_which_there_is_a_task(database: Database) -> None:
    worker, *_ = [await ready_worker(database) for _ in range(3)]
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min'")
    await execute(database, "UPDATE workers SET ends_at = now() + interval '1 min' WHERE id <> $1", worker)
    await submitted(database)
    assert await _starvation(database) == ["1 worker idles although tasks wait that could be run there: 1"]


async def test_idle_workers_without_what_all_tasks_ask_for_do_not_starve(database: Database) -> None:
    worker, *_ = [await ready_worker(database) for _ in range(3)]
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min'")
    await execute(database, "UPDATE workers SET gpus = 1 WHERE id = $1", worker)
    await submitted(database, resources=Resources(gpus=1).text())
    assert await _starvation(database) == ["1 worker idles although tasks wait that could be run there: 1"]


async def test_workers_that_end_at_different_times_are_looked_at_as_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with each lane, 1,000 of them kept the event loop for seconds."""
    for number in range(1, 5):
        worker = await ready_worker(database)
        await execute(
            database, "UPDATE workers SET ends_at = now() + $2 * interval '100 s' WHERE id = $1", worker, number
        )
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min', cpu_cores = 2")
    await submitted(database, timeout_seconds=250, resources=Resources(cores=1).text())
    await submitted(database, timeout_seconds=1800)
    looks: list[Resources] = []
    covers = Resources.covers

    def look(offer: Resources, request: Resources) -> bool:
        looks.append(offer)
        return covers(offer, request)

    monkeypatch.setattr(Resources, "covers", look)
    assert await _starvation(database) == ["2 workers idle although tasks wait that could be run there: 1"]
    assert len(looks) == 1


async def test_each_worker_is_looked_up_in_the_ledger_once(database: Database) -> None:
    """Three times, with 10,000 workers it was 314,000 pages every five seconds."""
    await ready_worker(database)
    await execute(database, "UPDATE workers SET first_beat_at = now() - interval '1 min', ends_at = now()")
    await submitted(database)
    await leased(database, await ready_worker(database))
    await submitted(database, resources=Resources(gpus=1).text())

    async def look() -> None:
        async with database.transaction() as connection:
            observed = await _observed(connection)
        assert observed.workers is not None
        assert (observed.workers.idle, observed.workers.runnable) == (0, 0), "and the tasks are looked at too"

    plans = await plans_of(database, look)
    assert sum(" on leases" in plan for plan in plans) == 1


async def _starvation(database: Database) -> list[str]:
    async with database.transaction() as connection:
        return [symptom.message for symptom in worker_starvation(await _observed(connection), FOR_ALERTS) or ()]
