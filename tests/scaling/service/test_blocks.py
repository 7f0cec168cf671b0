"""Pools whose workers come and go in blocks: the decisions take whole blocks, and the engine loses no others."""

from app.db.database import Database
from app.workers.service import engine_pool
from app.workers.service.engine_pool import EnginePolicy
from tests.support.engine import PairEngine, register_member
from tests.support.factories import leased, submitted
from tests.support.pools import bounds, decided
from tests.support.sql import execute, value


async def keep(database: Database, engine: PairEngine) -> None:
    await engine_pool.keep(database, engine, EnginePolicy(usual_size=6, rest_seconds=0.0))


async def leaving(database: Database) -> list[str]:
    return list(
        await value(database, "SELECT array_agg(name ORDER BY name) FROM workers WHERE directive = 'drain'") or ()
    )


async def test_idle_workers_leave_by_whole_blocks_whatever_the_order_in_which_they_came(database: Database) -> None:
    await bounds(database, 2, 300)
    engine = PairEngine()
    await keep(database, engine)
    # As of blocks that start at once.
    workers = {name: await register_member(database, name) for name in ("m-5", "m-1", "m-3", "m-6", "m-2", "m-4")}
    await decided(database)
    await submitted(database)
    await leased(database, workers["m-1"].worker_id)
    decision = await decided(database, seconds=60)
    assert (decision["target_workers"], await leaving(database)) == (2, ["m-3", "m-4", "m-5", "m-6"])
    for _ in range(2):
        await keep(database, engine)
    assert [member.name for member in engine.members] == ["m-1", "m-2"]


async def test_a_block_in_which_few_work_leaves_once_the_others_could_do_its_work(database: Database) -> None:
    """Where all are used a little, none would ever leave otherwise."""
    await bounds(database, 2, 300)
    engine = PairEngine()
    await keep(database, engine)
    workers = {name: await register_member(database, name) for name in ("m-1", "m-2", "m-3", "m-4")}
    await execute(database, "UPDATE hosts SET size = 4")
    await decided(database)
    tasks = await submitted(database, 3)
    for name in ("m-1", "m-3", "m-4"):
        await leased(database, workers[name].worker_id)
    decision = await decided(database, seconds=300)
    assert (decision["target_workers"], await leaving(database)) == (4, [])
    assert "the workers of a block go together: 4 instead of 3" in decision["reasons"]
    await execute(database, "DELETE FROM tasks WHERE id = $1", tasks[-1])
    await decided(database, seconds=5)
    decision = await decided(database, seconds=300)
    assert (decision["target_workers"], await leaving(database)) == (2, ["m-1", "m-2"])
    # The block stays until nobody in it holds a task; those that never came are given up.
    await keep(database, engine)
    assert engine.removed == ["m-5", "m-6"]


async def test_above_the_maximum_whole_blocks_go_those_with_the_least_work_first(database: Database) -> None:
    await bounds(database, 2, 300)
    engine = PairEngine()
    await keep(database, engine)
    workers = {name: await register_member(database, name) for name in ("m-1", "m-2", "m-3", "m-4")}
    await execute(database, "UPDATE hosts SET size = 4")
    for name in ("m-1", "m-2", "m-3"):
        await submitted(database)
        await leased(database, workers[name].worker_id)
    await bounds(database, 2, 2)
    decision = await decided(database)
    assert (decision["target_workers"], decision["drain_busy"], await leaving(database)) == (2, 1, ["m-3", "m-4"])
