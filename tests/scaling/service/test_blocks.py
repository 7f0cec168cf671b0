"""Pools whose workers come and go in blocks: the decisions take whole blocks, and the engine loses no others."""

from uuid import UUID

from app.db.database import Database
from app.kernel.ids import WorkerId
from app.workers.service import engine_pool
from app.workers.service.engine_pool import EnginePolicy
from tests.support.engine import PairEngine, register_member
from tests.support.factories import leased, ready_worker, submitted
from tests.support.pools import bounds, decided
from tests.support.sql import execute, value

B1, B2, B3 = (["pool-b1-0", "pool-b1-1"], ["pool-b2-0", "pool-b2-1"], ["pool-b3-0", "pool-b3-1"])


async def keep(database: Database, engine: PairEngine) -> None:
    await engine_pool.keep(database, engine, EnginePolicy(usual_size=6, rest_seconds=0.0))


async def leaving(database: Database) -> list[str]:
    return list(
        await value(database, "SELECT array_agg(name ORDER BY name) FROM workers WHERE directive = 'drain'") or ()
    )


async def registered(database: Database, *names: str) -> dict[str, UUID]:
    return {name: (await register_member(database, name)).worker_id for name in names}


async def test_idle_workers_leave_by_whole_blocks_whatever_the_order_in_which_they_came(database: Database) -> None:
    await bounds(database, 1, 300)
    engine = PairEngine()
    await keep(database, engine)
    # As of blocks that start at once; and the smallest that the pool may have are of one worker.
    workers = await registered(database, *(name for pair in zip(B3, B1, B2, strict=True) for name in pair))
    await execute(database, "UPDATE hosts SET block_size = 1")
    await decided(database)
    await submitted(database)
    await leased(database, WorkerId(workers[B1[0]]))
    # One that registers again and again is none to wait for.
    await execute(database, "UPDATE workers SET state = 'starting' WHERE name = $1", B2[0])
    decision = await decided(database, seconds=60)
    assert (decision["target_workers"], await leaving(database)) == (2, [*B2, *B3])
    for _ in range(2):
        await keep(database, engine)
    assert [member.name for member in engine.members] == B1


async def test_a_block_in_which_few_work_leaves_once_the_others_could_do_its_work(database: Database) -> None:
    """Where all are used a little, none would ever leave otherwise."""
    await bounds(database, 2, 300)
    engine = PairEngine()
    await keep(database, engine)
    workers = await registered(database, *B1, *B2)
    await execute(database, "UPDATE hosts SET size = 4")
    await decided(database)
    tasks = await submitted(database, 3)
    for name in (B1[0], *B2):
        await leased(database, WorkerId(workers[name]))
    decision = await decided(database, seconds=300)
    assert (decision["target_workers"], await leaving(database)) == (4, [])
    assert "the workers of a block go together: 4 instead of 3" in decision["reasons"]
    # Where one of these blocks ends, its replacement may be a smaller one.
    assert await value(database, "SELECT size FROM hosts") == 3
    await execute(database, "DELETE FROM tasks WHERE id = $1", tasks[-1])
    await decided(database, seconds=5)
    decision = await decided(database, seconds=300)
    assert (decision["target_workers"], await leaving(database)) == (2, B1)
    # The block stays until nobody in it holds a task; those that never came are given up.
    await keep(database, engine)
    assert engine.removed == B3


async def test_above_the_maximum_whole_blocks_go_those_with_the_least_work_first(database: Database) -> None:
    await bounds(database, 2, 300)
    engine = PairEngine()
    await keep(database, engine)
    workers = await registered(database, *B1, *B2)
    others = [await ready_worker(database, f"lab-{number}") for number in range(2)]
    await execute(database, "UPDATE hosts SET size = 4")
    for name in (*B1, B2[0]):
        await submitted(database)
        await leased(database, WorkerId(workers[name]))
    await bounds(database, 2, 4)
    decision = await decided(database)
    assert (decision["target_workers"], await leaving(database)) == (4, B2)
    # Those that nobody of ours has started go last.
    await bounds(database, 1, 1)
    await decided(database)
    assert await leaving(database) == ["lab-0", *B1, *B2]
    assert len(others) == 2
