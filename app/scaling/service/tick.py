"""The scaling loop: observe, decide, store the decision and apply it, in one transaction."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
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
from app.kernel.lanes import Lane
from app.kernel.modes import Mode
from app.kernel.resources import in_words
from app.kernel.states import WorkerState
from app.kernel.text import one_line
from app.scaling.rules import estimates
from app.scaling.rules import record as records
from app.scaling.rules.allocation import Load
from app.scaling.rules.decision import ClassInputs, Decision, DecisionInputs, ExcludedTasks, Member, resolve
from app.scaling.rules.estimates import ClassHistory, Estimates
from app.scaling.rules.idle import surplus, without_workers
from app.scaling.rules.target import ScalingPolicy, is_burst, priced, scaling_policy
from app.scaling.service import apply, state
from app.scaling.service import snapshot as snapshots
from app.scaling.service.apply import AppliedChanges
from app.scaling.service.snapshot import Queue
from app.scaling.service.state import ScalingState
from app.scaling.store import decisions
from app.scaling.store.decisions import NewDecision
from app.workers.rules.assignment import host_policy
from app.workers.service import limits
from app.workers.service import roster as roster_service
from app.workers.service.roster import DueStarts, Pool
from app.workers.store import hosts, roster
from app.workers.store.roster import Worker

# Seconds between two checks of the duty whether a decision is due; one is due at least every tick of the policy.
LOOK_SECONDS = 0.5
# The condition of SQL that one is due, but for a burst.
IS_DUE = decisions.is_due(ScalingPolicy().tick_seconds, LOOK_SECONDS / 2)
# Workers change their agent no more often than a task may wait: a move brings help to those that wait, not sooner.
_MOVE_SECONDS = 30.0
# Of sums of the same numbers in another order.
_ROUNDING = 1e-9
# By name: looked up for every worker at every decision, where a call of the enumeration takes forty times as long.
_AGENTS: Mapping[str, AgentType] = {agent.value: agent for agent in AgentType}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionContext:
    """All that was read for a decision."""

    at: datetime
    config: Effective
    weights: WeightsInForce
    queue: Queue
    pool: Pool
    due_starts: DueStarts
    previous: ScalingState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionResult:
    """A decision, its inputs, and the estimates as of the same moment."""

    inputs: DecisionInputs
    decision: Decision
    estimates: Estimates


async def tick(connection: AsyncConnection, database: Database, initial: Mode) -> dict[str, Any]:
    """Decide if a decision is due; the caller holds the turn of the duty, so that there is one at a time."""
    previous, moment = await state.read_with_time(connection)
    effective = config.effective(await config.current(connection, initial))
    if previous is not None and not await _is_due(connection, previous, effective, moment):
        return {}
    context = await observe(connection, database, previous, effective, moment)
    result = await decide(connection, context)
    return await record_and_apply(connection, context, result)


async def prune(connection: AsyncConnection, days: int) -> dict[str, Any]:
    """Delete some old decisions, more than are made between two turns, and rosters that only they referred to.

    Rosters only while the pool is held, as a decision that refers to one of them may just be made.
    """
    count, rosters = await decisions.prune(connection, days)
    if rosters:
        await hosts.lock_pool(connection)
        await decisions.prune_rosters(connection, rosters)
    return {"decisions": count}


async def _is_due(connection: AsyncConnection, previous: ScalingState, effective: Effective, moment: datetime) -> bool:
    """Due when the last decision said, at the latest a tick after it, and sooner when a burst has come."""
    # Checked at intervals, so a decision is due half an interval early, lest it come nearly a whole one late.
    since = (moment - previous.estimates.at).total_seconds()
    policy = scaling_policy(effective.document, effective.mode)
    # Where the last one was in the future the clock was set back, and nobody waits until it has come there again.
    if since < 0 or since + LOOK_SECONDS / 2 >= min(previous.again_after_seconds, policy.tick_seconds):
        return True
    if previous.brief.get("config_version") != effective.version:
        return True
    if since < policy.hurry_seconds:
        return False
    # The counters are read last, as that costs as much as for a decision.
    waits = (await snapshots.queue(connection, moment, await hosts.classes(connection))).waits
    work = _work_seconds(waits, previous.estimates)
    # A backlog that the last decision knew is no news: it would be decided on twice a second for as long as it lasts.
    if work <= previous.brief.get("planned_seconds", 0.0) * (1 + _ROUNDING):
        return False
    return not policy.is_fixed and is_burst(work, previous.estimates.workers, since, policy)


def _work_seconds(waits: Mapping[Lane, int], current: Estimates) -> float:
    return sum(tasks * estimates.task_seconds(current, lane.agent_type) for lane, tasks in waits.items())


async def observe(
    connection: AsyncConnection,
    database: Database,
    previous: ScalingState | None,
    effective: Effective,
    moment: datetime,
) -> DecisionContext:
    """Read all that a decision depends on, and hold the pool until the transaction ends."""
    # Whoever counts the pool and adds to it must be alone, or two could fill the same room.
    await hosts.lock_pool(connection)
    # Finding the busy workers takes the server as long as all the rest, so another connection does it meanwhile. It
    # sees the same, as this transaction has written nothing about workers so far.
    busy = asyncio.ensure_future(hot_path.run(database, roster.busy_workers))
    try:
        in_force = await weights.in_force(connection, effective)
        queue = await snapshots.queue(connection, moment, await hosts.classes(connection))
        pool = await roster_service.pool(connection, previous.estimates.at if previous else None, busy)
    finally:
        # Without effect once it was awaited; after a failure nobody waits for it any more.
        busy.cancel()
    return DecisionContext(
        at=moment,
        config=effective,
        weights=in_force,
        queue=queue,
        pool=pool,
        due_starts=_due_starts(previous, effective, queue, pool),
        previous=previous,
    )


def _due_starts(previous: ScalingState | None, effective: Effective, queue: Queue, pool: Pool) -> DueStarts:
    """The workers that hosts are due to start.

    Where idle ones would go, as nothing waits, nobody waits for those of an engine either: in the queue of a cluster
    they may stay for hours, and until they have come no idle one could go.
    """
    bounds = effective.document.worker_pool
    due = roster_service.due_starts(pool, bounds.max_workers)
    if previous is None or any(queue.waits.values()) or not any(due[host] for host in pool.hosts if host.is_scaled):
        return due
    last, policy = previous.estimates, scaling_policy(effective.document, effective.mode)
    prices = priced(policy, estimates.start_seconds(last)).idle
    idle = sum(worker.state == WorkerState.READY and not worker.busy for worker in pool.workers)
    if policy.is_fixed or not surplus(last.idle_history, idle, prices, busy=True)[0]:
        return due
    return roster_service.without_surplus(due, pool, bounds.min_workers)


async def decide(connection: AsyncConnection, context: DecisionContext) -> DecisionResult:
    """Decide from what was read."""
    inputs, current = await _inputs(connection, context)
    return DecisionResult(inputs=inputs, decision=resolve(inputs), estimates=current)


async def record_and_apply(
    connection: AsyncConnection, context: DecisionContext, result: DecisionResult
) -> dict[str, Any]:
    """Store the decision, apply it, and store the state for the next one."""
    inputs, decision = result.inputs, result.decision
    decision_id = await decisions.write(
        connection,
        NewDecision(
            decided_at=inputs.at,
            decision_type=decision.decision_type.value,
            current_workers=decision.current,
            target_workers=decision.target,
            inputs=records.inputs_text(inputs),
            output=records.canonical(records.outcome(decision, inputs)),
            roster=records.roster(inputs.members),
        ),
    )
    policy, max_workers = host_policy(inputs.limits), inputs.policy.max_workers
    starts = snapshots.spread_starts(context.queue, context.pool.usual, len(decision.new_workers), policy)
    changes = await apply.apply_decision(connection, decision, context.pool, context.due_starts, starts, max_workers)
    # By the changes that were made, not by the plan: workers may have ended since they were read.
    size = decision.plan.current + changes.started - changes.drained
    counts = changes.nonzero_counts()
    new_state = _new_state(context, result, changes, size, decision_id)
    # Were a decision that changes nothing lost in a crash, it would be made again, and that would be all.
    await state.write(connection, new_state, may_be_lost=not counts and context.previous is not None)
    return {"decision": decision_id, "type": decision.decision_type.value, "workers": size, **counts}


async def _inputs(connection: AsyncConnection, context: DecisionContext) -> tuple[DecisionInputs, Estimates]:
    policy, usual = scaling_policy(context.config.document, context.config.mode), context.pool.usual
    due_starts = sum(context.due_starts[host] for host in usual.hosts)
    size = len(usual.staying) + due_starts
    last = context.previous.estimates if context.previous else None
    reachable = snapshots.agents_of_new_workers(usual)
    reading = snapshots.reading(context.queue, usual.workers, size, context.at, reachable)
    current = estimates.update(last, reading, policy, estimates.SERVICE_TIMES)
    classes, histories = _classes(context, current, policy)
    current = replace(current, classes=histories)
    members = [_member(worker) for worker in context.pool.staying]
    new_capabilities = _new_capabilities(usual.staying, reachable)
    able = new_capabilities.union(*{member.capabilities for member in members if member.capabilities is not None})
    groups = snapshots.waiting_groups(context.queue, current, context.weights.weights, reachable)
    waiting_agents = {lane.agent_type for lane, tasks in context.queue.waits.items() if tasks} & reachable
    snapshot = snapshots.pool_snapshot(usual, current, groups, policy, due_starts, waiting_agents=waiting_agents)
    able_hosts = snapshots.hosts_that_help(context.queue, usual)
    others = len(usual.workers) - sum(host.workers for host in able_hosts)
    worker_limits = await limits.read_limits(connection, able_hosts, others, context.config.document.resource_limits)
    return DecisionInputs(
        at=context.at,
        config_version=context.config.version,
        mode=context.config.mode,
        policy=priced(policy, snapshot.start_seconds),
        snapshot=replace(
            snapshot, limits=worker_limits, running_mean_seconds=snapshots.running_mean_seconds(context.queue, current)
        ),
        members=members,
        loads=_loads(context.queue, current, able),
        weights=context.weights.weights,
        previous_weights=context.previous.weights if context.previous else context.weights.weights,
        weight_reasons=context.weights.reasons,
        limits=context.config.document.resource_limits,
        excluded_tasks=_excluded_tasks(context.queue, able, reachable),
        first_new_id=time_ordered_uuid(),
        new_capabilities=sorted(new_capabilities),
        may_move=_may_move(context),
        provisions=bool(usual.hosts),
        hosts=usual.hosts,
        workers_elsewhere=usual.elsewhere,
        classes=classes,
        step=context.weights.step,
        quality_gains=await performance.quality_gains(connection),
        notes=await apply.notes(connection, context.due_starts),
    ), current


def _new_state(
    context: DecisionContext, result: DecisionResult, changes: AppliedChanges, size: int, decision_id: int
) -> ScalingState:
    inputs, decision = result.inputs, result.decision
    moved_at = context.previous.moved_at if context.previous else None
    brief = {
        "decision_id": decision_id,
        "decision_type": decision.decision_type.value,
        "current_workers": decision.current,
        "target_workers": decision.target,
        "config_version": inputs.config_version,
        # Workers that idle beside them may hold them a moment later, so that more of these help after all.
        "planned_seconds": 0.0 if decision.plan.is_deferred else _work_seconds(context.queue.waits, result.estimates),
        "waiting_tasks": sum(context.queue.waits.values())
        + sum(group.tasks for each in inputs.classes for group in each.snapshot.waiting or ()),
        "waiting_seconds": sum(load.work_seconds for load in inputs.loads.values()),
        "bottleneck_agent": decision.bottleneck.value if decision.bottleneck else None,
        "reason": decision.reasons[0],
    }
    return ScalingState(
        estimates=_after_changes(result, changes, size),
        again_after_seconds=decision.decide_again_after_seconds,
        weights=inputs.weights,
        moved_at=context.at if decision.moved_workers and inputs.may_move else moved_at,
        brief=brief,
    )


def _after_changes(result: DecisionResult, changes: AppliedChanges, size: int) -> Estimates:
    current = estimates.after_removal(result.estimates, changes.drained, size)
    classes = {
        name: replace(
            current.classes[name],
            workers=plan.current + plan.start - changes.drained_of_classes.get(name, 0),
            idle_history=without_workers(current.classes[name].idle_history, changes.drained_of_classes.get(name, 0)),
        )
        for name, plan in result.decision.class_plans.items()
    }
    return replace(current, classes=classes)


def _classes(
    context: DecisionContext, current: Estimates, policy: ScalingPolicy
) -> tuple[list[ClassInputs], dict[str, ClassHistory]]:
    """Each class of workers as a pool of its own, and what is known of it from now on."""
    last = context.previous.estimates if context.previous else None
    seconds = max(0.0, (context.at - last.at).total_seconds()) if last else 0.0
    inputs, histories = [], {}
    for host in context.pool.classes:
        part, due = context.pool.part(host), context.due_starts[host]
        tasks = context.queue.needs.by_class.get(host.host, {})
        groups = snapshots.class_groups(context.queue, tasks, current, context.weights.weights)
        former = last.classes.get(host.host, ClassHistory()) if last else ClassHistory()
        snapshot = snapshots.pool_snapshot(part, current, groups, policy, due, of_class=former)
        # Nobody counts as idle while tasks wait, as in the usual pool.
        idle = 0 if groups else snapshot.idle
        starts = snapshots.starts(part.workers)
        history = estimates.class_history(former, seconds, idle, len(part.staying) + due, policy, starts)
        histories[host.host] = history
        mean = snapshots.running_mean_seconds(context.queue, current)
        snapshot = replace(snapshot, idle_history=history.idle_history, fixed_size=None, running_mean_seconds=mean)
        inputs.append(ClassInputs(name=host.host, max_workers=host.max_size or 0, snapshot=snapshot))
    return inputs, histories


def _member(worker: Worker) -> Member:
    # By position: naming the fields takes longer than all the rest.
    return Member(
        worker.id,
        _AGENTS[worker.assigned_agent] if worker.assigned_agent else None,
        worker.busy,
        None if worker.capabilities is None else snapshots.agent_types(worker.capabilities),
        worker.memory_gb,
        worker.cpu_cores,
    )


def _new_capabilities(workers: Sequence[Worker], reachable: frozenset[AgentType]) -> frozenset[AgentType]:
    """Agent types that a new worker will be able to run: those of the last one that a host has started, if any."""
    capabilities = [w.capabilities for w in workers if w.provisioner is not None and w.capabilities is not None]
    return snapshots.agent_types(capabilities[-1]) if capabilities else reachable


def _loads(queue: Queue, current: Estimates, able: Collection[AgentType]) -> dict[AgentType, Load]:
    """Work of each agent type: the tasks that wait, and half of those that run, which are taken to be half done."""
    loads = {}
    for agent in sorted(able):
        lanes = {lane: tasks for lane, tasks in queue.waits.items() if lane.agent_type is agent}
        seconds, waiting = estimates.task_seconds(current, agent), sum(lanes.values())
        if tasks := waiting + queue.running.get(agent, 0) / 2:
            oldest = max((queue.oldest.get(lane.priority, 0.0) for lane in lanes), default=0.0)
            loads[agent] = Load(
                work_seconds=tasks * seconds, oldest_age_seconds=oldest, waiting_seconds=waiting * seconds
            )
    return loads


def _excluded_tasks(queue: Queue, able: Collection[AgentType], reachable: Collection[AgentType]) -> list[ExcludedTasks]:
    tasks: Counter[AgentType] = Counter()
    for lane, count in queue.pending.items():
        tasks[lane.agent_type] += count
    whose = {agent: "new worker" if agent in able else "worker" for agent in AgentType if agent not in reachable}
    reasons: Mapping[AgentType, str] = {agent: f"no {who} can run it" for agent, who in whose.items()} | {
        agent: f"it is paused ({one_line(reason)})" for agent, reason in queue.pauses.items()
    }
    on_hold = [
        ExcludedTasks(agent_type=agent, tasks=count, reason="their research goals are on hold")
        for agent, count in sorted(queue.on_hold.items())
    ]
    unserved_tasks = [
        ExcludedTasks(agent_type=agent, tasks=tasks[agent], reason=reasons[agent])
        for agent in sorted(reasons)
        if tasks[agent]
    ]
    return [*unserved_tasks, *_unoffered_tasks(queue), *on_hold]


def _unoffered_tasks(queue: Queue) -> list[ExcludedTasks]:
    tasks: Counter[AgentType] = Counter()
    for lane, count in queue.needs.unoffered.items():
        tasks[lane.agent_type] += count
    return [
        ExcludedTasks(
            agent_type=agent,
            tasks=count,
            reason=f"no worker offers what they ask for, such as {in_words(queue.needs.examples[agent].amounts())}",
        )
        for agent, count in sorted(tasks.items())
    ]


def _may_move(context: DecisionContext) -> bool:
    previous = context.previous
    if previous is None or previous.moved_at is None or previous.weights != context.weights.weights:
        return True
    # Moves lie far ahead where the clock was set back.
    return abs(context.at - previous.moved_at) >= timedelta(seconds=_MOVE_SECONDS)
