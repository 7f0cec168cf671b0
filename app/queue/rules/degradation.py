"""The ladder of degradation: work is reduced one step at a time while resources are short, and restored afterwards.

No step is permanent: it expires unless it is renewed, suspended agents keep the least weight, and deferred lanes are
served as soon as nothing else waits. The order of the steps is that of the wider system: evolution of low-ranked work,
depth, batch sizes, then all but generation and review.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority


class DegradationStep(IntEnum):
    """A step of the ladder; each includes those below it."""

    NONE = 0
    LOW_RANKED_EVOLUTION = 1
    DEPTH = 2
    BATCHES = 3
    ESSENTIALS = 4


class LadderMove(StrEnum):
    """What has changed the step."""

    UP = "up"
    DOWN = "down"
    EXPIRED = "expired"
    HELD = "held"
    RELEASED = "released"


TOP_STEP = max(DegradationStep)
MEANINGS: Mapping[DegradationStep, str] = {
    DegradationStep.NONE: "everything runs as usual",
    DegradationStep.LOW_RANKED_EVOLUTION: "evolution of low priority waits while other work does",
    DegradationStep.DEPTH: "agents are asked to go less deep",
    DegradationStep.BATCHES: "agents are asked to work in smaller batches",
    DegradationStep.ESSENTIALS: "only generation and review go on; all others have the least share",
}
_ESSENTIAL = frozenset({AgentType.GENERATION, AgentType.REFLECTION})
_LOW_RANKED = frozenset({Lane(agent_type=AgentType.EVOLUTION, priority=Priority.LOW)})
# The wider system names the steps but not the figures. Two levels are the least in which one can build on another.
_MAX_DEPTH = 2
_BATCH_FACTOR = 0.5
# Three turns of the duty, which undoes an expired step one at a time.
_EXPIRY_GRACE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Limits that handlers are asked to keep: levels of depth (None: any) and a factor on their usual batch size."""

    max_depth: int | None = None
    batch_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPolicy:
    """Thresholds, as shares of 1, and times in seconds: quick to step up, slow to step down.

    Alerts are raised at 80 % for five minutes; the ladder acts sooner and at a higher share. A resource must be `tight`
    for a minute to cost a step and `easy` for two to restore one, so the effect of a step shows before the next.
    """

    tight_share: float = 0.90
    easy_share: float = 0.75
    # One step of scaling adds a quarter of the pool anyway, so a smaller loss needs no degradation.
    tight_loss: float = 0.25
    easy_loss: float = 0.10
    up_after_seconds: float = 60.0
    down_after_seconds: float = 120.0
    # A step without strain ends after this time.
    expire_after_seconds: float = 300.0
    # The age at which an alert is raised for a waiting task: full use while nothing waits that long is good use.
    late_after_seconds: float = 600.0
    # A busy processor costs depth and batch sizes, never an agent: a large batch of work is no emergency.
    tolerable_top_step: DegradationStep = DegradationStep.BATCHES
    # Three turns of the duty: after a longer gap in the observations, no state counts as unbroken.
    blind_after_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strain:
    """Use of resources by name, as shares of 1, None where not measured; the lost share of the pool; the longest wait.

    Full use of `tolerable` resources counts only while work waits for long: a busy processor does what it is for.
    """

    resources: Mapping[str, float | None] = field(default_factory=dict)
    tolerable: frozenset[str] = frozenset({"cpu", "llm_permits"})
    capacity_lost: float = 0.0
    oldest_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderHold:
    """An operator's order to keep the ladder on its step; `by` is the id of an API key."""

    until: datetime
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The current step with its beginning, reason and expiry, which strain renews.

    Resources have been short since `tight_since`, or not short since `easy_since`, without a break.
    """

    step: DegradationStep = DegradationStep.NONE
    since: datetime
    expires_at: datetime | None = None
    reason: str = ""
    hold: LadderHold | None = None
    tight_since: datetime | None = None
    easy_since: datetime | None = None
    looked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The ladder after an observation, and the move that changed its step, if any."""

    ladder: Ladder
    move: LadderMove | None = None


