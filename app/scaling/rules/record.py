"""Records of decisions: the JSON of their inputs and outcomes as it is stored, and the shape that is published.

The stored JSON is short and canonical: sorted keys, no blanks, the workers as columns. Their long part (ids,
capabilities, memory, cores), the roster, is stored apart, since most decisions have the roster of the one before. A
replay compares texts, so keys stay whatever becomes of the names in the rules.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from app.admin.rules.config import LimitsConfig, weight_name
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.queue.rules.degradation import DegradationStep
from app.scaling.rules.allocation import Load
from app.scaling.rules.blocks import Blocks, WorkerGroup
from app.scaling.rules.decision import ClassInputs, Decision, DecisionInputs, ExcludedTasks, Member, resolve
from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.idle import IdlePolicy, IdleSample
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot
from app.workers.rules.assignment import Assignment, assignment_to
from app.workers.rules.hosts import Host, WorkerLimit

# One letter a worker in stored decisions, so the letters stay whatever becomes of the names.
_LETTERS: Mapping[AgentType | None, str] = {
    AgentType.GENERATION: "g",
    AgentType.REFLECTION: "r",
    AgentType.RANKING: "k",
    AgentType.EVOLUTION: "e",
    AgentType.PROXIMITY: "p",
    AgentType.META_REVIEW: "m",
    None: "-",
}
_AGENTS = {letter: agent for agent, letter in _LETTERS.items()}


def canonical(value: Any) -> str:
    """The canonical text of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def roster(members: Sequence[Member]) -> str:
    """Canonical text of the part of the workers that seldom changes: ids, capabilities, memory and cores."""
    return _roster(tuple([(m.worker_id, m.capabilities, m.memory_gb, m.cpu_cores) for m in members]))


# Most decisions have the roster of the one before.
@lru_cache(maxsize=1)
def _roster(members: Sequence[tuple[WorkerId, frozenset[AgentType] | None, float | None, float | None]]) -> str:
    # A thousand workers have a handful of different sets, so each is written once and referred to by number.
    sets = sorted({tuple(sorted(able)) for able in {able for _, able, _, _ in members} if able is not None})
    place = {frozenset(able): number for number, able in enumerate(sets)}
    return canonical(
        {
            "ids": [str(worker_id) for worker_id, _, _, _ in members],
            "sets": sets,
            "able": [None if able is None else place[able] for _, able, _, _ in members],
            "memory_gb": [memory_gb for _, _, memory_gb, _ in members],
            "cpu_cores": [cpu_cores for _, _, _, cpu_cores in members],
        }
    )


def inputs_text(inputs: DecisionInputs) -> str:
    """The inputs without the roster."""
    return canonical(
        {
            "at": inputs.at.astimezone(UTC).isoformat(),
            "config_version": inputs.config_version,
            "mode": inputs.mode,
            "policy": _policy(inputs.policy),
            "snapshot": _snapshot(inputs.snapshot),
            # One character for each worker, in the order of the roster.
            "assigned": "".join([_LETTERS[m.assigned_agent] for m in inputs.members]),
            "busy": "".join(["1" if m.busy else "0" for m in inputs.members]),
            "loads": {agent: [load.work_seconds, load.oldest_age_seconds] for agent, load in inputs.loads.items()},
            # Apart from the loads, whose columns the version before this one counts.
            "waiting": {
                agent: load.waiting_seconds for agent, load in inputs.loads.items() if load.waiting_seconds is not None
            },
            "weights": dict(inputs.weights),
            "previous_weights": dict(inputs.previous_weights),
            "weight_reasons": dict(inputs.weight_reasons),
            "limits": asdict(inputs.limits),
            "set_aside": [[group.agent_type, group.tasks, group.reason] for group in inputs.excluded_tasks],
            "first_new": str(inputs.first_new_id),
            "new_capabilities": sorted(inputs.new_capabilities),
            "may_move": inputs.may_move,
            "provisions": inputs.provisions,
            "hosts": None if inputs.hosts is None else [_host(host) for host in inputs.hosts],
            "elsewhere": inputs.workers_elsewhere,
            # Only where there are some, as for what is published.
            **(
                {"classes": [[c.name, c.max_workers, _snapshot(c.snapshot)] for c in inputs.classes]}
                if inputs.classes
                else {}
            ),
            "step": inputs.step,
            "quality_gains": dict(inputs.quality_gains),
            "notes": list(inputs.notes),
        }
    )


