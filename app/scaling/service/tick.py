"""Making the pool think: look, decide, write the decision down, and let it happen, in one transaction."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.admin.service.config import Effective
from app.agents.service import weights
from app.agents.service.weights import WeightsInForce
from app.agents.store import performance
from app.db import hot_path
from app.db.database import Database
from app.db.uuids import time_ordered_uuid
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.scaling.rules import estimates as learning
from app.scaling.rules import record as records
from app.scaling.rules.allocation import Load
from app.scaling.rules.decision import Decision, Inputs, Member, SetAside, resolve
from app.scaling.rules.estimates import Experience
from app.scaling.rules.target import is_burst, scaling_policy
from app.scaling.service import apply, state
from app.scaling.service import snapshot as snapshot_service
from app.scaling.service.snapshot import Queue
from app.scaling.service.state import Memory
from app.scaling.store import decisions
from app.scaling.store.decisions import NewDecision
from app.workers.service import limits, requests
from app.workers.service import roster as roster_service
from app.workers.service.requests import Owed
from app.workers.service.roster import Pool
from app.workers.store import hosts, roster
from app.workers.store.roster import Worker

# The duty looks this often whether a decision is due, which comes at least every tick of the policy.
LOOK_SECONDS = 1.0
# Workers change their agent no more often than a task may wait: a move brings help to those that wait, not sooner.
_MOVE_SECONDS = 30.0
# By name: looked up for every worker at every decision, where a call of the enumeration takes forty times as long.
_AGENTS: Mapping[str, AgentType] = {agent.value: agent for agent in AgentType}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldView:
    """All that was looked at for a decision."""

    at: datetime
    config: Effective
    weights: WeightsInForce
    queue: Queue
    pool: Pool
    owed: Owed
    before: Memory | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """A decision, all that it was made from, and what was learned on the way."""

    inputs: Inputs
    decision: Decision
    known: Experience


async def tick(connection: AsyncConnection, database: Database, initial: Mode) -> dict[str, Any]:
    """Decide, when it is time to. The caller holds the duty's turn, so there is one at a time."""
    before, moment = await state.recall_and_now(connection)
    effective = config.effective(await config.current(connection, initial))
    if before is not None and not await _is_due(connection, before, effective, moment):
        return {}
    seen = await see(connection, database, before, effective, moment)
    conclusion = await conclude(connection, seen)
    return await write_down(connection, seen, conclusion)


async def prune(connection: AsyncConnection, days: int) -> dict[str, Any]:
    """Forget some of the old decisions, more than are made between two turns, and rosters that only they needed.

    Rosters alone, lest a decision is just being made that refers to one of them.
    """
    gone, rosters = await decisions.prune(connection, days)
    if rosters:
        await hosts.lock_pool(connection)
        await decisions.prune_rosters(connection, rosters)
    return {"decisions": gone}


async def _is_due(connection: AsyncConnection, before: Memory, effective: Effective, moment: datetime) -> bool:
    """At the time that the last decision set, never later than a tick after it, and sooner when a burst has come."""
    since = (moment - before.experience.at).total_seconds()
    policy = scaling_policy(effective.document, effective.mode)
    if since >= policy.tick_seconds - LOOK_SECONDS or before.brief.get("config_version") != effective.version:
        return True
    if since < policy.hurry_seconds:
        return False
    if since >= before.again_after_seconds:
        return True
    waits = (await snapshot_service.queue(connection, moment)).waits
    work = sum(tasks * _estimate(before.experience, lane.agent_type) for lane, tasks in waits.items())
    return not policy.fixed and is_burst(work, before.experience.workers, since, policy)


async def see(
    connection: AsyncConnection, database: Database, before: Memory | None, effective: Effective, moment: datetime
) -> WorldView:
    """Look at everything, and hold the pool until the transaction ends."""
    await hosts.lock_pool(connection)
    # To find out who is busy takes the server as long as all the rest, which is looked at meanwhile. What this
    # transaction has written so far is not about workers, so another connection sees the same.
    busy = asyncio.ensure_future(hot_path.run(database, roster.holders_of_tasks))
    try:
        in_force = await weights.in_force(connection, effective)
        queue = await snapshot_service.queue(connection, moment)
        pool = await roster_service.pool(connection, before.experience.at if before else None, busy)
    finally:
        busy.cancel()
    return WorldView(
        at=moment,
        config=effective,
        weights=in_force,
        queue=queue,
        pool=pool,
        owed=requests.owed(pool, effective.document.worker_pool.max_workers),
        before=before,
    )


async def conclude(connection: AsyncConnection, seen: WorldView) -> Conclusion:
    """Decide from what was seen."""
    inputs, known = await _inputs(connection, seen)
    return Conclusion(inputs=inputs, decision=resolve(inputs), known=known)


async def write_down(connection: AsyncConnection, seen: WorldView, conclusion: Conclusion) -> dict[str, Any]:
    """Keep the decision, let it happen, and remember what the next one is to know."""
    inputs, decision = conclusion.inputs, conclusion.decision
    decision_id = await decisions.write(
        connection,
        NewDecision(
            decided_at=inputs.at,
            decision_type=decision.decision_type.value,
            current_workers=decision.plan.current,
            target_workers=decision.plan.target,
            inputs=records.inputs_text(inputs),
            output=records.canonical(records.outcome(decision, inputs)),
            roster=records.roster(inputs.members),
        ),
    )
    done = await apply.carry_out(connection, decision, seen.pool, seen.owed)
    size = decision.plan.current + done.started - done.drained
    told = done.told()
    memory = _memory(seen, conclusion, done.drained, size, decision_id)
    # Were a decision that changes nothing lost in a crash, it would be made again, and that would be all.
    await state.keep(connection, memory, may_be_lost=not told and seen.before is not None)
    return {"decision": decision_id, "type": decision.decision_type.value, "workers": size, **told}