def decide(ladder: Ladder, strain: Strain, policy: LadderPolicy, now: datetime) -> Decision:
    """Move at most one step, up or down, and never within the time that the last step needs to take effect."""
    # A hold is stronger than the rule, also while resources are short; nothing is observed meanwhile.
    if ladder.hold is not None:
        is_held = now < ladder.hold.until
        return Decision(ladder=ladder) if is_held else release_hold(ladder, "the hold is over", now, policy)
    current = _observe(ladder, strain, policy, now)
    is_below_limit = current.step < _highest_step(strain, policy)
    if is_below_limit and _has_lasted(current.tight_since, current.since, policy.up_after_seconds, now):
        return _move(current, LadderMove.UP, describe_shortage(strain, policy), policy, now)
    if current.step > DegradationStep.NONE and current.expires_at is not None and now >= current.expires_at:
        return _move(current, LadderMove.EXPIRED, _expiry_reason(strain, policy), policy, now)
    is_easy_for_long = _has_lasted(current.easy_since, current.since, policy.down_after_seconds, now)
    if current.step > DegradationStep.NONE and is_easy_for_long:
        reason = f"resources have been easy for {policy.down_after_seconds:.0f} s"
        return _move(current, LadderMove.DOWN, reason, policy, now)
    return Decision(ladder=current)


def hold_step(
    ladder: Ladder, step: DegradationStep, hold: LadderHold, reason: str, now: datetime, policy: LadderPolicy
) -> Decision:
    """Put the ladder on a step until the hold ends; from then on it moves by itself, step by step."""
    new = Ladder(
        step=step,
        since=ladder.since if step is ladder.step else now,
        expires_at=_expiry(step, policy, hold.until),
        reason=reason,
        hold=hold,
        looked_at=ladder.looked_at,
    )
    return Decision(ladder=new, move=LadderMove.HELD)


def release_hold(ladder: Ladder, reason: str, now: datetime, policy: LadderPolicy) -> Decision:
    """Let the ladder move by itself again; without a hold nothing changes."""
    if ladder.hold is None:
        return Decision(ladder=ladder)
    expires_at = _expiry(ladder.step, policy, now)
    return Decision(ladder=replace(ladder, hold=None, reason=reason, expires_at=expires_at), move=LadderMove.RELEASED)


def effective_step(ladder: Ladder, now: datetime) -> DegradationStep:
    """The step in force.

    One that expired a while ago counts as NONE although it is still stored: while the loops are down, no duty undoes
    it.
    """
    is_over = ladder.expires_at is not None and now >= ladder.expires_at + _EXPIRY_GRACE
    return DegradationStep.NONE if is_over else ladder.step


def advice(step: DegradationStep) -> Advice:
    """Limits for handlers at this step."""
    return Advice(
        max_depth=_MAX_DEPTH if step >= DegradationStep.DEPTH else None,
        batch_factor=_BATCH_FACTOR if step >= DegradationStep.BATCHES else 1.0,
    )


def suspended_agents(step: DegradationStep) -> frozenset[AgentType]:
    """The agent types whose weight falls to the least."""
    return frozenset(AgentType) - _ESSENTIAL if step >= DegradationStep.ESSENTIALS else frozenset()


def deferred_lanes(step: DegradationStep) -> frozenset[Lane]:
    """The lanes that are not served while a worker can run anything else."""
    return _LOW_RANKED if step >= DegradationStep.LOW_RANKED_EVOLUTION else frozenset()


def describe_shortage(strain: Strain, policy: LadderPolicy) -> str:
    """The short resources in words; empty when there are none."""
    names = _short_resources(strain, policy)
    words = [f"{strain.resources[name]:.0%} of {name.replace('_', ' ')} is used" for name in names]
    if _is_pool_short(strain, policy):
        words.append(f"{strain.capacity_lost:.0%} of the pool cannot be replaced")
    return "; ".join(words)