def inputs_of(roster_text: str, text: str) -> DecisionInputs:
    """The inputs of a stored decision; a field that is newer than the decision has its default."""
    record = json.loads(text)
    return DecisionInputs(
        at=datetime.fromisoformat(record["at"]),
        config_version=record["config_version"],
        mode=Mode(record["mode"]),
        policy=_policy_of(record["policy"]),
        snapshot=_snapshot_of(record["snapshot"]),
        members=_members_of(json.loads(roster_text), record["assigned"], record["busy"]),
        loads={
            AgentType(agent): Load(
                work_seconds=work, oldest_age_seconds=age, waiting_seconds=record.get("waiting", {}).get(agent)
            )
            for agent, (work, age) in record["loads"].items()
        },
        weights=_by_agent(record["weights"]),
        previous_weights=_by_agent(record["previous_weights"]),
        weight_reasons=_by_agent(record["weight_reasons"]),
        limits=LimitsConfig(**_fields_of(LimitsConfig, record["limits"])),
        excluded_tasks=[
            ExcludedTasks(agent_type=AgentType(agent), tasks=tasks, reason=reason)
            for agent, tasks, reason in record["set_aside"]
        ],
        first_new_id=UUID(record["first_new"]),
        new_capabilities=tuple(map(AgentType, record["new_capabilities"])),
        may_move=record["may_move"],
        provisions=record["provisions"],
        hosts=None if (hosts := record.get("hosts")) is None else [_host_of(host) for host in hosts],
        workers_elsewhere=record.get("elsewhere", 0),
        classes=[
            ClassInputs(name=name, max_workers=limit, snapshot=_snapshot_of(snapshot))
            for name, limit, snapshot in record.get("classes", ())
        ],
        step=DegradationStep(record.get("step", DegradationStep.NONE)),
        quality_gains=_by_agent(record.get("quality_gains", {})),
        notes=record["notes"],
    )


def outcome(decision: Decision, inputs: DecisionInputs) -> dict[str, Any]:
    """The outcome as it is stored: the workers by letter, those of the roster first, then the new ones."""
    plan = decision.plan
    return {
        "timestamp": plan.at.astimezone(UTC).isoformat(),
        "decision_type": decision.decision_type,
        "current_workers": decision.current,
        "target_workers": decision.target,
        **({"classes": _classes(decision)} if decision.class_plans else {}),
        "agent_weight_adjustments": {
            weight_name(agent): {"previous_weight": old, "new_weight": new, "reason": _weight_reason(inputs, agent)}
            for agent, (old, new) in decision.weight_changes.items()
        },
        "allocation": _allocation(decision, inputs),
        "reasons": list(decision.reasons),
        "clamps": [{"limit": c.limit, "before": c.old_target, "after": c.new_target} for c in plan.clamps],
        "need": plan.required_workers,
        "start": plan.start,
        "remove_idle": plan.remove_idle,
        "drain_busy": plan.drain_busy,
        "new_workers": [str(worker_id) for worker_id in decision.new_workers],
        "moved_workers": len(decision.moved_workers),
        "bottleneck_agent": weight_name(decision.bottleneck) if decision.bottleneck else None,
        "mode": inputs.mode,
        "config_version": inputs.config_version,
        "decide_again_after_seconds": decision.decide_again_after_seconds,
    }


