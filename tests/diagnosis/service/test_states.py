"""In random states of a real database the stated cause is the one that is there, and claims agree with it."""

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.db.database import Database
from app.diagnosis.rules.causes import Code
from app.diagnosis.service.diagnosis import Diagnosis, diagnose
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.queue.broker.dispatch import BatchLanes, Dispatcher, WorkerPreferences
from app.queue.broker.lane_view import LANES, LaneView
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims, ready_lanes
from app.queue.store.claims import ClaimRequest
from tests.diagnosis import worlds
from tests.diagnosis.worlds import AVOID_SECONDS, CLOSED, MODELS, SET_ASIDE, MadeTask, MadeWorker, World

_EVENTUALLY = {Code.BUSY, Code.QUEUED, Code.NEXT, Code.DEGRADED, Code.AVOIDED}
_POLICY = LeasePolicy(avoid_seconds=AVOID_SECONDS)


async def _try(shared: Database, seeds: range) -> Counter[Code]:
    codes: Counter[Code] = Counter()
    for seed in seeds:
        async with shared.engine.connect() as connection:
            transaction = await connection.begin()
            raw: Any = await connection.get_raw_connection()
            driver: asyncpg.Connection[asyncpg.Record] = raw.driver_connection
            await connection.exec_driver_sql("SELECT 1")
            world = worlds.make(seed)
            await worlds.store(driver, world)
            for task in world.random.sample(world.tasks, min(3, len(world.tasks))):
                diagnosis = await diagnose(connection, task.id, policy=_POLICY)
                stated = [cause.code for cause in diagnosis.causes]
                assert stated == _causes(world, task), f"state {seed}, task {task.id}: {diagnosis}"
                codes.update(stated[:1])
                if diagnosis.place is not None:
                    assert (diagnosis.place.ahead, diagnosis.place.is_exact) == (world.ahead(task), True), seed
                save = await connection.begin_nested()
                await _check_with_claims(driver, world, task, diagnosis, seed)
                await save.rollback()
            await transaction.rollback()
    return codes


async def test_no_state_has_a_wrong_cause(shared: Database) -> None:
    await _try(shared, range(60))


@pytest.mark.slow
async def test_none_of_a_thousand_states_has_a_wrong_cause(shared: Database) -> None:
    codes = await _try(shared, range(1000, 2000))
    rare = {Code.UNOFFERED, Code.COMPLETED, Code.FAILED, Code.CANCELLED, Code.BUDGET_USED_UP, Code.LOCKED}
    assert set(Code) - rare <= set(codes), sorted(codes)


def _causes(world: World, task: MadeTask) -> list[Code]:
    """The causes that were made, in order."""
    if task.state == "executing":
        return [Code.RUNNING]
    made = []
    if task.blocker is not None:
        made.append(Code.BLOCKED)
    goals = {"unswept": "paused", "metered": "budget"}
    if task.goal in (*SET_ASIDE, *CLOSED):
        made.append(Code(f"goal_{goals.get(task.goal, task.goal)}"))
    if task.wait != "none" and not (task.wait == "past" and (task.goal in SET_ASIDE or task.blocker)):
        made.append(_delay(world, task))
    if task.agent in world.pauses:
        made.append(Code.PAUSED)
    service = _service(world, task)
    return [*made, service] if not made or service not in _EVENTUALLY else made


def _delay(world: World, task: MadeTask) -> Code:
    if task.wait in MODELS:
        if MODELS[task.wait]:
            return Code.MODEL_UNAVAILABLE
        return Code.WAKING if world.loops_run else Code.LOOPS_AWAY
    if task.wait == "past":
        return Code.WAKING if world.loops_run else Code.LOOPS_AWAY
    waits = {
        "future": Code.DELAYED,
        "retry": Code.RETRY,
        "hung": Code.RETRY,
        "released": Code.HANDED_BACK,
        "rest": Code.UNACKNOWLEDGED,
    }
    return waits.get(task.wait, Code.RETRY)


def _service(world: World, task: MadeTask) -> Code:
    present = world.heard(task.agent)
    heard = [worker for worker in present if worker.has_time(task)]
    if not heard and present:
        return Code.TOO_LONG
    if not heard:
        ways = {worker.way for worker in world.workers if task.agent in worker.agents}
        for way, code in (("starting", "starting"), ("silent", "silent"), ("unready", "not_ready")):
            if way in ways:
                return Code(f"workers_{code}")
        return Code.WORKERS_DRAINING if "draining" in ways else Code.UNSERVED
    idle, ahead = [worker for worker in heard if worker.task is None], world.ahead(task)
    if not ahead and idle and all(w.id == task.avoid for w in idle) and task.waited <= AVOID_SECONDS:
        return Code.AVOIDED
    if _gives_way(world, task, heard, len(idle)):
        return Code.DEGRADED
    if not idle:
        return Code.BUSY
    return Code.QUEUED if ahead >= len(idle) else Code.NEXT