def _expiry_reason(strain: Strain, policy: LadderPolicy) -> str:
    """The reason for which a step is over that was not renewed, although something may be short that earns less."""
    lasted = f"for {policy.expire_after_seconds:.0f} s"
    if shortage := describe_shortage(strain, policy):
        return f"nothing that calls for this step was short {lasted}: {shortage}"
    return f"nothing was seen to be short {lasted}"


def _short_resources(strain: Strain, policy: LadderPolicy) -> list[str]:
    """Names of the resources that are short; the tolerable ones only while work waits for long."""
    is_late = strain.oldest_wait_seconds >= policy.late_after_seconds
    return [
        name
        for name, share in strain.resources.items()
        if share is not None and share >= policy.tight_share and (is_late or name not in strain.tolerable)
    ]


def _is_pool_short(strain: Strain, policy: LadderPolicy) -> bool:
    """Whether so much of the pool is lost that work waits for long."""
    is_late = strain.oldest_wait_seconds >= policy.late_after_seconds
    return strain.capacity_lost >= policy.tight_loss and is_late


def _highest_step(strain: Strain, policy: LadderPolicy) -> DegradationStep:
    """The highest step that the current shortage justifies."""
    if _is_pool_short(strain, policy) or set(_short_resources(strain, policy)) - strain.tolerable:
        return TOP_STEP
    return policy.tolerable_top_step


def _is_easy(strain: Strain, policy: LadderPolicy) -> bool:
    """Whether there is room again. Unmeasured resources are left out; where none is measured, the answer is no."""
    measured_shares = {name: share for name, share in strain.resources.items() if share is not None}
    is_late = strain.oldest_wait_seconds >= policy.late_after_seconds
    relevant = [share for name, share in measured_shares.items() if is_late or name not in strain.tolerable]
    is_pool_reduced = strain.capacity_lost >= policy.easy_loss and is_late
    return bool(measured_shares) and not is_pool_reduced and all(share < policy.easy_share for share in relevant)


def _observe(ladder: Ladder, strain: Strain, policy: LadderPolicy, now: datetime) -> Ladder:
    """The ladder with the periods of shortage and ease brought up to now; strain renews the step."""
    last_look = ladder.looked_at
    is_unbroken = last_look is not None and now - last_look <= timedelta(seconds=policy.blind_after_seconds)
    is_tight, is_easy = bool(describe_shortage(strain, policy)), _is_easy(strain, policy)
    renews = is_tight and ladder.step <= _highest_step(strain, policy)
    return replace(
        ladder,
        tight_since=((ladder.tight_since if is_unbroken else None) or now) if is_tight else None,
        easy_since=((ladder.easy_since if is_unbroken else None) or now) if is_easy else None,
        expires_at=_expiry(ladder.step, policy, now) if renews else ladder.expires_at,
        looked_at=now,
    )


def _expiry(step: DegradationStep, policy: LadderPolicy, start: datetime) -> datetime | None:
    return start + timedelta(seconds=policy.expire_after_seconds) if step > DegradationStep.NONE else None


def _has_lasted(start: datetime | None, changed_at: datetime, seconds: float, now: datetime) -> bool:
    """Whether a period has lasted so long since the last change of the step: what came before it does not count."""
    return start is not None and now - max(start, changed_at) >= timedelta(seconds=seconds)


def _move(ladder: Ladder, move: LadderMove, reason: str, policy: LadderPolicy, now: datetime) -> Decision:
    step = DegradationStep(ladder.step + (1 if move is LadderMove.UP else -1))
    expires_at = _expiry(step, policy, now)
    return Decision(ladder=replace(ladder, step=step, since=now, expires_at=expires_at, reason=reason), move=move)