def _classes(decision: Decision) -> dict[str, Any]:
    return {
        name: {
            "current_workers": plan.current,
            "target_workers": plan.target,
            "need": plan.required_workers,
            "start": plan.start,
            "remove_idle": plan.remove_idle,
            "drain_busy": plan.drain_busy,
            "reasons": list(plan.reasons),
        }
        for name, plan in decision.class_plans.items()
    }


def replay(roster_text: str, text: str) -> str:
    """Decide again from stored inputs; return the outcome as canonical text."""
    inputs = inputs_of(roster_text, text)
    return canonical(outcome(resolve(inputs), inputs))


def published_outcome(outcome: Mapping[str, Any], roster_text: str) -> dict[str, Any]:
    """A stored outcome in the shape of the specification, with every worker by its id."""
    document = dict(outcome)
    allocation = document.pop("allocation")
    ids = [*json.loads(roster_text)["ids"], *outcome["new_workers"]]
    return {**document, "resource_allocation": _resource_allocation(allocation, ids), "sizes": allocation["sizes"]}


def _resource_allocation(allocation: Mapping[str, Any], ids: Sequence[str]) -> dict[str, dict[str, str | float]]:
    """Agent type, memory in GB and cores of every worker that has an agent type, by the worker's id."""
    sizes = allocation["sizes"]
    own = {place: (memory, cores) for place, memory, cores in allocation["own"]}
    assignments = {}
    for place, (worker_id, letter) in enumerate(zip(ids, allocation["agents"], strict=True)):
        agent = _AGENTS[letter]
        if agent is not None:
            usual = sizes[weight_name(agent)]
            memory, cores = own.get(place, (usual["memory_gb"], usual["cpu_cores"]))
            assignments[worker_id] = {"assigned_agent": weight_name(agent), "memory_gb": memory, "cpu_cores": cores}
    return assignments


def _allocation(decision: Decision, inputs: DecisionInputs) -> dict[str, Any]:
    ids = [*(m.worker_id for m in inputs.members), *decision.new_workers]
    assignments = [decision.assignments.get(worker_id) for worker_id in ids]
    usual: dict[AgentType | None, Assignment] = {
        agent: assignment_to(agent, limits) for agent, (limits, _) in decision.sizes.items()
    }
    return {
        "agents": "".join([_LETTERS[assignment.agent if assignment else None] for assignment in assignments]),
        "sizes": {
            weight_name(agent): {**asdict(limits), "reason": reason}
            for agent, (limits, reason) in decision.sizes.items()
        },
        # Those that have less than the workers of their agent get.
        "own": [
            [place, assignment.memory_gb, assignment.cpu_cores]
            for place, assignment in enumerate(assignments)
            if assignment is not None and assignment != usual[assignment.agent]
        ],
    }


def _weight_reason(inputs: DecisionInputs, agent: AgentType) -> str:
    return inputs.weight_reasons.get(agent) or f"version {inputs.config_version} of the configuration"


def _policy(policy: ScalingPolicy) -> dict[str, Any]:
    document = asdict(policy)
    # The stored keys are older than the names of the fields.
    document["spare"], document["fixed"] = document.pop("idle"), document.pop("is_fixed")
    return document


def _snapshot(snapshot: ScalingSnapshot) -> dict[str, Any]:
    waiting = snapshot.waiting
    return {
        "idle": snapshot.idle,
        "busy": snapshot.busy,
        "idle_elsewhere": snapshot.idle_elsewhere,
        # Only where there are some: most pools have workers of one kind.
        **({"idle_unable": snapshot.idle_unable} if snapshot.idle_unable else {}),
        # Only where there are some: a thousand workers that come and go alone need no list.
        **({} if snapshot.blocks is None else {"groups": _groups(snapshot.blocks)}),
        "starting": list(snapshot.starting),
        "draining": snapshot.draining,
        "waiting": None if waiting is None else [[w.tasks, w.work_seconds, w.oldest_age_seconds] for w in waiting],
        "spare": [[sample.seconds, sample.idle] for sample in snapshot.idle_history],
        "cpu": snapshot.cpu,
        "start_seconds": snapshot.start_seconds,
        "caps": [[limit.resource, limit.workers] for limit in snapshot.limits],
        "usual": snapshot.fixed_size,
        "running_mean_seconds": snapshot.running_mean_seconds,
    }


