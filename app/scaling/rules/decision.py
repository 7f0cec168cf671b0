"""A decision as a whole: how many workers, who works on what and with how much, from one set of inputs.

Everything that a decision depends on is in its inputs, so that the same inputs give the same decision again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from app.scaling.rules.allocation import Allocation, Load, Seat, allocate, bottleneck
from app.scaling.rules.sizing import SizingPolicy, SizingSnapshot, size
from app.scaling.rules.target import DecisionType, ScalingPlan, ScalingPolicy, ScalingSnapshot, decide, decision_type
from app.workers.rules.assignment import Assignment, TaskLimits, assignment, largest_limits, usual_limits, within

_EPSILON = 1e-9


class Member(NamedTuple):
    """A worker that stays: its agent today, what it can run (None: what a new one can), and what it has.

    A tuple, since there may be many.
    """

    worker_id: WorkerId
    assigned: AgentType | None
    busy: bool
    capabilities: frozenset[AgentType] | None = None
    memory_gb: float | None = None
    cpu_cores: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Tasks that wait for something else than a worker more."""

    agent_type: AgentType
    tasks: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a decision depends on.

    `first_new` is the id of the first new worker, the others count on from there; `new_capabilities` is what a new
    worker will be able to run. Without `may_move` only those are assigned who have no assignment yet. Where nobody
    `provisions`, the target is a recommendation. `step` is that of degradation. `quality_gains` are by each doubling of
    a task's time, where known. `notes` are what the reasons should also tell.
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
    set_aside: Sequence[SetAside] = ()
    first_new: UUID
    new_capabilities: Sequence[AgentType] = tuple(AgentType)
    may_move: bool = True
    provisions: bool = True
    step: DegradationStep = DegradationStep.NONE
    quality_gains: Mapping[AgentType, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done; `new` are the ids that the workers to be started get, `moved` who changes its agent.

    `sizes` are what the workers of each type get, and why, before what a worker itself has sets a lower limit.
    """

    plan: ScalingPlan
    decision_type: DecisionType
    reweighted: Mapping[AgentType, tuple[float, float]]
    assignments: Mapping[WorkerId, Assignment]
    sizes: Mapping[AgentType, tuple[TaskLimits, str]]
    new: Sequence[WorkerId]
    moved: frozenset[WorkerId]
    bottleneck: AgentType | None
    reasons: Sequence[str]


def resolve(inputs: Inputs) -> Decision:
    """Decide. Pure: the same inputs give the same decision, to the last digit."""
    plan = decide(inputs.snapshot, inputs.policy, inputs.at)
    starts = plan.start if inputs.provisions else 0
    new = [WorkerId(UUID(int=inputs.first_new.int + place)) for place in range(starts)]
    allocation = _allocation(inputs, new)
    reweighted = _reweighted(inputs)
    rearranged = bool(reweighted or allocation.moved - set(new))
    sizes = _sizes(inputs, allocation)
    return Decision(
        plan=plan,
        decision_type=decision_type(plan.current, plan.target, rearranged=rearranged),
        reweighted=reweighted,
        assignments=_assignments(inputs, allocation.agents, sizes),
        sizes=sizes,
        new=new,
        moved=allocation.moved,
        bottleneck=allocation.bottleneck,
        reasons=_reasons(inputs, plan, allocation),
    )


def _reasons(inputs: Inputs, plan: ScalingPlan, allocation: Allocation) -> list[str]:
    reasons = [*plan.reasons, *map(_aside, inputs.set_aside), *inputs.notes]
    if allocation.moved:
        moved, everybody = len(allocation.moved), len(allocation.agents)
        reasons.append(f"{moved:,} of {everybody:,} workers get another agent; {allocation.reason}")
    if plan.target != plan.current and not inputs.provisions:
        reasons.append("no host of ours starts workers: the target is a recommendation")
    return reasons


def _allocation(inputs: Inputs, new: Sequence[WorkerId]) -> Allocation:
    """Everybody's agent. Moves cost attention and warm caches, so they are made at intervals, not at every tick."""
    able = frozenset(inputs.new_capabilities)
    today = {
        m.worker_id: m.assigned
        for m in inputs.members
        if m.assigned is not None and m.assigned in (able if m.capabilities is None else m.capabilities)
    }
    if not inputs.may_move and not new and len(today) == len(inputs.members):
        narrow = bottleneck(inputs.loads, Counter(today.values()))
        return Allocation(agents=today, moved=frozenset(), seats={}, bottleneck=narrow, reason="everybody has an agent")
    best = _best(inputs, new, able)
    if inputs.may_move:
        return best
    kept = {worker_id: today.get(worker_id) or agent for worker_id, agent in best.agents.items()}
    moved = frozenset(worker_id for worker_id in best.moved if worker_id not in today)
    seats = Counter(kept.values())
    return Allocation(agents=kept, moved=moved, seats=seats, bottleneck=best.bottleneck, reason=best.reason)


def _best(inputs: Inputs, new: Sequence[WorkerId], able: frozenset[AgentType]) -> Allocation:
    known = [
        Seat(m.worker_id, able if m.capabilities is None else m.capabilities, m.assigned, m.busy)
        for m in inputs.members
    ]
    coming = [Seat(worker_id, able, None) for worker_id in new]
    return allocate([*known, *coming], inputs.loads, under_degradation(inputs.weights, inputs.step))


def _reweighted(inputs: Inputs) -> dict[AgentType, tuple[float, float]]:
    return {
        agent: (inputs.previous_weights[agent], weight)
        for agent, weight in inputs.weights.items()
        if abs(weight - inputs.previous_weights.get(agent, weight)) > _EPSILON
    }


def _sizes(inputs: Inputs, allocation: Allocation) -> dict[AgentType, tuple[TaskLimits, str]]:
    return {agent: _size(inputs, agent, count) for agent, count in sorted(Counter(allocation.agents.values()).items())}


def _size(inputs: Inputs, agent: AgentType, workers: int) -> tuple[TaskLimits, str]:
    load = inputs.loads.get(agent)
    waiting = load.work_seconds / workers if load else 0.0
    seen = SizingSnapshot(
        waiting_seconds_per_worker=waiting,
        quality_gain=inputs.quality_gains.get(agent),
        degraded=inputs.step > DegradationStep.NONE,
    )
    return size(seen, SizingPolicy(base=usual_limits(inputs.limits), limit=largest_limits(inputs.limits)))


def _assignments(
    inputs: Inputs, agents: Mapping[WorkerId, AgentType], sizes: Mapping[AgentType, tuple[TaskLimits, str]]
) -> dict[WorkerId, Assignment]:
    usual = {agent: assignment(agent, limits) for agent, (limits, _) in sizes.items()}
    assignments = {worker_id: usual[agent] for worker_id, agent in agents.items()}
    for member in inputs.members:
        decided = assignments.get(member.worker_id)
        if decided is not None and not _has(member, decided):
            assignments[member.worker_id] = within(decided, memory_gb=member.memory_gb, cpu_cores=member.cpu_cores)
    return assignments


def _has(member: Member, decided: Assignment) -> bool:
    """Nearly all have enough, so that nothing is made to find that out."""
    _, memory_gb, cpu_cores, _ = decided
    return (member.memory_gb is None or memory_gb is None or member.memory_gb >= memory_gb) and (
        member.cpu_cores is None or cpu_cores is None or member.cpu_cores >= cpu_cores
    )


def _aside(aside: SetAside) -> str:
    tasks = plural(aside.tasks, "task")
    return f"{tasks} of {aside.agent_type} {'does' if aside.tasks == 1 else 'do'} not count: {aside.why}"
