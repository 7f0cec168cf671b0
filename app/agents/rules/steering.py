"""Steering of the weights: to what people ordered, then to what the agents earn, always in the same small steps.

A command or a change of the configuration sets a new base; the weights go there first, and from then on results move
them around it. An override takes precedence until it expires. No two steps are closer than the policy says, and none is
larger, whoever ordered it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from app.agents.rules.weights import (
    Adjustment,
    AgentScore,
    WeightPlan,
    WeightPolicy,
    WeightSnapshot,
    adjust,
    earned_target,
    pause_reason,
    step_towards,
)
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.kernel.shares import Weights, raise_to_floor

# Below this two weights are the same number.
_EPSILON = 1e-9


class Heading(StrEnum):
    """Ordered: to the base itself. Returning: to what the agents have earned, at once. Earning: as results come in."""

    ORDERED = "ordered"
    RETURNING = "returning"
    EARNING = "earning"


class Cause(StrEnum):
    """What has changed the weights, or where they are headed."""

    CONFIG = "config"
    COMMAND = "command"
    OVERRIDE = "override"
    RELEASE = "release"
    EXPIRY = "expiry"
    TICK = "tick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Weights that take precedence until `expires_at`, whatever the agents achieve."""

    weights: Weights
    expires_at: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringState:
    """The weights in force, and where they are headed.

    `configured_weights` are those of the configuration when last read; `base` are these, or those commanded since.
    `stepped_at` is the time of the last step, and `results` the number of results ever counted by then.
    """

    current: Weights
    configured_weights: Weights
    base: Weights
    heading: Heading = Heading.EARNING
    override: Override | None = None
    stepped_at: datetime | None = None
    results: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringSnapshot:
    """The configured weights, the scores of the agents, and the number of results ever counted, at this moment."""

    configured_weights: Weights
    scores: Mapping[AgentType, AgentScore]
    results: int
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringStep:
    """The state after one turn; without adjustments the weights stay, and the reason says why."""

    state: SteeringState
    cause: Cause
    adjustments: Mapping[AgentType, Adjustment]
    reason: str


def policy_in(mode: Mode) -> WeightPolicy:
    """The policy in a mode; trusted testers get smaller steps and longer pauses, as for their pool."""
    # Development adapts like production: the specification fixes its pool and says nothing of its weights.
    policy = WeightPolicy()
    return replace(policy, largest_step=0.25, least_seconds=300.0) if mode is Mode.TRUSTED_TESTER else policy


def complete_weights(named_weights: Weights, base: Weights) -> dict[AgentType, float]:
    """Weights of all agents: unnamed ones share the rest as in `base`. Raises ValueError if none is left or all 0."""
    total = sum(named_weights.values())
    unnamed_weights = {agent: weight for agent, weight in base.items() if agent not in named_weights}
    if total > 1 and unnamed_weights:
        raise ValueError(f"add up to {total:g}, which leaves nothing for the agents that are not named")
    if total <= 0 and not unnamed_weights:
        raise ValueError("at least one weight must be above 0")
    factor = (1 - total) / sum(unnamed_weights.values()) if unnamed_weights else 0.0
    return {**dict(named_weights), **{agent: weight * factor for agent, weight in unnamed_weights.items()}}


def initial_state(configured_weights: Weights) -> SteeringState:
    """The state of a new system: the configured weights."""
    return SteeringState(current=configured_weights, configured_weights=configured_weights, base=configured_weights)


def command(state: SteeringState, weights: Weights, policy: WeightPolicy) -> SteeringState:
    """Head for these weights, which become the base; the same command again changes nothing."""
    base = raise_to_floor(weights, policy.floor)
    is_same = _distance(base, state.base) <= _EPSILON
    return state if is_same else replace(state, base=base, heading=Heading.ORDERED)


def override(state: SteeringState, new_override: Override, policy: WeightPolicy) -> SteeringState:
    """Head for the weights of the override until it expires."""
    return replace(state, override=replace(new_override, weights=raise_to_floor(new_override.weights, policy.floor)))