def _gives_way(world: World, task: MadeTask, heard: list[MadeWorker], idle_count: int) -> bool:
    """Whether a step of degradation is in force by which work goes first that each of the workers can run."""
    counted = [t for t in world.tasks if t.is_ready and t.agent not in world.pauses]
    if world.step >= 1 and (task.agent, task.priority) == (AgentType.EVOLUTION, 1):
        others = [t for t in counted if (t.agent, t.priority) != (AgentType.EVOLUTION, 1)]
    elif world.step == 4 and task.agent is not AgentType.GENERATION and not idle_count:
        others = [t for t in counted if t.agent is AgentType.GENERATION and t.priority >= task.priority]
    else:
        return False
    return len(others) >= idle_count and all({t.agent for t in others} & worker.agents for worker in heard)


async def _check_with_claims(
    driver: "asyncpg.Connection[asyncpg.Record]", world: World, task: MadeTask, diagnosis: Diagnosis, seed: int
) -> None:
    """Let the workers claim, round after round, as the broker does it, and compare with the cause."""
    code, about = diagnosis.causes[0].code, f"state {seed}, task {task.id}: {diagnosis}"
    if code is Code.RUNNING:
        return
    able = [worker for worker in world.heard(task.agent) if worker.has_time(task)]
    first = await _round(driver, world)
    served = {worker_id for worker_id, _ in first}
    # The counters that tell of other work do not tell that it is held, avoids a worker, or goes to another one at once.
    idle = [worker for worker in world.workers if worker.way == "heard" and worker.task is None]
    sure = [t for t in world.tasks if all(_may_go_first(t, task, worker) for worker in able)]
    is_sure = code is not Code.DEGRADED or len(sure) >= len(idle)
    if code in (Code.AVOIDED, Code.DEGRADED, Code.BUSY) and is_sure:
        assert task.id not in dict(first).values(), about
    if code is Code.NEXT and task.id not in dict(first).values():
        assert {worker.id for worker in able if worker.task is None} <= served, about
    leased = {task_id for _, task_id in first}
    while True:
        await driver.execute("DELETE FROM tasks WHERE worker_id IS NOT NULL")
        again = await _round(driver, world)
        if not again:
            break
        leased |= {task_id for _, task_id in again}
    is_lone_again = [worker.id for worker in able] == [task.avoid] and task.waited <= AVOID_SECONDS
    if not (code in _EVENTUALLY and is_lone_again):
        assert (task.id in leased) == (code in _EVENTUALLY), about


def _may_go_first(other: MadeTask, task: MadeTask, worker: MadeWorker) -> bool:
    """Whether this worker can lease the other task now, which is not of the lane of the first."""
    is_open = other.is_ready and other.goal not in CLOSED and other.avoid is None
    is_able = other.agent in worker.agents and worker.has_time(other)
    return is_open and is_able and (other.agent, other.priority) != (task.agent, task.priority)


async def _round(driver: "asyncpg.Connection[asyncpg.Record]", world: World) -> list[tuple[UUID, UUID]]:
    """What each worker gets that is heard and has nothing to do."""
    got: list[tuple[UUID, UUID]] = []
    busy = {row[0] for row in await driver.fetch("SELECT worker_id FROM tasks WHERE worker_id IS NOT NULL")}
    for worker in world.workers:
        if worker.way == "heard" and worker.id not in busy:
            got += await _claim(driver, world, worker)
    return got


async def _claim(
    driver: "asyncpg.Connection[asyncpg.Record]", world: World, worker: MadeWorker
) -> list[tuple[UUID, UUID]]:
    """The worker and the task that it gets, or nothing."""
    view = LaneView()
    dispatcher = Dispatcher(view, FairQueue(), WorkerPreferences(), Database("postgresql://127.0.0.1:1/nothing"))
    dispatcher.degradation.step = world.step
    ends_at = await driver.fetchval("SELECT ends_at FROM workers WHERE id = $1", worker.id)
    view.mark_ready(await ready_lanes.find(driver, LANES))
    while (lane := dispatcher.choose_lane(WorkerId(worker.id), worker.agents, BatchLanes())) is not None:
        request = ClaimRequest(
            worker_id=WorkerId(worker.id), request_id=uuid4(), lane=lane, acknowledge=True, ends_at=ends_at
        )
        view.begin_claim()
        outcomes = await claims.claim(driver, [request], _POLICY)
        dispatcher.record_claims([request], outcomes)
        if (lease := outcomes[0].lease) is not None:
            return [(worker.id, UUID(str(lease.task_id)))]
    return []
