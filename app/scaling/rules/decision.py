"""A decision as a whole: size of the pool, assignment of every worker, and limits of tasks, from one set of inputs.

Everything that a decision depends on is in its inputs, so that the same inputs give the same decision again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from app.admin.rules.config import LimitsConfig
from app.agents.rules.weights import under_degradation
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.kernel.text import plural
from app.queue.rules.degradation import DegradationStep
from app.scaling.rules.allocation import Allocation, Candidate, Load, allocate, bottleneck
from app.scaling.rules.sizing import SizingPolicy, SizingSnapshot, size
from app.scaling.rules.target import (
    DecisionType,
    ScalingPlan,
    ScalingPolicy,
    ScalingSnapshot,
    decide,
    decision_type,
    priced,
)
from app.workers.rules.assignment import (
    Assignment,
    TaskLimits,
    assignment_to,
    host_policy,
    largest_limits,
    usual_limits,
    within,
)
from app.workers.rules.hosts import Host, memory_for_each

# A difference of rounding is no change of a weight.
_EPSILON = 1e-9


class Member(NamedTuple):
    """A worker that stays: its agent type today, the types that it can run, and the memory and cores it has.

    Without `capabilities` it can run what a new worker can. A tuple, since there may be many.
    """

    worker_id: WorkerId
    assigned_agent: AgentType | None
    busy: bool
    capabilities: frozenset[AgentType] | None = None
    memory_gb: float | None = None
    cpu_cores: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedTasks:
    """Tasks that wait for something other than a worker, and so do not count."""

    agent_type: AgentType
    tasks: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInputs:
    """A class of workers: its name, the most that its engine may have, its workers, and the tasks that belong to it."""

    name: str
    max_workers: int
    snapshot: ScalingSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionInputs:
    """All that a decision depends on.

    `first_new_id` is the id of the first new worker, the others count on from there; `new_capabilities` are the types
    that a new worker will be able to run. Without `may_move` only workers without an assignment get one. Where no host
    `provisions` workers, the target is a recommendation. `hosts` are those of our workers (None: not kept at the time),
    others run `workers_elsewhere`. `classes` are pools that are sized apart, without their tasks and workers in
    `snapshot`. `step` is that of degradation. `quality_gains` are those by each doubling of a task's time, where
    measured. `notes` go to the reasons as they are.
    """

    at: datetime
    config_version: int
    mode: Mode
    policy: ScalingPolicy
    snapshot: ScalingSnapshot
    members: Sequence[Member] = ()
    loads: Mapping[AgentType, Load]
    weights: Mapping[AgentType, float]
    previous_weights: Mapping[AgentType, float]
    weight_reasons: Mapping[AgentType, str] = field(default_factory=dict)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    excluded_tasks: Sequence[ExcludedTasks] = ()
    first_new_id: UUID
    new_capabilities: Sequence[AgentType] = tuple(AgentType)
    may_move: bool = True
    provisions: bool = True
    hosts: Sequence[Host] | None = None
    workers_elsewhere: int = 0
    classes: Sequence[ClassInputs] = ()
    step: DegradationStep = DegradationStep.NONE
    quality_gains: Mapping[AgentType, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The changes to the pool: its size, the weights, the assignments, and the reasons.

    `new_workers` are the ids of the workers to start; `moved_workers` change their agent type. `sizes` are the limits
    of a task of each type, and why, before the memory and cores that a worker has lower them. `class_plans` are the
    sizes of classes of workers, by their names.
    """

    plan: ScalingPlan
    class_plans: Mapping[str, ScalingPlan]
    decision_type: DecisionType
    weight_changes: Mapping[AgentType, tuple[float, float]]
    assignments: Mapping[WorkerId, Assignment]
    sizes: Mapping[AgentType, tuple[TaskLimits, str]]
    new_workers: Sequence[WorkerId]
    moved_workers: frozenset[WorkerId]
    bottleneck: AgentType | None
    reasons: Sequence[str]

    @property
    def current(self) -> int:
        """The workers of all pools."""
        return _total_sizes(self.plan, self.class_plans)[0]

    @property
    def decide_again_after_seconds(self) -> float:
        """The least that any of the pools asks for."""
        return min(plan.decide_again_after_seconds for plan in (self.plan, *self.class_plans.values()))

    @property
    def target(self) -> int:
        """The workers that all pools are to have."""
        return _total_sizes(self.plan, self.class_plans)[1]


