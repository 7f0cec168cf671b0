"""A decision in writing: what is kept of its inputs and its outcome, and the shape in which it is shown.

What is kept is short and canonical: sorted keys, no blanks, the workers as columns. Their long part (ids, abilities,
sizes), the roster, is kept apart, since most decisions have the roster of the one before.
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
from app.scaling.rules.decision import Decision, Inputs, Member, SetAside, resolve
from app.scaling.rules.demand import Waiting
from app.scaling.rules.idle import Spare, SparePolicy
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot
from app.workers.rules.assignment import Assignment, assignment
from app.workers.rules.hosts import Cap

# One letter a worker. They are written down, so they stay whatever becomes of the names.
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
    """The one text of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def roster(members: Sequence[Member]) -> str:
    """Who the workers are: what seldom changes of them."""
    return _roster(tuple([(m.worker_id, m.capabilities, m.memory_gb, m.cpu_cores) for m in members]))


# The last one is that of most decisions.
@lru_cache(maxsize=1)
def _roster(members: Sequence[tuple[WorkerId, frozenset[AgentType] | None, float | None, float | None]]) -> str:
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


def inputs_text(inputs: Inputs) -> str:
    """The inputs without the roster."""
    return canonical(
        {
            "at": inputs.at.astimezone(UTC).isoformat(),
            "config_version": inputs.config_version,
            "mode": inputs.mode,
            "policy": asdict(inputs.policy),
            "snapshot": _snapshot(inputs.snapshot),
            "assigned": "".join([_LETTERS[m.assigned] for m in inputs.members]),
            "busy": "".join(["1" if m.busy else "0" for m in inputs.members]),
            "loads": {agent: [load.work_seconds, load.oldest_age_seconds] for agent, load in inputs.loads.items()},
            "weights": dict(inputs.weights),
            "previous_weights": dict(inputs.previous_weights),
            "weight_reasons": dict(inputs.weight_reasons),
            "limits": asdict(inputs.limits),
            "set_aside": [[aside.agent_type, aside.tasks, aside.why] for aside in inputs.set_aside],
            "first_new": str(inputs.first_new),
            "new_capabilities": sorted(inputs.new_capabilities),
            "may_move": inputs.may_move,
            "provisions": inputs.provisions,
            "step": inputs.step,
            "quality_gains": dict(inputs.quality_gains),
            "notes": list(inputs.notes),
        }
    )


def inputs_of(roster_text: str, text: str) -> Inputs:
    """The inputs that were kept; what was not known yet when they were kept has its default."""
    kept = json.loads(text)
    return Inputs(
        at=datetime.fromisoformat(kept["at"]),
        config_version=kept["config_version"],
        mode=Mode(kept["mode"]),
        policy=_policy_of(kept["policy"]),
        snapshot=_snapshot_of(kept["snapshot"]),
        members=_members_of(json.loads(roster_text), kept["assigned"], kept["busy"]),
        loads={
            AgentType(agent): Load(work_seconds=work, oldest_age_seconds=age)
            for agent, (work, age) in kept["loads"].items()
        },
        weights=_by_agent(kept["weights"]),
        previous_weights=_by_agent(kept["previous_weights"]),
        weight_reasons=_by_agent(kept["weight_reasons"]),
        limits=LimitsConfig(**_known(LimitsConfig, kept["limits"])),
        set_aside=[SetAside(agent_type=AgentType(a), tasks=tasks, why=why) for a, tasks, why in kept["set_aside"]],
        first_new=UUID(kept["first_new"]),
        new_capabilities=tuple(map(AgentType, kept["new_capabilities"])),
        may_move=kept["may_move"],
        provisions=kept["provisions"],
        step=DegradationStep(kept.get("step", DegradationStep.NONE)),
        quality_gains=_by_agent(kept.get("quality_gains", {})),
        notes=kept["notes"],
    )


def outcome(decision: Decision, inputs: Inputs) -> dict[str, Any]:
    """What is kept of a decision: all of its shape, the workers by letter in the order of the roster and the new."""
    plan = decision.plan
    return {
        "timestamp": plan.at.astimezone(UTC).isoformat(),
        "decision_type": decision.decision_type,
        "current_workers": plan.current,
        "target_workers": plan.target,
        "agent_weight_adjustments": {
            weight_name(agent): {"previous_weight": before, "new_weight": after, "reason": _reweighing(inputs, agent)}
            for agent, (before, after) in decision.reweighted.items()
        },
        "allocation": _allocation(decision, inputs),
        "reasons": list(decision.reasons),
        "clamps": [{"limit": c.limit, "before": c.before, "after": c.after} for c in plan.clamps],
        "need": plan.need,
        "start": plan.start,
        "remove_idle": plan.remove_idle,
        "drain_busy": plan.drain_busy,
        "new_workers": [str(worker_id) for worker_id in decision.new],
        "moved_workers": len(decision.moved),
        "bottleneck_agent": weight_name(decision.bottleneck) if decision.bottleneck else None,
        "mode": inputs.mode,
        "config_version": inputs.config_version,
        "decide_again_after_seconds": plan.decide_again_after_seconds,
    }


