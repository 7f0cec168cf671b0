"""Where the weights are headed: to what people ordered, then to what the agents earn, always in the same small steps.

A command or a change of the configuration sets a new base; the weights go there first, and from then on results move
them around it. An override goes before all that until it expires. No two changes are closer than the policy says, and
none is larger, whoever wanted it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from app.agents.rules.weights import (
    Adjustment,
    Standing,
    WeightPlan,
    WeightPolicy,
    WeightSnapshot,
    adjust,
    target,
    towards,
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
    """Weights that somebody wants for a while, whatever the agents achieve."""

    weights: Weights
    expires_at: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The weights in force and where they are headed.

    `configured` is what the configuration said when last seen, `base` that or what was commanded since. `stepped_at` is
    when the weights last changed, `results` how many results had been counted by then.
    """

    current: Weights
    configured: Weights
    base: Weights
    heading: Heading = Heading.EARNING
    override: Override | None = None
    stepped_at: datetime | None = None
    results: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentView:
    """What is known now: the configured weights, what the agents achieve, and how many results were ever counted."""

    configured: Weights
    standings: Mapping[AgentType, Standing]
    results: int
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringStep:
    """One turn of the course; without adjustments the weights stay, and the reason says why."""

    course: Course
    cause: Cause
    adjustments: Mapping[AgentType, Adjustment]
    reason: str


def policy_in(mode: Mode) -> WeightPolicy:
    """The rule of a mode. Trusted testers get the shorter steps and longer pauses that their pool has as well.

    Development adapts like production: the specification fixes its pool and says nothing of its weights.
    """
    policy = WeightPolicy()
    return replace(policy, largest_step=0.25, least_seconds=300.0) if mode is Mode.TRUSTED_TESTER else policy


def completed(named: Weights, base: Weights) -> dict[AgentType, float]:
    """Weights of all agents: those that are not named share what is left in the proportions of `base`.

    Raises ValueError where nothing is left for them, or nothing is given at all.
    """
    total, others = sum(named.values()), {agent: weight for agent, weight in base.items() if agent not in named}
    if total > 1 and others:
        raise ValueError(f"add up to {total:g}, which leaves nothing for the agents that are not named")
    if total <= 0 and not others:
        raise ValueError("at least one weight must be above 0")
    left = (1 - total) / sum(others.values()) if others else 0.0
    return {**dict(named), **{agent: weight * left for agent, weight in others.items()}}


def outset(configured: Weights) -> Course:
    """Where a new system begins."""
    return Course(current=configured, configured=configured, base=configured)


def commanded(course: Course, weights: Weights, policy: WeightPolicy) -> Course:
    """Headed for these weights."""
    base = raise_to_floor(weights, policy.floor)
    same = _distance(base, course.base) <= _EPSILON
    return course if same else replace(course, base=base, heading=Heading.ORDERED)


def overridden(course: Course, override: Override, policy: WeightPolicy) -> Course:
    """Headed for the weights of the override, until it expires."""
    return replace(course, override=replace(override, weights=raise_to_floor(override.weights, policy.floor)))


def released(course: Course) -> Course:
    """Without an override, and on the way back."""
    back = Heading.ORDERED if course.heading is Heading.ORDERED else Heading.RETURNING
    return replace(course, override=None, heading=back) if course.override else course


def goal(course: Course, standings: Mapping[AgentType, Standing], policy: WeightPolicy) -> Weights:
    """The weights that the course leads to, as things stand."""
    if course.override is not None:
        return course.override.weights
    return course.base if course.heading is Heading.ORDERED else target(course.base, standings, policy)


def advance(before: Course, sight: AgentView, policy: WeightPolicy, cause: Cause = Cause.TICK) -> SteeringStep:
    """Take up what has changed, and make one step if one is due."""
    course, found = _taken_up(before, sight)
    plan = _step(course, sight, policy)
    after = course
    if plan.adjustments:
        after = replace(course, current=plan.weights, stepped_at=sight.now, results=sight.results)
    if _has_arrived(after, sight, policy):
        after = replace(after, heading=Heading.EARNING, results=sight.results)
    return SteeringStep(course=after, cause=found or cause, adjustments=plan.adjustments, reason=plan.reason)


def _taken_up(course: Course, sight: AgentView) -> tuple[Course, Cause | None]:
    if course.override is not None and course.override.expires_at <= sight.now:
        return _reconfigured(released(course), sight)[0], Cause.EXPIRY
    return _reconfigured(course, sight)


def _reconfigured(course: Course, sight: AgentView) -> tuple[Course, Cause | None]:
    """The configuration's weights take the place of what was commanded before, once they change."""
    if _distance(course.configured, sight.configured) <= _EPSILON:
        return course, None
    wanted = sight.configured
    return replace(course, configured=wanted, base=wanted, heading=Heading.ORDERED), Cause.CONFIG


def _step(course: Course, sight: AgentView, policy: WeightPolicy) -> WeightPlan:
    since = None if course.stepped_at is None else max(0.0, (sight.now - course.stepped_at).total_seconds())
    snapshot = WeightSnapshot(
        configured=course.base,
        current=course.current,
        standings=sight.standings,
        new_results=sight.results - course.results,
        seconds_since_last=since,
    )
    if course.override is None and course.heading is Heading.EARNING:
        return adjust(snapshot, policy)
    if since is not None and since < policy.least_seconds:
        reason = f"the last step was {since:.0f} s ago; {policy.least_seconds:.0f} s apart"
        return WeightPlan(weights=course.current, adjustments={}, reason=reason)
    # An order is carried out to the last digit.
    exact = replace(policy, least_change=_EPSILON)
    return towards(goal(course, sight.standings, policy), snapshot, exact, ordered=_ordered(course))


def _ordered(course: Course) -> str | None:
    if course.override is not None:
        return "overridden by hand"
    return "ordered" if course.heading is Heading.ORDERED else None


def _has_arrived(course: Course, sight: AgentView, policy: WeightPolicy) -> bool:
    if course.override is not None or course.heading is Heading.EARNING:
        return False
    return _distance(course.current, goal(course, sight.standings, policy)) <= _EPSILON


def _distance(one: Weights, other: Weights) -> float:
    return max(abs(one[agent] - other[agent]) for agent in AgentType)
