"""Bodies of orders about the weights, and of the weights in force."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from app.admin.rules.config import weight_name, weights_by_name
from app.admin.service.config import Effective
from app.agents.rules.steering import Cause, Heading
from app.agents.rules.weights import WeightPolicy
from app.agents.store.weights import Version
from app.http.fields import AgentName, Body, Moment, Sentence, entries
from app.kernel.agents import AgentType
from app.kernel.shares import Weights

Share = Annotated[float, Field(ge=0, le=1)]


def _check_unique(value: Any, check: ValidatorFunctionWrapHandler) -> dict[AgentType, float]:
    # An agent has several names: of two shares for one agent the order of the keys would decide.
    shares: dict[AgentType, float] = check(value)
    if len(shares) < len(value):
        raise ValueError("must name each agent once")
    return shares


Shares = Annotated[
    dict[AgentName, Share],
    Field(min_length=1, max_length=2 * len(AgentType)),
    WrapValidator(_check_unique),
    entries(2 * len(AgentType)),
]
_WEEK = 7 * 86_400


class CommandIn(Body):
    """Where the weights are to go."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"weights": {"reflection": 0.25}, "reason": "reviews lag behind"}]}
    )

    weights: Shares = Field(description="agents that are not named share the rest in their present proportions")
    reason: Sentence = ""


class OverrideIn(CommandIn):
    """Where the weights are to go for a while."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"weights": {"ranking": 0.5}, "reason": "a deadline", "expires_in_seconds": 1800}]
        }
    )

    expires_in_seconds: float = Field(ge=1, le=_WEEK, description="from when it is accepted")


class WeightAdjustmentOut(BaseModel):
    """How one weight changed, and where it is headed."""

    previous_weight: float
    new_weight: float
    target: float
    reason: str


class OverrideOut(BaseModel):
    """Weights that are wanted for a while."""

    weights: dict[str, float]
    expires_at: Moment
    reason: str


class WeightVersionOut(BaseModel):
    """One change of the weights, or of where they are headed."""

    version: int
    at: Moment | None = Field(description="null while nothing has changed yet")
    cause: Cause
    changed_by: str = Field(description="id of the key that was shown; `convener` where nobody asked for it")
    reason: str
    weights: dict[str, float] = Field(description="in force from then on; they sum to 1, and none is under 0.02")
    target: dict[str, float] = Field(description="where they are headed")
    heading: Heading = Field(description="earning: results move them; ordered and returning: on the way, without any")
    override: OverrideOut | None
    agent_weight_adjustments: dict[str, WeightAdjustmentOut] = Field(description="empty where only the heading changed")


class WeightRuleOut(BaseModel):
    """What holds for every step, in the mode that is on."""

    floor: float
    largest_step: float = Field(description="the most that a weight changes by, as a share of what it was")
    least_results: int = Field(description="new results that a step takes, unless it was ordered")
    least_seconds: float = Field(description="between two steps")


class WeightsOut(WeightVersionOut):
    """The weights in force."""

    shares: dict[str, float] = Field(description="of the leases: the weights, under the step of degradation")
    configured: dict[str, float] = Field(description="what the configuration says")
    base: dict[str, float] = Field(description="that, or what was commanded since; results move the weights around it")
    agent_weight_adjustments: dict[str, WeightAdjustmentOut] = Field(
        description="what the last step has changed, and why"
    )
    stepped_at: Moment | None = Field(description="when that was")
    rule: WeightRuleOut


class WeightHistoryPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[WeightVersionOut]
    next: int | None


def weights_out(version: Version | None, shares: Weights, config: Effective, policy: WeightPolicy) -> WeightsOut:
    """The weights in force and their shares; version None: as configured."""
    content = version_fields(version) if version else _initial_fields(config)
    base = version.state.base if version else config.weights
    return WeightsOut(
        **content,
        shares=weights_by_name(shares),
        configured=weights_by_name(config.weights),
        base=weights_by_name(base),
        stepped_at=version.state.stepped_at if version else None,
        rule=WeightRuleOut.model_validate(policy, from_attributes=True),
    )


def version_fields(version: Version) -> dict[str, Any]:
    """The fields of a version, by their names in the body."""
    state, override = version.state, version.state.override
    return {
        **{name: getattr(version, name) for name in ("version", "at", "cause", "changed_by", "reason")},
        "weights": weights_by_name(state.current),
        "target": weights_by_name(version.target),
        "heading": state.heading,
        "override": override
        and OverrideOut(
            weights=weights_by_name(override.weights), expires_at=override.expires_at, reason=override.reason
        ),
        "agent_weight_adjustments": {
            weight_name(agent): WeightAdjustmentOut.model_validate(adjustment, from_attributes=True)
            for agent, adjustment in version.adjustments.items()
        },
    }


def _initial_fields(config: Effective) -> dict[str, Any]:
    origin = {"version": 0, "at": None, "cause": Cause.CONFIG, "changed_by": "convener", "reason": "as configured"}
    shares = {"weights": weights_by_name(config.weights), "target": weights_by_name(config.weights)}
    return {**origin, **shares, "heading": Heading.EARNING, "override": None, "agent_weight_adjustments": {}}