def _snapshot_of(record: Mapping[str, Any]) -> ScalingSnapshot:
    waiting = record["waiting"]
    groups = [WaitingGroup(tasks=t, work_seconds=w, oldest_age_seconds=a) for t, w, a in waiting or ()]
    return ScalingSnapshot(
        idle=record["idle"],
        busy=record["busy"],
        idle_unable=record.get("idle_unable", 0),
        idle_elsewhere=record.get("idle_elsewhere", 0),
        blocks=_blocks_of(record.get("groups")),
        starting=record["starting"],
        draining=record["draining"],
        waiting=None if waiting is None else groups,
        idle_history=[IdleSample(seconds=seconds, idle=idle) for seconds, idle in record["spare"]],
        cpu=record["cpu"],
        start_seconds=record["start_seconds"],
        limits=[WorkerLimit(resource=resource, workers=workers) for resource, workers in record["caps"]],
        fixed_size=record["usual"],
        running_mean_seconds=record.get("running_mean_seconds"),
    )


def _groups(blocks: Blocks) -> list[Any]:
    return [blocks.smallest, *([group.size, group.idle] for group in blocks.removable)]


def _blocks_of(record: Sequence[Any] | None) -> Blocks | None:
    if record is None:
        return None
    smallest, *groups = record
    return Blocks(removable=[WorkerGroup(size, idle) for size, idle in groups], smallest=smallest)


def _host(host: Host) -> list[Any]:
    """As columns in this order, as there may be many; what does not limit the pool is left out."""
    memory = (host.memory_gb, host.memory_used_gb, host.workers_gb)
    of_an_engine = [] if host.max_size is None else [host.max_size]
    return [host.provisioner, host.host, *memory, host.cpu_cores, host.workers, *of_an_engine]


def _host_of(columns: Sequence[Any]) -> Host:
    provisioner, name, memory_gb, memory_used_gb, workers_gb, cpu_cores, workers, *max_size = columns
    return Host(
        provisioner=provisioner,
        host=name,
        size=0,
        usual_size=0,
        memory_gb=memory_gb,
        memory_used_gb=memory_used_gb,
        cpu_cores=cpu_cores,
        workers=workers,
        workers_gb=workers_gb,
        max_size=max_size[0] if max_size else None,
    )


def _policy_of(record: Mapping[str, Any]) -> ScalingPolicy:
    idle = IdlePolicy(**_fields_of(IdlePolicy, record["spare"]))
    # What the rule did before it had these fields.
    former = {"keeps_ready": False, "awaits_others": False, "size_step": 0.0}
    others = {"idle": idle, "is_fixed": record.get("fixed", False)}
    return ScalingPolicy(**{**former, **_fields_of(ScalingPolicy, record), **others})


def _fields_of(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The stored values that are still fields of the class."""
    return {field.name: record[field.name] for field in fields(kind) if field.name in record}


def _members_of(roster: Mapping[str, Any], agents: str, busy: str) -> list[Member]:
    sets = [frozenset(map(AgentType, able)) for able in roster["sets"]]
    columns = zip(roster["ids"], roster["able"], roster["memory_gb"], roster["cpu_cores"], agents, busy, strict=True)
    return [
        Member(
            worker_id=WorkerId(UUID(worker_id)),
            capabilities=None if able is None else sets[able],
            assigned_agent=_AGENTS[letter],
            busy=flag == "1",
            memory_gb=memory,
            cpu_cores=cores,
        )
        for worker_id, able, memory, cores, letter, flag in columns
    ]


def _by_agent(record: Mapping[str, Any]) -> dict[AgentType, Any]:
    return {AgentType(agent): value for agent, value in record.items()}