def release(state: SteeringState) -> SteeringState:
    """End the override and head back: to the earned weights, or to the command that it interrupted."""
    # Returning, not earning: the way back needs no new results, as the override was not earned by any.
    heading = Heading.ORDERED if state.heading is Heading.ORDERED else Heading.RETURNING
    return replace(state, override=None, heading=heading) if state.override else state


def current_target(state: SteeringState, scores: Mapping[AgentType, AgentScore], policy: WeightPolicy) -> Weights:
    """The weights that the state heads for, with these scores."""
    if state.override is not None:
        return state.override.weights
    return state.base if state.heading is Heading.ORDERED else earned_target(state.base, scores, policy)


def advance(
    previous: SteeringState, snapshot: SteeringSnapshot, policy: WeightPolicy, cause: Cause = Cause.TICK
) -> SteeringStep:
    """Apply an expiry or a new configuration, then take one step if one is due."""
    state, changed_cause = _apply_changes(previous, snapshot)
    plan = _step(state, snapshot, policy)
    if plan.adjustments:
        state = replace(state, current=plan.weights, stepped_at=snapshot.now, results=snapshot.results)
    # On arrival results take over; those counted on the way were earned under other weights and are not new any more.
    if _has_arrived(state, snapshot, policy):
        state = replace(state, heading=Heading.EARNING, results=snapshot.results)
    return SteeringStep(state=state, cause=changed_cause or cause, adjustments=plan.adjustments, reason=plan.reason)


def _apply_changes(state: SteeringState, snapshot: SteeringSnapshot) -> tuple[SteeringState, Cause | None]:
    if state.override is not None and state.override.expires_at <= snapshot.now:
        return _apply_configuration(release(state), snapshot)[0], Cause.EXPIRY
    return _apply_configuration(state, snapshot)


def _apply_configuration(state: SteeringState, snapshot: SteeringSnapshot) -> tuple[SteeringState, Cause | None]:
    """Let newly configured weights replace the base, and with it any command before."""
    if _distance(state.configured_weights, snapshot.configured_weights) <= _EPSILON:
        return state, None
    weights = snapshot.configured_weights
    return replace(state, configured_weights=weights, base=weights, heading=Heading.ORDERED), Cause.CONFIG


def _step(state: SteeringState, snapshot: SteeringSnapshot, policy: WeightPolicy) -> WeightPlan:
    # A step far ahead was made before the clock was set back, and nobody waits until it has come there again.
    since = None if state.stepped_at is None else abs((snapshot.now - state.stepped_at).total_seconds())
    weight_snapshot = WeightSnapshot(
        base=state.base,
        current=state.current,
        scores=snapshot.scores,
        new_results=snapshot.results - state.results,
        seconds_since_last=since,
    )
    if state.override is None and state.heading is Heading.EARNING:
        return adjust(weight_snapshot, policy)
    if since is not None and since < policy.least_seconds:
        return WeightPlan(weights=state.current, adjustments={}, reason=pause_reason(since, policy))
    # An order is carried out to the last digit, or the last small step would be missing for ever.
    exact = replace(policy, least_change=_EPSILON)
    target = current_target(state, snapshot.scores, policy)
    return step_towards(target, weight_snapshot, exact, _order_reason(state))


def _order_reason(state: SteeringState) -> str | None:
    if state.override is not None:
        return "overridden by hand"
    return "ordered" if state.heading is Heading.ORDERED else None


def _has_arrived(state: SteeringState, snapshot: SteeringSnapshot, policy: WeightPolicy) -> bool:
    # An override holds the weights where it has brought them, until it ends.
    if state.override is not None or state.heading is Heading.EARNING:
        return False
    return _distance(state.current, current_target(state, snapshot.scores, policy)) <= _EPSILON


def _distance(first: Weights, second: Weights) -> float:
    return max(abs(first[agent] - second[agent]) for agent in AgentType)