def resolve(inputs: DecisionInputs) -> Decision:
    """Decide; the same inputs give the same decision, to the last digit."""
    plan = decide(inputs.snapshot, _beside_classes(inputs), inputs.at)
    if inputs.policy.awaits_others and not inputs.provisions:
        plan = replace(plan, decide_again_after_seconds=inputs.policy.tick_seconds)
    class_plans = _class_plans(inputs, plan)
    # Without a host of ours nothing can be started, and others may act on the target.
    starts = plan.start if inputs.provisions else 0
    # The ids come from the inputs too, so that a replay names the same workers.
    new_workers = [WorkerId(UUID(int=inputs.first_new_id.int + place)) for place in range(starts)]
    allocation = _allocation(inputs, new_workers)
    weight_changes = _weight_changes(inputs)
    is_rearranged = bool(weight_changes or allocation.moved_workers - set(new_workers))
    sizes = _sizes(inputs, allocation, starts)
    current, target = _total_sizes(plan, class_plans)
    return Decision(
        plan=plan,
        class_plans=class_plans,
        decision_type=decision_type(current, target, is_rearranged=is_rearranged),
        weight_changes=weight_changes,
        assignments=_assignments(inputs, allocation.agents, sizes),
        sizes=sizes,
        new_workers=new_workers,
        moved_workers=allocation.moved_workers,
        bottleneck=allocation.bottleneck,
        reasons=_reasons(inputs, plan, class_plans, allocation),
    )


def _total_sizes(plan: ScalingPlan, class_plans: Mapping[str, ScalingPlan]) -> tuple[int, int]:
    """The workers that all pools have, and are to have."""
    plans = (plan, *class_plans.values())
    return sum(each.current for each in plans), sum(each.target for each in plans)


def _beside_classes(inputs: DecisionInputs) -> ScalingPolicy:
    """The policy of the usual pool: workers of classes count for the maximum."""
    policy = inputs.policy
    others = sum(each.snapshot.workers + each.snapshot.draining for each in inputs.classes)
    return replace(policy, max_workers=max(policy.min_workers, policy.max_workers - others)) if others else policy


def _class_plans(inputs: DecisionInputs, plan: ScalingPlan) -> dict[str, ScalingPlan]:
    """A plan for each class, one after the other within what is left of the maximum; a class may have no workers."""
    taken = max(plan.current, plan.target) + inputs.snapshot.draining
    taken += sum(each.snapshot.workers + each.snapshot.draining for each in inputs.classes)
    room, plans = inputs.policy.max_workers - taken, {}
    for each in inputs.classes:
        own = each.snapshot.workers + each.snapshot.draining
        limit = max(0, min(each.max_workers, own + room))
        policy = replace(inputs.policy, min_workers=0, max_workers=limit)
        if each.snapshot.start_seconds != inputs.snapshot.start_seconds:
            policy = priced(policy, each.snapshot.start_seconds)
        plans[each.name] = decide(each.snapshot, policy, inputs.at)
        room -= plans[each.name].start
    return plans


def _reasons(
    inputs: DecisionInputs, plan: ScalingPlan, class_plans: Mapping[str, ScalingPlan], allocation: Allocation
) -> list[str]:
    of_classes = [f"{name}: {reason}" for name, each in class_plans.items() for reason in each.reasons]
    reasons = [*plan.reasons, *of_classes, *_excluded_words(inputs.excluded_tasks), *inputs.notes]
    if allocation.moved_workers:
        moves, workers = len(allocation.moved_workers), len(allocation.agents)
        reasons.append(f"{moves:,} of {workers:,} workers get another agent; {allocation.reason}")
    if plan.target != plan.current and not inputs.provisions:
        reasons.append("no host of ours starts workers: the target is a recommendation")
    return reasons


def _allocation(inputs: DecisionInputs, new_workers: Sequence[WorkerId]) -> Allocation:
    """The agent type of every worker; without `may_move` only those without one get one."""
    # A move costs warm caches, so workers move at intervals, not at every tick.
    able = frozenset(inputs.new_capabilities)
    today = {
        m.worker_id: m.assigned_agent
        for m in inputs.members
        if m.assigned_agent is not None and m.assigned_agent in (able if m.capabilities is None else m.capabilities)
    }
    if not inputs.may_move and not new_workers and len(today) == len(inputs.members):
        narrowest_agent = bottleneck(inputs.loads, Counter(today.values()))
        reason = "everybody has an agent"
        return Allocation(agents=today, moved_workers=frozenset(), seats={}, bottleneck=narrowest_agent, reason=reason)
    best = _best_allocation(inputs, new_workers, able)
    if inputs.may_move:
        return best
    agents = {worker_id: today.get(worker_id) or agent for worker_id, agent in best.agents.items()}
    moved_workers = frozenset(worker_id for worker_id in best.moved_workers if worker_id not in today)
    return replace(best, agents=agents, moved_workers=moved_workers, seats=Counter(agents.values()))


