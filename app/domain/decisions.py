"""A decision as a whole: how many workers, who works on what and with how much, from one set of inputs.

Everything that a decision depends on is in its inputs, so that the same inputs give the same decision again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.domain.agents import AgentType
from app.domain.allocation import Assignment, Load, Seat, allocate
from app.domain.config import ResourceLimits, key
from app.domain.scaling import DecisionType, Mode, ScalingPlan, ScalingPolicy, ScalingSnapshot, decide, decision_type
from app.domain.sizing import Size, SizingPolicy, SizingSnapshot, size, within
from app.domain.workers import WorkerId

# The least that the configuration may allow a worker, and so what everybody gets who is not known to need more.
_BASE = Size(compute_seconds=600.0, memory_gb=1.0, cpu_cores=0.5)
_MOST_COMPUTE_SECONDS = 3600.0
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker that stays: what it can run (sorted; None: what a new one can), what it has, and its agent today."""

    worker_id: WorkerId
    capabilities: Sequence[AgentType] | None = None
    assigned: AgentType | None
    busy: bool
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
    worker will be able to run. Without `may_move` only those are assigned who have no assignment yet.
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
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    set_aside: Sequence[SetAside] = ()
    first_new: UUID
    new_capabilities: Sequence[AgentType] = tuple(AgentType)
    may_move: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a worker is to work on, and how much it may use."""

    agent: AgentType
    memory_gb: float
    cpu_cores: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done; `new` are the ids that the workers to be started get, `moved` who changes its agent."""

    plan: ScalingPlan
    decision_type: DecisionType
    reweighted: Mapping[AgentType, tuple[float, float]]
    places: Mapping[WorkerId, Place]
    new: Sequence[WorkerId]
    moved: frozenset[WorkerId]
    bottleneck: AgentType | None
    reasons: Sequence[str]


def resolve(inputs: Inputs) -> Decision:
    """Decide. Pure: the same inputs give the same decision, to the last digit."""
    plan = decide(inputs.snapshot, inputs.policy, inputs.at)
    new = [WorkerId(UUID(int=inputs.first_new.int + place)) for place in range(plan.start)]
    assignment = _assigned(inputs, new)
    moved = frozenset(assignment.moved)
    reweighted = _reweighted(inputs)
    rearranged = bool(reweighted or moved - set(new))
    reasons = [*plan.reasons, *map(_aside, inputs.set_aside)]
    if moved:
        reasons.append(f"{len(moved):,} of {len(assignment.agents):,} workers get another agent; {assignment.reason}")
    return Decision(
        plan=plan,
        decision_type=decision_type(plan.current, plan.target, rearranged=rearranged),
        reweighted=reweighted,
        places=_places(inputs, assignment.agents),
        new=new,
        moved=moved,
        bottleneck=assignment.bottleneck,
        reasons=reasons,
    )


def shown(decision: Decision, inputs: Inputs) -> dict[str, Any]:
    """The decision in the shape of the specification, and what else is known of it."""
    plan = decision.plan
    return {
        "timestamp": plan.at.astimezone(UTC).isoformat(),
        "decision_type": decision.decision_type.value,
        "current_workers": plan.current,
        "target_workers": plan.target,
        "agent_weight_adjustments": {
            key(agent): {"previous_weight": before, "new_weight": after, "reason": _reweighing(inputs)}
            for agent, (before, after) in decision.reweighted.items()
        },
        "resource_allocation": {
            str(worker_id): {
                "assigned_agent": key(place.agent),
                "memory_gb": place.memory_gb,
                "cpu_cores": place.cpu_cores,
            }
            for worker_id, place in decision.places.items()
        },
        "reasons": list(decision.reasons),
        "clamps": [{"limit": c.limit, "before": c.before, "after": c.after} for c in plan.clamps],
        "need": plan.need,
        "start": plan.start,
        "remove_idle": plan.remove_idle,
        "drain_busy": plan.drain_busy,
        "new_workers": [str(worker_id) for worker_id in decision.new],
        "bottleneck_agent": key(decision.bottleneck) if decision.bottleneck else None,
        "mode": inputs.mode.value,
        "config_version": inputs.config_version,
        "decide_again_after_seconds": plan.decide_again_after_seconds,
    }


def _assigned(inputs: Inputs, new: Sequence[WorkerId]) -> Assignment:
    """Everybody's agent. Moves cost attention and warm caches, so they are made at intervals, not at every tick."""
    able = frozenset(inputs.new_capabilities)
    known = [
        Seat(worker_id=m.worker_id, capabilities=_able(m, able), assigned=m.assigned, busy=m.busy)
        for m in inputs.members
    ]
    coming = [Seat(worker_id=worker_id, capabilities=able, assigned=None) for worker_id in new]
    best = allocate([*known, *coming], inputs.loads, inputs.weights)
    if inputs.may_move:
        return best
    agents = {m.worker_id: m.assigned for m in inputs.members if m.assigned in _able(m, able)}
    kept = {worker_id: agents.get(worker_id) or agent for worker_id, agent in best.agents.items()}
    moved = frozenset(worker_id for worker_id in best.moved if not agents.get(worker_id))
    seats = Counter(kept.values())
    return Assignment(agents=kept, moved=moved, seats=seats, bottleneck=best.bottleneck, reason=best.reason)


def _able(member: Member, new: frozenset[AgentType]) -> frozenset[AgentType]:
    return new if member.capabilities is None else frozenset(member.capabilities)


def _reweighted(inputs: Inputs) -> dict[AgentType, tuple[float, float]]:
    return {
        agent: (inputs.previous_weights[agent], weight)
        for agent, weight in inputs.weights.items()
        if abs(weight - inputs.previous_weights.get(agent, weight)) > _EPSILON
    }


def _reweighing(inputs: Inputs) -> str:
    return f"version {inputs.config_version} of the configuration"


def _places(inputs: Inputs, agents: Mapping[WorkerId, AgentType]) -> dict[WorkerId, Place]:
    workers = Counter(agents.values())
    sizes = {agent: _size(inputs, agent, count) for agent, count in workers.items()}
    own = {member.worker_id: member for member in inputs.members}
    return {worker_id: _place(agent, sizes[agent], own.get(worker_id)) for worker_id, agent in agents.items()}


def _size(inputs: Inputs, agent: AgentType, workers: int) -> Size:
    limits, load = inputs.limits, inputs.loads.get(agent)
    most = Size(
        compute_seconds=_MOST_COMPUTE_SECONDS,
        memory_gb=limits.max_memory_per_worker_gb,
        cpu_cores=limits.max_cpu_per_worker,
    )
    waiting = load.work_seconds / workers if load else 0.0
    # Nobody measures yet how quality grows with compute, so everybody has the base.
    seen = SizingSnapshot(waiting_seconds_per_worker=waiting, quality_gain=None)
    return size(seen, SizingPolicy(base=_BASE, limit=most))[0]


def _place(agent: AgentType, wanted: Size, member: Member | None) -> Place:
    memory = wanted.memory_gb if member is None or member.memory_gb is None else member.memory_gb
    cores = wanted.cpu_cores if member is None or member.cpu_cores is None else member.cpu_cores
    fitting = within(wanted, memory_gb=memory, cpu_cores=cores)
    return Place(agent=agent, memory_gb=fitting.memory_gb, cpu_cores=fitting.cpu_cores)


def _aside(aside: SetAside) -> str:
    tasks = f"{aside.tasks:,} task{'' if aside.tasks == 1 else 's'}"
    return f"{tasks} of {aside.agent_type} {'does' if aside.tasks == 1 else 'do'} not count: {aside.why}"
