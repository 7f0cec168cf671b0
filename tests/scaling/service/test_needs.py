"""Tasks that ask for what nobody offers are no need of the pool: it does not grow for them, and shrinks beside them."""

from dataclasses import replace
from typing import Any

from sqlalchemy import text

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.modes import Mode
from app.queue.store import resource_classes
from app.scaling.service import needs, tick
from app.workers.rules.workers import Directive
from app.workers.service import workers
from app.workers.store import directives
from app.workers.store.directives import WorkerSelector
from tests.support.factories import submitted
from tests.support.plans import nodes_of
from tests.support.pools import arrive, bounds, crew, decided, keep_up, passed
from tests.support.sql import execute, fetch

_GPU, _TWO = '{"gpus": 1}', '{"gpus": 2}'
_MEDIUM = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)


async def _decision(database: Database) -> tuple[int, int, list[str]]:
    decision = await decided(database)
    return decision["current_workers"], decision["target_workers"], decision["reasons"]


async def test_a_pool_does_not_grow_for_what_none_of_its_workers_offers(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 2, cpu_percent=90.0)
    await submitted(database, 300, resources=_GPU)
    await submitted(database, 1, resources=_GPU, agent_type=AgentType.RANKING, priority=Priority.HIGH)
    current, target, reasons = await _decision(database)
    assert (current, target) == (2, 2)
    said = "do not count: no worker offers what they ask for, such as 1 GPU"
    assert f"301 tasks of generation (300), ranking (1) {said}" in reasons
    # It does for the others, by as many as these need.
    await submitted(database, 400)
    assert (await _decision(database))[:2] == (2, 4)


async def test_it_grows_for_what_one_of_them_offers(database: Database) -> None:
    await bounds(database, 2, 100)
    await keep_up(database, 2)
    await arrive(database, cpu_percent=90.0, gpus=1)
    await submitted(database, 300, resources=_GPU)
    await submitted(database, 30, resources=_TWO)
    current, target, reasons = await _decision(database)
    assert (current, target) == (2, 4)
    assert "30 tasks of generation do not count: no worker offers what they ask for, such as 2 GPUs" in reasons


async def test_a_pool_shrinks_beside_them_and_they_are_no_burst(database: Database) -> None:
    await bounds(database, 2, 100)
    await crew(database, 6)
    await decided(database)
    await submitted(database, 5000, resources=_GPU)
    await passed(database, 1.0)
    async with database.transaction() as connection:
        assert await tick.tick(connection, database, Mode.PRODUCTION) == {}
    for _ in range(40):
        target = (await decided(database))["target_workers"]
    assert target == 2


async def test_before_anybody_has_registered_everything_counts(database: Database) -> None:
    """Nobody knows yet what the workers of the pool will offer."""
    await bounds(database, 0, 100)
    await keep_up(database, 0)
    await submitted(database, 3, resources=_GPU)
    assert (await _decision(database))[1] == 1


async def test_an_empty_pool_knows_what_its_last_workers_offered(database: Database) -> None:
    await bounds(database, 0, 100)
    (worker_id,) = await crew(database, 1)
    async with database.transaction() as connection:
        await directives.direct(connection, WorkerSelector(ids=[worker_id]), Directive.DRAIN, "enough")
        await workers.say_goodbye(connection, worker_id, "drained")
    await execute(database, "UPDATE hosts SET size = 0")
    await keep_up(database, 0)
    await submitted(database, 3, resources=_GPU)
    assert (await _decision(database))[:2] == (0, 0)
    await submitted(database, 3)
    assert (await _decision(database))[1] == 1


async def test_who_arrives_with_the_resource_makes_them_count(database: Database) -> None:
    await bounds(database, 1, 100)
    await crew(database, 1, cpu_percent=90.0)
    await submitted(database, 50, resources=_GPU)
    assert (await _decision(database))[1] == 1
    await keep_up(database, 2)
    await execute(database, "UPDATE hosts SET size = 2")
    await keep_up(database, 2)
    await arrive(database, cpu_percent=90.0, gpus=1)
    async with database.transaction() as connection:
        assert await needs.find(connection, {_MEDIUM: 50}, {}) == needs.Needs()


async def _found(database: Database, pending: dict[Lane, int], limit: int) -> Any:
    async with database.transaction() as connection:
        return (await needs.find(connection, pending, {}, limit)).unoffered


async def test_of_more_than_are_counted_those_with_an_offer_tell_the_rest(database: Database) -> None:
    await keep_up(database, 1)
    await arrive(database, gpus=1)
    await submitted(database, 40, resources=_TWO)
    await submitted(database, 5, resources=_GPU)
    await submitted(database, 6)
    assert await _found(database, {_MEDIUM: 51}, 1000) == {_MEDIUM: 40}
    assert await _found(database, {_MEDIUM: 51}, 10) == {_MEDIUM: 40}
    # With more of both than are counted, what was counted is left out, and not more.
    assert await _found(database, {_MEDIUM: 51}, 5) == {_MEDIUM: 5}


async def test_the_count_reads_entries_of_its_own_lanes_alone(database: Database) -> None:
    await submitted(database, 2000)
    await submitted(database, 30, resources=_TWO)
    await submitted(database, 7, resources=_GPU)
    await execute(database, "ANALYZE tasks")
    rows = await fetch(database, "SELECT id FROM resource_classes")
    lanes = [replace(_MEDIUM, resource_class=row["id"]) for row in rows]
    query = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {resource_classes._COUNT_WAITING.text}")
    async with database.transaction() as connection:
        (plan,) = (await connection.execute(query, resource_classes._asked(lanes, 20))).scalar_one()
    (scan,) = [node for node in nodes_of(plan["Plan"]) if node.get("Relation Name") == "tasks"]
    assert scan["Index Name"] == "tasks_claim"
    # On average, of 20 of 30 and all of 7.
    assert (scan["Actual Loops"], scan["Actual Rows"], scan.get("Rows Removed by Filter", 0)) == (2, 13.5, 0)
