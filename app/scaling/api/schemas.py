"""Bodies of decisions on the pool: the shape of the specification first, then what else is known of them."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.http.fields import Body, MergePatch, Moment
from app.kernel.modes import Mode
from app.scaling.rules import record as records
from app.scaling.rules.target import DecisionType
from app.scaling.service import history as service
from app.scaling.store.decisions import StoredDecision

_WORKER = "01a20ed2-096e-7921-b9e4-fc4163bbc612"
_TIME = "2026-11-24T12:00:00+00:00"
_REASON = "500 tasks of about 10,000 s of work wait; to start each within 24 s takes 510 workers"
_CLAMP = {"limit": "at most +100% in one step", "before": 510, "after": 20}
_EXAMPLE: dict[str, Any] = {
    "timestamp": _TIME,
    "decision_type": "scale_up",
    "current_workers": 10,
    "target_workers": 20,
    "agent_weight_adjustments": {},
    "id": 42,
    "reasons": [_REASON, "at most +100% in one step: 20 instead of 510"],
    "clamps": [_CLAMP],
    "need": 510,
    "start": 10,
    "classes": {},
    "remove_idle": 0,
    "drain_busy": 0,
    "new_workers": [_WORKER],
    "moved_workers": 10,
    "bottleneck_agent": "generation_agent",
    "mode": "production",
    "config_version": 1,
    "decide_again_after_seconds": 2.0,
}


class ScalingAdjustmentOut(BaseModel):
    """A weight that differs from that of the decision before."""

    previous_weight: float
    new_weight: float
    reason: str


class AllocationOut(BaseModel):
    """What a worker prefers, and what its tasks may use."""

    assigned_agent: str
    memory_gb: float
    cpu_cores: float


class ClampOut(BaseModel):
    """A limit that changed the target."""

    limit: str
    before: int
    after: int


class ClassSizeOut(BaseModel):
    """The size of a class of workers: a part of the whole."""

    current_workers: int
    target_workers: int
    need: int | None
    start: int
    remove_idle: int
    drain_busy: int
    reasons: list[str]


class ScalingBriefOut(BaseModel):
    """A decision without its workers."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    timestamp: Moment = Field(description="UTC")
    decision_type: DecisionType
    current_workers: int = Field(description="starting ones included, those on their way out not")
    target_workers: int
    agent_weight_adjustments: dict[str, ScalingAdjustmentOut]
    id: int | None = Field(description="null where nothing was decided but supposed")
    reasons: list[str]
    clamps: list[ClampOut] = Field(description="tightest last")
    need: int | None = Field(description="workers with which every task starts in time; null while nothing waits")
    start: int
    remove_idle: int
    drain_busy: int = Field(description="busy workers that go after their task: only above the maximum")
    classes: dict[str, ClassSizeOut] = Field(
        default_factory=dict, description="by their names; the figures above, but for both sizes, are of the usual pool"
    )
    new_workers: list[str]
    moved_workers: int
    bottleneck_agent: str | None
    mode: Mode
    config_version: int
    decide_again_after_seconds: float


class RejectedOut(BaseModel):
    """Something else that could have been decided, and why it was not."""

    alternative: str
    because: str


class ExplanationOut(BaseModel):
    """A decision in plain words."""

    seen: list[str]
    drove: list[str]
    clamps: list[str]
    rejected: list[RejectedOut]


class SizeOut(BaseModel):
    """What each task of an agent may use, and why."""

    memory_gb: float
    cpu_cores: float
    compute_seconds: float
    reason: str


class ScalingDecisionOut(ScalingBriefOut):
    """A decision."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                _EXAMPLE
                | {
                    "resource_allocation": {
                        _WORKER: {"assigned_agent": "generation_agent", "memory_gb": 1.0, "cpu_cores": 0.5}
                    },
                    "sizes": {
                        "generation_agent": {
                            "memory_gb": 1.0,
                            "cpu_cores": 0.5,
                            "compute_seconds": 600.0,
                            "reason": "base: 500 s of work wait for each worker",
                        }
                    },
                    "explanation": None,
                    "inputs": None,
                }
            ]
        }
    )

    resource_allocation: dict[str, AllocationOut] = Field(description="by the id of the worker")
    sizes: dict[str, SizeOut]
    explanation: ExplanationOut | None
    inputs: dict[str, Any] | None = Field(description="all that it depends on, where asked for")


class ScalingDecisionPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[ScalingBriefOut]
    next: int | None


class DifferenceOut(BaseModel):
    """A value that comes out differently today."""

    path: str
    before: Any
    after: Any


class ScalingReplayOut(BaseModel):
    """Whether the same inputs have the same outcome, to the byte."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": 42, "identical": True, "differences": []}]})

    id: int
    identical: bool
    differences: list[DifferenceOut]


class ReplayManyIn(Body):
    """Which decisions to replay."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"after": 0, "limit": 50}]})

    after: int = Field(0, ge=0, le=2**63 - 1, description="only those above this id")
    limit: int = Field(50, ge=1, le=100)


class ReplayManyOut(BaseModel):
    """What came of it; pass `next` as `after` for what follows."""

    replayed: int
    different: list[ScalingReplayOut]
    next: int | None


class WhatIfIn(Body):
    """What is to be different; what is left out stays as it was."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"config": {"worker_pool": {"max_workers": 15}}},
                {"mode": "trusted_tester"},
                {"wait_target_seconds": 60},
            ]
        },
    )

    decision_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(None, description="the last one by default")
    config: MergePatch | None = Field(None, description="a JSON merge patch (RFC 7396) of the configuration then")
    mode: Mode | None = None
    wait_target_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None


class WhatIfOut(BaseModel):
    """Both decisions, from the same view of the world."""

    decided: ScalingBriefOut
    supposed: ScalingDecisionOut
    differences: list[DifferenceOut]


class RecommendationOut(BaseModel):
    """Flat numbers for an autoscaler that reads one by its name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "target_workers": 20,
                    "current_workers": 10,
                    "decision_id": 42,
                    "decision_type": "scale_up",
                    "decided_at": _TIME,
                    "waiting_tasks": 500,
                    "waiting_seconds": 10_000.0,
                    "bottleneck_agent": "generation",
                    "reason": _REASON,
                }
            ]
        }
    )

    target_workers: int
    current_workers: int
    decision_id: int | None
    decision_type: DecisionType
    decided_at: Moment | None
    waiting_tasks: int
    waiting_seconds: float = Field(description="of work that waits or runs, as estimated")
    bottleneck_agent: str | None
    reason: str


def brief(decision: StoredDecision) -> ScalingBriefOut:
    """A decision without its workers, for lists."""
    return ScalingBriefOut.model_validate(json.loads(decision.output) | {"id": decision.id})


def whole(decision: StoredDecision, *, inputs: bool) -> ScalingDecisionOut:
    """A decision with its workers, its explanation, and its inputs where asked for."""
    document = json.loads(decision.inputs) | {"roster": json.loads(decision.roster)} if inputs else None
    explanation = service.explanation(decision)
    words = ExplanationOut(
        seen=list(explanation.observations),
        drove=list(explanation.reasons),
        clamps=list(explanation.limits),
        rejected=[RejectedOut.model_validate(item, from_attributes=True) for item in explanation.alternatives],
    )
    outcome = records.published_outcome(json.loads(decision.output), decision.roster)
    return ScalingDecisionOut(**outcome, id=decision.id, explanation=words, inputs=document)


def hypothetical(outcome: Mapping[str, Any]) -> ScalingDecisionOut:
    """A decision that was computed and not made."""
    return ScalingDecisionOut(**outcome, id=None, explanation=None, inputs=None)
