"""The pool of an engine: made as large as decided, its workers admitted, and only those removed that hold nothing."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from app.db.database import Database
from app.diagnosis.service.diagnosis import diagnose
from app.kernel.modes import Mode
from app.queue.rules.tasks import LeasePolicy
from app.scaling.service import tick
from app.workers.errors import PoolFull, StartRefused
from app.workers.rules.engines import EngineMember, EngineState, MemberState
from app.workers.rules.hosts import HostPolicy, host_limits
from app.workers.service import engine_pool, manual_start, pool, workers
from app.workers.service.engine_pool import EnginePolicy
from app.workers.service.manual_start import StartOrder
from tests.support.engine import NumberEngine, PairEngine, register_member
from tests.support.factories import leased, registration, submitted
from tests.support.pools import bounds, decided, drain
from tests.support.sql import execute, fetch, until, value

POLICY = EnginePolicy(usual_size=2, rest_seconds=0.0)
_ID = UUID(int=1)


async def keep(database: Database, engine: NumberEngine) -> dict[str, Any]:
    return await engine_pool.keep(database, engine, POLICY)


async def resize(database: Database, size: int) -> None:
    await execute(database, "UPDATE hosts SET size = $1", size)


async def filled(database: Database, size: int) -> tuple[NumberEngine, dict[str, Any]]:
    """An engine whose members have all registered, with the ids of their workers by name."""
    engine = NumberEngine()
    await keep(database, engine)
    await resize(database, size)
    await keep(database, engine)
    names = [member.name for member in engine.members]
    await keep(database, engine)
    return engine, {name: (await register_member(database, name)).worker_id for name in names}


async def test_a_new_pool_has_its_usual_size_and_then_the_one_that_is_decided(database: Database) -> None:
    engine = NumberEngine()
    assert (await keep(database, engine))["asked"] == 2
    await resize(database, 5)
    assert (await keep(database, engine))["asked"] == 5
    assert "asked" not in await keep(database, engine)
    assert engine.calls == 2


async def test_members_that_wait_in_a_queue_keep_their_places_over_a_long_break_of_the_loops(
    database: Database,
) -> None:
    """They had been cancelled, after hours of waiting, and asked for anew at the end of the queue."""
    engine = NumberEngine()
    engine.reason = "its job waits"
    await keep(database, engine)
    await resize(database, 5)
    await keep(database, engine)
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '10 min'")
    assert (await keep(database, engine))["target"] == 5
    assert (len(engine.members), engine.removed) == (5, [])
    # But none beyond the size that was decided, and of that no more than there are.
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '10 min', size = 9")
    assert (await keep(database, engine))["target"] == 5
    await execute(database, "UPDATE hosts SET seen_at = now() - interval '10 min', size = 3")
    assert (await keep(database, engine))["target"] == 3


async def test_a_member_is_counted_with_the_time_of_its_start(database: Database) -> None:
    engine = NumberEngine()
    await keep(database, engine)
    await keep(database, engine)
    worker = await register_member(database, "m-1")
    (row,) = await fetch(
        database,
        "SELECT provisioner, host, slot, extract(epoch FROM first_beat_at - requested_at)::float8 AS seconds"
        " FROM workers WHERE id = $1",
        worker.worker_id,
    )
    assert (row["provisioner"], row["host"], row["slot"]) == ("numbers", "pool", None)
    assert 6 < row["seconds"] < 60


async def test_nobody_is_admitted_beyond_the_size_or_to_a_pool_that_nobody_keeps(database: Database) -> None:
    with pytest.raises(PoolFull, match="nobody keeps the pool numbers/pool"):
        await register_member(database, "m-1")
    engine = NumberEngine()
    await keep(database, engine)
    # One that was started a moment ago, and that no turn has seen: it may be removed by one that does not know of it.
    with pytest.raises(PoolFull, match="not seen"):
        await register_member(database, "m-1")
    await keep(database, engine)
    await register_member(database, "m-1")
    await register_member(database, "m-2")
    with pytest.raises(PoolFull, match="is to have 2 workers"):
        await register_member(database, "m-3")
    # One that was started anew takes its own place.
    await register_member(database, "m-2")


async def test_a_busy_worker_keeps_its_member_until_its_task_has_ended(database: Database) -> None:
    engine, ids = await filled(database, 3)
    await submitted(database)
    await leased(database, ids["m-2"])
    await drain(database, [ids["m-1"], ids["m-2"]])
    await resize(database, 1)
    assert (await keep(database, engine))["asked"] == 2
    assert engine.removed == ["m-1"]
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, ids["m-2"], "drained")
    assert (await keep(database, engine))["asked"] == 1
    assert engine.removed == ["m-1", "m-2"]


async def test_a_member_that_goes_cannot_register_from_when_it_was_chosen(database: Database) -> None:
    """Between the choice and its end the engine would remove a worker that has just got a task."""
    engine = NumberEngine()
    await keep(database, engine)
    await keep(database, engine)
    await register_member(database, "m-1")
    await resize(database, 1)
    engine.held.clear()
    turn = asyncio.create_task(keep(database, engine))

    async def asked() -> bool:
        return engine.calls == 2

    await until(asked)
    # Somebody wants more again meanwhile, and another process of the loops takes a turn.
    await resize(database, 2)
    assert "asked" not in await keep(database, engine)
    with pytest.raises(PoolFull, match="is being removed"):
        await register_member(database, "m-2")
    engine.held.set()
    assert (await turn)["removed"] == 1
    assert (await keep(database, engine))["asked"] == 2
    await keep(database, engine)
    await register_member(database, "m-3")


async def test_what_a_crash_has_left_is_done_by_the_next_turn(database: Database) -> None:
    engine, ids = await filled(database, 3)
    await drain(database, [ids["m-3"]])
    await resize(database, 2)
    engine.held.clear()
    turn = asyncio.create_task(keep(database, engine))

    async def asked() -> bool:
        return engine.calls == 3

    await until(asked)
    await execute(database, "UPDATE hosts SET size = size")
    turn.cancel()
    await asyncio.wait([turn])
    # As after kill -9, nobody has said that it is over.
    await execute(database, "UPDATE hosts SET scaling_until = now() - interval '1 s'")
    engine.held.set()
    assert (await keep(database, engine))["removed"] == 1
    assert engine.removed == ["m-3"]


class LateEngine(NumberEngine):
    """One process's way to a scheduler, which is told how many more members there shall be; `late` holds back a look.

    The looks that follow after so many are held back as well.
    """

    def __init__(self, jobs: list[EngineMember], late_from: int) -> None:
        super().__init__()
        self.members = jobs
        self.late = asyncio.Event()
        self._late_from = late_from
        self.looks = 0

    async def state(self, *, fresh: bool) -> EngineState:
        seen = EngineState(requested=len(self.members), members=tuple(self.members))
        self.looks += 1
        if self.looks >= self._late_from:
            await self.late.wait()
        return seen

    async def scale(self, state: EngineState, size: int, victims: Sequence[str]) -> None:
        more = range(size - state.requested)
        self.members += [EngineMember(name=f"m-{len(self.members) + n}", state=MemberState.PENDING) for n in more]


@pytest.mark.parametrize("late_from", [1, 2])
async def test_two_processes_ask_a_scheduler_once_however_late_one_hears_of_it(
    database: Database, late_from: int
) -> None:
    jobs: list[EngineMember] = []
    late, prompt = LateEngine(jobs, late_from), LateEngine(jobs, 99)
    turn = asyncio.create_task(keep(database, late))

    async def looks() -> bool:
        return late.looks == late_from

    await until(looks)
    assert (await keep(database, prompt))["asked"] == 2
    late.late.set()
    assert "asked" not in await turn
    assert "asked" not in await keep(database, late)
    assert len(jobs) == 2


async def test_a_pool_that_became_smaller_while_its_blocks_started_is_left_with_whole_ones(database: Database) -> None:
    engine = PairEngine()
    await keep(database, engine)
    await resize(database, 4)
    await keep(database, engine)
    first = await register_member(database, "pool-b1-0")
    await register_member(database, "pool-b2-0")
    await submitted(database)
    await leased(database, first.worker_id)
    await resize(database, 2)
    # The pool is full, so that neither block could become whole.
    with pytest.raises(PoolFull, match="is to have 2 workers"):
        await register_member(database, "pool-b2-1")
    await keep(database, engine)
    assert await value(database, "SELECT array_agg(name) FROM workers WHERE directive = 'drain'") == ["pool-b2-0"]
    # Nobody comes back to the block that goes, or it would go on for ever.
    for name in ("pool-b2-0", "pool-b2-1"):
        with pytest.raises(PoolFull, match=f"{name} is being removed"):
            await register_member(database, name)
    await register_member(database, "pool-b1-1")
    await keep(database, engine)
    assert engine.removed == ["pool-b2-0", "pool-b2-1"]
    assert await value(database, "SELECT count(*) FROM workers WHERE directive IS NOT NULL") == 1


async def test_a_scheduler_is_left_alone_while_a_block_waits_for_its_last_task(database: Database) -> None:
    engine = PairEngine()
    await engine_pool.keep(database, engine, replace(POLICY, usual_size=4))
    ids = [(await register_member(database, f"pool-b{block}-{slot}")).worker_id for block in (1, 2) for slot in (0, 1)]
    await submitted(database)
    await leased(database, ids[2])
    await drain(database, ids[2:])
    await resize(database, 2)
    await keep(database, engine)
    looks = engine.fresh_looks
    for _ in range(3):
        await keep(database, engine)
    assert engine.fresh_looks == looks
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, ids[2], "drained")
    await keep(database, engine)
    assert engine.removed == ["pool-b2-0", "pool-b2-1"]


class ExpiringEngine(PairEngine):
    """Its first block expires, and is not among those that it was asked for."""

    async def state(self, *, fresh: bool) -> EngineState:
        return replace(await super().state(fresh=fresh), requested=len(self.members) - 2, expiring=2)

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        return super().choose(replace(state, members=state.members[2:]), removable, surplus)


async def test_what_replaces_a_block_that_is_needed_no_more_is_given_up_once(database: Database) -> None:
    engine = ExpiringEngine()
    engine.requested = 6
    engine._fill()
    await engine_pool.keep(database, engine, replace(POLICY, usual_size=4))
    for name in ("pool-b1-0", "pool-b1-1", "pool-b2-0", "pool-b2-1"):
        await register_member(database, name)
    calls = engine.calls
    await resize(database, 2)
    for worker in ("pool-b1-0", "pool-b1-1"):
        await execute(database, "UPDATE workers SET directive = 'drain' WHERE name = $1", worker)
    await keep(database, engine)
    assert (engine.requested, engine.removed, engine.calls) == (2, ["pool-b3-0", "pool-b3-1"], calls + 1)
    for _ in range(3):
        await keep(database, engine)
    assert engine.calls == calls + 1


class DamagedEngine(PairEngine):
    """Its first block has four members, of which two are on a node that it has lost."""

    def __init__(self) -> None:
        super().__init__()
        self._made = 1
        self.members = [
            EngineMember(name=f"pool-b1-{place}", state=MemberState.READY, block="b1") for place in range(4)
        ]
        self.requested = 6

    async def state(self, *, fresh: bool) -> EngineState:
        state = await super().state(fresh=fresh)
        return replace(state, requested=len(state.members) - 2, expiring=2)

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        return [member.name for member in state.members if member.block == "b1"]


async def test_when_a_block_goes_that_has_lost_a_node_no_others_are_given_up(database: Database) -> None:
    engine = DamagedEngine()
    engine.members += [
        EngineMember(name=f"pool-{block}-{slot}", state=MemberState.PENDING, block=block)
        for block in ("b2", "b3")
        for slot in range(2)
    ]
    await engine_pool.keep(database, engine, replace(POLICY, usual_size=6))
    assert engine.calls == 0
    await resize(database, 4)
    await keep(database, engine)
    assert (engine.requested, engine.removed) == (4, [f"pool-b1-{place}" for place in range(4)])


async def test_a_worker_whose_member_goes_unplanned_gets_no_more_leases(database: Database) -> None:
    engine, ids = await filled(database, 2)
    engine.leave("m-1")
    assert (await keep(database, engine))["unplanned"] == 1
    assert await value(database, "SELECT state FROM workers WHERE id = $1", ids["m-1"]) == "draining"


async def test_an_engine_that_is_away_keeps_the_pool_and_is_the_reason(database: Database) -> None:
    engine, _ = await filled(database, 2)
    await resize(database, 4)
    engine.outage = "no route to host"
    assert await keep(database, engine) == {"unavailable": "no route to host"}
    async with database.transaction() as connection:
        status = await pool.status(connection)
    assert [(host.host, host.size) for host in status.hosts] == [("pool", 4)]
    assert status.recovery.reason == "2 members of pool cannot start: no route to host"
    engine.outage = None
    assert (await keep(database, engine))["asked"] == 4


async def test_why_a_task_waits_tells_why_workers_do_not_come(database: Database) -> None:
    engine = NumberEngine()
    engine.reason = "the image cannot be pulled"
    await keep(database, engine)
    await keep(database, engine)
    (task,) = await submitted(database)
    async with database.transaction() as connection:
        diagnosis = await diagnose(connection, task, policy=LeasePolicy())
        confined = await diagnose(connection, task, policy=LeasePolicy(), is_confined=True)
    words = "2 further workers do not come: the image cannot be pulled"
    assert words in diagnosis.causes[0].text
    # Whoever is confined to a namespace learns no names of images and nodes.
    assert words not in confined.causes[0].text


async def test_what_an_engine_refuses_is_told_everywhere_and_not_asked_again_at_once(database: Database) -> None:
    await bounds(database, 4, 300)
    engine, ids = await filled(database, 2)
    await resize(database, 4)
    engine.refusal = "sbatch: invalid account"
    assert (await keep(database, engine))["unavailable"] == "sbatch: invalid account"
    calls = engine.calls
    for _ in range(3):
        assert "unavailable" not in await keep(database, engine)
    assert engine.calls == calls
    async with database.transaction() as connection:
        await tick.tick(connection, database, Mode.PRODUCTION)
        recovery = (await pool.status(connection)).recovery
    assert recovery.reason == "2 members of pool cannot start: sbatch: invalid account"
    assert any("2 members do not come: sbatch: invalid account" in why for why in (await decided(database))["reasons"])
    *_, task = await submitted(database, 3)
    for worker_id in ids.values():
        await leased(database, worker_id)
    async with database.transaction() as connection:
        diagnosis = await diagnose(connection, task, policy=LeasePolicy())
    assert "2 further workers do not come: sbatch: invalid account" in diagnosis.causes[0].text
    # Whoever goes meanwhile goes.
    await resize(database, 1)
    assert (await keep(database, engine))["drained"] == 1
    engine.refusal, engine.is_resting = None, False
    await resize(database, 4)
    assert (await keep(database, engine))["asked"] == 5


async def test_the_scaling_loop_sets_the_size_and_requests_no_rows(database: Database) -> None:
    await bounds(database, 4, 300)
    engine, _ = await filled(database, 2)
    engine.reason = "the image cannot be pulled"
    async with database.transaction() as connection:
        await tick.tick(connection, database, Mode.PRODUCTION)
    assert await value(database, "SELECT size FROM hosts") == 4
    assert await value(database, "SELECT count(*) FROM workers") == 2
    await keep(database, engine)
    await keep(database, engine)
    decision = await decided(database)
    owed = next(reason for reason in decision["reasons"] if "owes" in reason)
    assert owed == ("pool owes 2 workers, counted as if there; 2 members do not come: the image cannot be pulled")
    assert decision["current_workers"] == 4


async def test_members_that_still_wait_are_given_up_when_idle_workers_would_go(database: Database) -> None:
    """Until they came, the idle ones had to stay as well, and in a full cluster they come when others go."""
    await bounds(database, 2, 300)
    engine, _ = await filled(database, 4)
    await decided(database)
    engine.reason = "its job waits in the queue"
    await resize(database, 8)
    await keep(database, engine)
    (task,) = await submitted(database)
    await decided(database, seconds=60)
    assert await value(database, "SELECT size FROM hosts") == 8
    await execute(database, "DELETE FROM tasks WHERE id = $1", task)
    # Each look counts for a tick at most.
    for _ in range(8):
        await decided(database, seconds=60)
    assert await value(database, "SELECT size FROM hosts") == 2
    await keep(database, engine)
    assert {"m-5", "m-6", "m-7", "m-8"} <= {*engine.removed}


async def test_no_more_is_asked_for_than_the_pool_may_have(database: Database) -> None:
    """A minimum of the configuration is above all limits."""
    engine, _ = await filled(database, 2)
    await resize(database, 500)
    assert (await keep(database, engine))["asked"] == NumberEngine.max_size
    async with database.transaction() as connection:
        hosts = (await pool.status(connection)).hosts
    (limit,) = host_limits(hosts, 0, HostPolicy())
    assert (limit.resource, limit.workers) == ("size of the pool (CONVENER_POOL_LIMIT)", NumberEngine.max_size)


async def test_single_workers_are_not_started_by_hand(database: Database) -> None:
    await filled(database, 2)
    order = StartOrder(request_id=_ID, count=1, by="test", reason="test")
    async with database.transaction() as connection:
        with pytest.raises(StartRefused, match="raise the minimum"):
            await manual_start.start(connection, Mode.PRODUCTION, order)


async def test_workers_elsewhere_need_no_pool(database: Database) -> None:
    async with database.transaction() as connection:
        await workers.register(connection, registration("lab"), None)