def _best_allocation(inputs: DecisionInputs, new_workers: Sequence[WorkerId], able: frozenset[AgentType]) -> Allocation:
    candidates = [
        Candidate(m.worker_id, able if m.capabilities is None else m.capabilities, m.assigned_agent, m.busy)
        for m in inputs.members
    ]
    candidates += [Candidate(worker_id, able, None) for worker_id in new_workers]
    # Degradation lowers weights for the allocation only; the weights in force stay.
    return allocate(candidates, inputs.loads, under_degradation(inputs.weights, inputs.step))


def _weight_changes(inputs: DecisionInputs) -> dict[AgentType, tuple[float, float]]:
    return {
        agent: (inputs.previous_weights[agent], weight)
        for agent, weight in inputs.weights.items()
        if abs(weight - inputs.previous_weights.get(agent, weight)) > _EPSILON
    }


def _sizes(inputs: DecisionInputs, allocation: Allocation, starts: int) -> dict[AgentType, tuple[TaskLimits, str]]:
    policy = SizingPolicy(
        base=usual_limits(inputs.limits),
        limit=largest_limits(inputs.limits),
        wait_target_seconds=inputs.policy.wait_target_seconds,
        step=inputs.policy.size_step,
    )
    measured_hosts = [host for host in inputs.hosts or () if not host.is_scaled]
    if inputs.hosts and measured_hosts:
        policy = replace(
            policy,
            host_memory_gb=memory_for_each(inputs.hosts, starts, host_policy(inputs.limits)),
            host_cores=min(host.cpu_cores for host in measured_hosts),
        )
    counts = Counter(allocation.agents.values())
    return {agent: _size(inputs, agent, count, policy) for agent, count in sorted(counts.items())}


def _size(inputs: DecisionInputs, agent: AgentType, workers: int, policy: SizingPolicy) -> tuple[TaskLimits, str]:
    load = inputs.loads.get(agent, Load(work_seconds=0.0))
    # Once what runs counted as well, and a decision of then is to be made again as it was.
    waiting_seconds = load.work_seconds if load.waiting_seconds is None else load.waiting_seconds
    snapshot = SizingSnapshot(
        waiting_seconds_per_worker=waiting_seconds / workers,
        quality_gain=inputs.quality_gains.get(agent),
        is_degraded=inputs.step > DegradationStep.NONE,
    )
    return size(snapshot, policy)


def _assignments(
    inputs: DecisionInputs, agents: Mapping[WorkerId, AgentType], sizes: Mapping[AgentType, tuple[TaskLimits, str]]
) -> dict[WorkerId, Assignment]:
    # Workers of a type share one object, as nearly all get what their type gets.
    usual = {agent: assignment_to(agent, limits) for agent, (limits, _) in sizes.items()}
    assignments = {worker_id: usual[agent] for worker_id, agent in agents.items()}
    for member in inputs.members:
        assignment = assignments.get(member.worker_id)
        if assignment is not None and not _suffices(member, assignment):
            assignments[member.worker_id] = within(assignment, memory_gb=member.memory_gb, cpu_cores=member.cpu_cores)
    return assignments


def _suffices(member: Member, usual: Assignment) -> bool:
    """Whether a worker has the memory and cores of an assignment: nearly all do, so that none needs its own."""
    _, memory_gb, cpu_cores, _ = usual
    return (member.memory_gb is None or memory_gb is None or member.memory_gb >= memory_gb) and (
        member.cpu_cores is None or cpu_cores is None or member.cpu_cores >= cpu_cores
    )


def _excluded_words(groups: Sequence[ExcludedTasks]) -> Iterator[str]:
    """One sentence for each reason, with all agent types that it holds for."""
    tasks_by_reason: dict[str, dict[AgentType, int]] = {}
    for group in groups:
        tasks_by_reason.setdefault(group.reason, {})[group.agent_type] = group.tasks
    for reason, counts in tasks_by_reason.items():
        total = sum(counts.values())
        agents = ", ".join(f"{agent} ({tasks:,})" if len(counts) > 1 else agent for agent, tasks in counts.items())
        yield f"{plural(total, 'task')} of {agents} {'does' if total == 1 else 'do'} not count: {reason}"