def replayed(roster_text: str, text: str) -> str:
    """The outcome that the kept inputs have today, as canonical text."""
    inputs = inputs_of(roster_text, text)
    return canonical(outcome(resolve(inputs), inputs))


def shown(kept: Mapping[str, Any], roster_text: str) -> dict[str, Any]:
    """A decision in the shape of the specification, and what else is known of it."""
    told = dict(kept)
    allocation = told.pop("allocation")
    told["resource_allocation"] = resource_allocation(allocation, roster_text, kept["new_workers"])
    told["sizes"] = allocation["sizes"]
    return told


def resource_allocation(
    allocation: Mapping[str, Any], roster_text: str, new: Sequence[str]
) -> dict[str, dict[str, str | float]]:
    """Everybody's agent, memory and cores by the worker's id."""
    ids = [*json.loads(roster_text)["ids"], *new]
    sizes = allocation["sizes"]
    own = {place: (memory, cores) for place, memory, cores in allocation["own"]}
    shown = {}
    for place, (worker_id, letter) in enumerate(zip(ids, allocation["agents"], strict=True)):
        agent = _AGENTS[letter]
        if agent is not None:
            usual = sizes[weight_name(agent)]
            memory, cores = own.get(place, (usual["memory_gb"], usual["cpu_cores"]))
            shown[worker_id] = {"assigned_agent": weight_name(agent), "memory_gb": memory, "cpu_cores": cores}
    return shown


def _allocation(decision: Decision, inputs: Inputs) -> dict[str, Any]:
    ids = [*(m.worker_id for m in inputs.members), *decision.new]
    assignments = [decision.assignments.get(worker_id) for worker_id in ids]
    usual: dict[AgentType | None, Assignment] = {
        agent: assignment(agent, limits) for agent, (limits, _) in decision.sizes.items()
    }
    return {
        "agents": "".join([_LETTERS[decided.agent if decided else None] for decided in assignments]),
        "sizes": {
            weight_name(agent): {
                "memory_gb": limits.memory_gb,
                "cpu_cores": limits.cpu_cores,
                "compute_seconds": limits.compute_seconds,
                "reason": reason,
            }
            for agent, (limits, reason) in decision.sizes.items()
        },
        # Those that have less than the workers of their agent get.
        "own": [
            [place, decided.memory_gb, decided.cpu_cores]
            for place, decided in enumerate(assignments)
            if decided is not None and decided != usual[decided.agent]
        ],
    }


def _reweighing(inputs: Inputs, agent: AgentType) -> str:
    return inputs.weight_reasons.get(agent) or f"version {inputs.config_version} of the configuration"


def _snapshot(seen: ScalingSnapshot) -> dict[str, Any]:
    waiting = seen.waiting
    return {
        "idle": seen.idle,
        "busy": seen.busy,
        "starting": list(seen.starting),
        "draining": seen.draining,
        "waiting": None if waiting is None else [[w.tasks, w.work_seconds, w.oldest_age_seconds] for w in waiting],
        "spare": [[spare.seconds, spare.idle] for spare in seen.spare],
        "cpu": seen.cpu,
        "start_seconds": seen.start_seconds,
        "caps": [[cap.resource, cap.workers] for cap in seen.caps],
        "usual": seen.usual,
        "running_mean_seconds": seen.running_mean_seconds,
    }


def _snapshot_of(kept: Mapping[str, Any]) -> ScalingSnapshot:
    waiting = kept["waiting"]
    groups = [Waiting(tasks=t, work_seconds=w, oldest_age_seconds=a) for t, w, a in waiting or ()]
    return ScalingSnapshot(
        idle=kept["idle"],
        busy=kept["busy"],
        starting=kept["starting"],
        draining=kept["draining"],
        waiting=None if waiting is None else groups,
        spare=[Spare(seconds=seconds, idle=idle) for seconds, idle in kept["spare"]],
        cpu=kept["cpu"],
        start_seconds=kept["start_seconds"],
        caps=[Cap(resource=resource, workers=workers) for resource, workers in kept["caps"]],
        usual=kept["usual"],
        running_mean_seconds=kept.get("running_mean_seconds"),
    )


def _policy_of(kept: Mapping[str, Any]) -> ScalingPolicy:
    spare = SparePolicy(**_known(SparePolicy, kept["spare"]))
    return ScalingPolicy(**{**_known(ScalingPolicy, kept), "spare": spare})


def _known(kind: type, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the class still knows of what was kept."""
    return {field.name: kept[field.name] for field in fields(kind) if field.name in kept}


def _members_of(kept: Mapping[str, Any], assigned: str, busy: str) -> list[Member]:
    sets = [frozenset(map(AgentType, able)) for able in kept["sets"]]
    columns = zip(kept["ids"], kept["able"], kept["memory_gb"], kept["cpu_cores"], assigned, busy, strict=True)
    return [
        Member(
            worker_id=WorkerId(UUID(worker_id)),
            capabilities=None if able is None else sets[able],
            assigned=_AGENTS[letter],
            busy=flag == "1",
            memory_gb=memory,
            cpu_cores=cores,
        )
        for worker_id, able, memory, cores, letter, flag in columns
    ]


def _by_agent(kept: Mapping[str, Any]) -> dict[AgentType, Any]:
    return {AgentType(agent): value for agent, value in kept.items()}