async def _inputs(connection: AsyncConnection, seen: WorldView) -> tuple[Inputs, Experience]:
    policy, owed = scaling_policy(seen.config.document, seen.config.mode), sum(seen.owed.values())
    size = len(seen.pool.staying) + owed
    last = seen.before.experience if seen.before else None
    look = snapshot_service.look(seen.queue, seen.pool.workers, size, seen.at)
    known = learning.learned(last, look, policy, snapshot_service.SERVICE)
    staying = [_member(worker) for worker in seen.pool.staying]
    of_new = _of_new(seen.pool.staying)
    able = of_new.union(*{member.capabilities for member in staying if member.capabilities is not None})
    groups = snapshot_service.waiting(seen.queue, known, seen.weights.weights, able)
    snapshot = snapshot_service.snapshot(seen.pool, known, groups, policy, owed)
    found = await limits.gather(
        connection, seen.pool.hosts, len(seen.pool.workers), seen.config.document.resource_limits
    )
    return Inputs(
        at=seen.at,
        config_version=seen.config.version,
        mode=seen.config.mode,
        policy=policy,
        snapshot=replace(
            snapshot, caps=found, running_mean_seconds=snapshot_service.running_mean_seconds(seen.queue, known)
        ),
        members=staying,
        loads=_loads(seen.queue, known, able),
        weights=seen.weights.weights,
        previous_weights=seen.before.weights if seen.before else seen.weights.weights,
        weight_reasons=seen.weights.reasons,
        limits=seen.config.document.resource_limits,
        set_aside=_set_aside(seen.queue, able),
        first_new=time_ordered_uuid(),
        new_capabilities=sorted(of_new),
        may_move=_may_move(seen),
        provisions=bool(seen.pool.hosts),
        step=seen.weights.step,
        quality_gains=await performance.quality_gains(connection),
        notes=await apply.notes(connection, seen.owed),
    ), known


def _memory(seen: WorldView, conclusion: Conclusion, drained: int, size: int, decision_id: int) -> Memory:
    inputs, decision = conclusion.inputs, conclusion.decision
    plan = decision.plan
    moved_at = seen.before.moved_at if seen.before else None
    brief = {
        "decision_id": decision_id,
        "decision_type": decision.decision_type.value,
        "current_workers": plan.current,
        "target_workers": plan.target,
        "config_version": inputs.config_version,
        "waiting_tasks": sum(seen.queue.waits.values()),
        "waiting_seconds": sum(load.work_seconds for load in inputs.loads.values()),
        "bottleneck_agent": decision.bottleneck.value if decision.bottleneck else None,
        "reason": decision.reasons[0],
    }
    return Memory(
        experience=learning.after_removal(conclusion.known, drained, size),
        again_after_seconds=plan.decide_again_after_seconds,
        weights=inputs.weights,
        moved_at=seen.at if decision.moved and inputs.may_move else moved_at,
        brief=brief,
    )


def _member(worker: Worker) -> Member:
    # In the order of the fields: naming them takes longer than all the rest.
    return Member(
        worker.id,
        _AGENTS[worker.assigned_agent] if worker.assigned_agent else None,
        worker.busy,
        None if worker.capabilities is None else _types(worker.capabilities),
        worker.memory_gb,
        worker.cpu_cores,
    )


@lru_cache(maxsize=256)
def _types(names: str) -> frozenset[AgentType]:
    """Many workers can run the same."""
    return frozenset(map(AgentType, names.split(",") if names else ()))


def _of_new(workers: Sequence[Worker]) -> frozenset[AgentType]:
    """What a new worker will be able to run: what the last one that a host has started can."""
    started = [w.capabilities for w in workers if w.provisioner is not None and w.capabilities is not None]
    return _types(started[-1]) if started else frozenset(AgentType)


def _loads(queue: Queue, known: Experience, able: Collection[AgentType]) -> dict[AgentType, Load]:
    """What each type has to do: the tasks that wait, and those that run, which are taken to be half done."""
    loads = {}
    for agent in sorted(able):
        lanes = {lane: tasks for lane, tasks in queue.waits.items() if lane.agent_type is agent}
        tasks = sum(lanes.values()) + queue.running.get(agent, 0) / 2
        if tasks:
            oldest = max((queue.oldest.get(lane.priority, 0.0) for lane in lanes), default=0.0)
            loads[agent] = Load(work_seconds=tasks * _estimate(known, agent), oldest_age_seconds=oldest)
    return loads


def _set_aside(queue: Queue, able: Collection[AgentType]) -> list[SetAside]:
    tasks: Counter[AgentType] = Counter()
    for lane, count in queue.pending.items():
        tasks[lane.agent_type] += count
    why: Mapping[AgentType, str] = {agent: "no worker can run it" for agent in AgentType if agent not in able} | {
        agent: f"it is paused ({reason})" for agent, reason in queue.paused.items()
    }
    on_hold = [
        SetAside(agent_type=agent, tasks=count, why="their research goals are on hold")
        for agent, count in sorted(queue.held.items())
    ]
    waiting = [SetAside(agent_type=agent, tasks=tasks[agent], why=why[agent]) for agent in sorted(why) if tasks[agent]]
    return [*waiting, *on_hold]


def _may_move(seen: WorldView) -> bool:
    before = seen.before
    if before is None or before.moved_at is None or before.weights != seen.weights.weights:
        return True
    return seen.at - before.moved_at >= timedelta(seconds=_MOVE_SECONDS)


def _estimate(known: Experience, agent: AgentType) -> float:
    return learning.estimate(known, agent, snapshot_service.SERVICE)
