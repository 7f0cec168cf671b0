"""The ladder of degradation: what is given up, one step at a time, while resources are short, and taken back after.

Nothing is ever given up for good: a step ends by itself unless it is renewed, agents that are suspended keep the floor
of the weights, and work that is held back goes on as soon as nothing else waits. The order of the steps is that of
the wider system: evolution of low-ranked work, depth, batch sizes, then all but generation and review.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority


class DegradationStep(IntEnum):
    """How far up the ladder; each step includes those below it."""

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
# Ours: the wider system names the steps, not the figures. Two levels are the least in which one can build on another.
_MAX_DEPTH = 2
_BATCH_FACTOR = 0.5
# Three turns of the duty, which takes an expired step back, one at a time.
_DUE = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What handlers are asked to keep to: levels to go down at most (None: any), and times their usual batch."""

    max_depth: int | None = None
    batch_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPolicy:
    """Shares of 1 and seconds; ours, to be quick to help and slow to trust.

    People are told at 80 % for five minutes; the ladder helps sooner, and where there is less left. A resource must be
    `tight` for a minute to cost a step and `easy` for two to give one back, so between two steps there is time to see
    what the last one has done. `lasts` is the time box of a step without strain.
    """

    tight: float = 0.90
    easy: float = 0.75
    # A quarter of the pool that cannot be had is what one step of scaling would add anyway.
    tight_loss: float = 0.25
    easy_loss: float = 0.10
    up_after: float = 60.0
    down_after: float = 120.0
    lasts: float = 300.0
    # When people are told that a task is waiting: what is used fully while nothing waits for long is just well used.
    late_seconds: float = 600.0
    # A busy processor costs depth and batch sizes, never an agent: a large batch of work is no emergency.
    bearable_top: DegradationStep = DegradationStep.BATCHES
    # Three turns of the duty: what nobody looked at for so long has not lasted.
    blind_after: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strain:
    """How short resources are: shares of 1 in use by name, None where nobody has measured.

    `bearable` are those whose full use is only bad while work waits for long: a busy processor is what it is for.
    """

    resources: Mapping[str, float | None] = field(default_factory=dict)
    bearable: frozenset[str] = frozenset({"cpu", "llm_permits"})
    capacity_lost: float = 0.0
    oldest_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderHold:
    """An operator keeps the ladder on its step; `by` is the id of a key."""

    until: datetime
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """Where the ladder stands, since when and why, and when that ends unless it is renewed.

    `tight_since` and `easy_since` are since when without a break resources were short, or were not.
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
    """The ladder after a look, and what has moved it; None: it stays."""

    ladder: Ladder
    move: LadderMove | None = None


def decide(ladder: Ladder, strain: Strain, policy: LadderPolicy, now: datetime) -> Decision:
    """At most one step, up or down, and never within the time that the last one needs to show."""
    if ladder.hold is not None:
        return (
            Decision(ladder=ladder)
            if now < ladder.hold.until
            else release_hold(ladder, "the hold is over", now, policy)
        )
    looked = _observe(ladder, strain, policy, now)
    if _has_lasted(looked.tight_since, looked.since, policy.up_after, now) and looked.step < _highest_step(
        strain, policy
    ):
        return _move(looked, LadderMove.UP, describe_shortage(strain, policy), policy, now)
    if looked.step > DegradationStep.NONE and looked.expires_at is not None and now >= looked.expires_at:
        return _move(looked, LadderMove.EXPIRED, f"nothing was short for {policy.lasts:.0f} s", policy, now)
    if looked.step > DegradationStep.NONE and _has_lasted(looked.easy_since, looked.since, policy.down_after, now):
        why = f"resources have been easy for {policy.down_after:.0f} s"
        return _move(looked, LadderMove.DOWN, why, policy, now)
    return Decision(ladder=looked)


def hold_step(
    ladder: Ladder, step: DegradationStep, hold: LadderHold, reason: str, now: datetime, policy: LadderPolicy
) -> Decision:
    """An operator puts the ladder on a step until the hold ends; from then on it moves by itself, step by step."""
    new = Ladder(
        step=step,
        since=ladder.since if step is ladder.step else now,
        expires_at=hold.until + timedelta(seconds=policy.lasts) if step > DegradationStep.NONE else None,
        reason=reason,
        hold=hold,
        looked_at=ladder.looked_at,
    )
    return Decision(ladder=new, move=LadderMove.HELD)


def release_hold(ladder: Ladder, reason: str, now: datetime, policy: LadderPolicy) -> Decision:
    """An operator lets it move by itself again; without a hold nothing changes."""
    if ladder.hold is None:
        return Decision(ladder=ladder)
    expires_at = now + timedelta(seconds=policy.lasts) if ladder.step > DegradationStep.NONE else None
    return Decision(ladder=replace(ladder, hold=None, reason=reason, expires_at=expires_at), move=LadderMove.RELEASED)


def effective_step(ladder: Ladder, now: datetime) -> DegradationStep:
    """The step that counts: one that nobody has renewed in time is over, also when nobody is there to say so."""
    is_over = ladder.expires_at is not None and now >= ladder.expires_at + _DUE
    return DegradationStep.NONE if is_over else ladder.step


def advice(step: DegradationStep) -> Advice:
    """What handlers are asked for."""
    return Advice(
        max_depth=_MAX_DEPTH if step >= DegradationStep.DEPTH else None,
        batch_factor=_BATCH_FACTOR if step >= DegradationStep.BATCHES else 1.0,
    )


def suspended_agents(step: DegradationStep) -> frozenset[AgentType]:
    """The agents whose share falls to the floor."""
    return frozenset(AgentType) - _ESSENTIAL if step >= DegradationStep.ESSENTIALS else frozenset()


def deferred_lanes(step: DegradationStep) -> frozenset[Lane]:
    """The lanes that are not served while a worker can run anything else."""
    return _LOW_RANKED if step >= DegradationStep.LOW_RANKED_EVOLUTION else frozenset()


def describe_shortage(strain: Strain, policy: LadderPolicy) -> str:
    """What is short, in words; empty when nothing is."""
    words = [
        f"{strain.resources[name]:.0%} of {name.replace('_', ' ')} is used" for name in _short_resources(strain, policy)
    ]
    if _is_pool_short(strain, policy):
        words.append(f"{strain.capacity_lost:.0%} of the pool cannot be replaced")
    return "; ".join(words)


def _short_resources(strain: Strain, policy: LadderPolicy) -> list[str]:
    """The resources that are short; the bearable ones only while work waits for long."""
    is_late = strain.oldest_wait_seconds >= policy.late_seconds
    return [
        name
        for name, share in strain.resources.items()
        if share is not None and share >= policy.tight and (is_late or name not in strain.bearable)
    ]


def _is_pool_short(strain: Strain, policy: LadderPolicy) -> bool:
    """Whether so much of the pool is lost that work waits for long."""
    return strain.capacity_lost >= policy.tight_loss and strain.oldest_wait_seconds >= policy.late_seconds


def _highest_step(strain: Strain, policy: LadderPolicy) -> DegradationStep:
    """How far up what is short may lead."""
    if _is_pool_short(strain, policy) or set(_short_resources(strain, policy)) - strain.bearable:
        return TOP_STEP
    return policy.bearable_top


def _is_easy(strain: Strain, policy: LadderPolicy) -> bool:
    """Whether there is room again. What is not measured says nothing; where nothing is, nobody can say so."""
    known = {name: share for name, share in strain.resources.items() if share is not None}
    is_late = strain.oldest_wait_seconds >= policy.late_seconds
    counted = [share for name, share in known.items() if is_late or name not in strain.bearable]
    lost = strain.capacity_lost >= policy.easy_loss and is_late
    return bool(known) and not lost and all(share < policy.easy for share in counted)


def _observe(ladder: Ladder, strain: Strain, policy: LadderPolicy, now: datetime) -> Ladder:
    """What has lasted by now; strain renews the step."""
    before = ladder.looked_at
    seen_lately = before is not None and now - before <= timedelta(seconds=policy.blind_after)
    tight, easy = bool(describe_shortage(strain, policy)), _is_easy(strain, policy)
    renews = tight and ladder.step <= _highest_step(strain, policy)
    return replace(
        ladder,
        tight_since=((ladder.tight_since if seen_lately else None) or now) if tight else None,
        easy_since=((ladder.easy_since if seen_lately else None) or now) if easy else None,
        expires_at=_renewed_expiry(ladder, policy, now) if renews else ladder.expires_at,
        looked_at=now,
    )


def _renewed_expiry(ladder: Ladder, policy: LadderPolicy, now: datetime) -> datetime | None:
    return now + timedelta(seconds=policy.lasts) if ladder.step > DegradationStep.NONE else None


def _has_lasted(start: datetime | None, changed_at: datetime, seconds: float, now: datetime) -> bool:
    return start is not None and now - max(start, changed_at) >= timedelta(seconds=seconds)


def _move(ladder: Ladder, move: LadderMove, reason: str, policy: LadderPolicy, now: datetime) -> Decision:
    step = DegradationStep(ladder.step + (1 if move is LadderMove.UP else -1))
    expires_at = now + timedelta(seconds=policy.lasts) if step > DegradationStep.NONE else None
    return Decision(ladder=replace(ladder, step=step, since=now, expires_at=expires_at, reason=reason), move=move)
