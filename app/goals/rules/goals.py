"""Research goals: what may become of them, and whether one goes on after an iteration."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.admin.rules.config import Iterations
from app.goals.rules import budgets, exploration, stopping
from app.goals.rules.budgets import Limits, Pace, Usage
from app.goals.rules.exploration import Arm, ExplorationPolicy, Trial
from app.goals.rules.stopping import Iteration, Quality, StoppingPolicy, StoppingRule, Unit
from app.queue.errors import GoalStopped
from app.queue.rules.events import GoalEvent

# What an iteration that brought something gets more than the one before it; one that did not gets no more.
_GROWTH = 1.25
# Tasks that take less than a hundredth of the time between two looks are too quick to matter to a budget.
_MOST_A_LOOK = 100


class GoalState(StrEnum):
    """Where a goal is in its life; a stopped one stays so."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


LIVE = frozenset({GoalState.RUNNING, GoalState.PAUSED})


MOVES: Mapping[GoalEvent, tuple[Collection[GoalState], GoalState | None]] = {
    GoalEvent.ITERATION: (LIVE, None),
    GoalEvent.PAUSED: (LIVE, GoalState.PAUSED),
    GoalEvent.RESUMED: (LIVE, GoalState.RUNNING),
    GoalEvent.EXTENDED: (LIVE, None),
    GoalEvent.STOPPED: (LIVE, GoalState.STOPPED),
}


def after(state: GoalState, move: GoalEvent) -> GoalState:
    """The state that `move` leads to. Raises GoalStopped, which is the only one that nothing leads out of."""
    origins, destination = MOVES[move]
    if state not in origins:
        raise GoalStopped
    return destination or state


class GoalAction(StrEnum):
    """What a goal is to do after an iteration."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What somebody wants of a goal. None: as the configuration in force has it, or no such limit."""

    time_limit_seconds: float | None = None
    compute_budget_seconds: float | None = None
    money_budget: float | None = None
    min_iterations: int | None = None
    max_iterations: int | None = None
    improvement_threshold: float | None = None
    improvement_unit: Unit | None = None
    rule: StoppingRule | None = None
    patience: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One iteration: what it reached, and what it took, in seconds as the service has measured them.

    `exploration_seconds` and `exploitation_seconds` are those of generation and evolution tasks; the compute of all
    types is `compute_seconds`. `money` is what the client says.
    """

    number: int
    quality: Quality
    new_best: Arm | None = None
    seconds: float = 0.0
    compute_seconds: float = 0.0
    exploration_seconds: float = 0.0
    exploitation_seconds: float = 0.0
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalPolicy:
    """How a goal is judged."""

    stopping: StoppingPolicy
    limits: Limits
    exploration: ExplorationPolicy = field(default_factory=ExplorationPolicy)


def policy_of(terms: Terms, configured: Iterations) -> GoalPolicy:
    """How a goal on these terms is judged under this configuration."""
    usual = StoppingPolicy()
    threshold, least, most = terms.improvement_threshold, terms.min_iterations, terms.max_iterations
    return GoalPolicy(
        stopping=StoppingPolicy(
            rule=terms.rule or usual.rule,
            unit=terms.improvement_unit or usual.unit,
            threshold=configured.improvement_threshold if threshold is None else threshold,
            min_iterations=configured.min_iterations if least is None else least,
            patience=usual.patience if terms.patience is None else terms.patience,
            judges=configured.enabled,
        ),
        limits=Limits(
            max_iterations=configured.max_iterations if most is None else most,
            time_seconds=terms.time_limit_seconds,
            compute_seconds=terms.compute_budget_seconds,
            money=terms.money_budget,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalSnapshot:
    """All that a decision looks at: the iterations so far, the last one being decided on, and what was used."""

    goal_id: str
    reports: Sequence[Report]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalDecision:
    """Go on or stop, and why; shares, seconds and gains are explained where they are made."""

    action: GoalAction
    reason: str
    exploration_share: float
    exploration_reason: str
    next_compute_seconds: float | None
    gain: float
    gain_per_compute_second: float | None
    fruitless: int
    notices: Sequence[str]
    draws: Sequence[tuple[float, float]]


def decide(goal: GoalSnapshot, policy: GoalPolicy) -> GoalDecision:
    """Decide after the last of the reports. Hard limits come first, and say so also where quality would stop too."""
    last = goal.reports[-1]
    pace = pace_of(goal.reports)
    judgement = stopping.judge([Iteration(number=r.number, quality=r.quality) for r in goal.reports], policy.stopping)
    limit = budgets.overrun(policy.limits, goal.usage, pace)
    shares = exploration.split(
        [_trial(report) for report in goal.reports], policy.exploration, goal_id=goal.goal_id, iteration=last.number
    )
    return GoalDecision(
        action=GoalAction.STOP if limit or judgement.stop else GoalAction.CONTINUE,
        reason=limit or judgement.reason,
        exploration_share=shares.share,
        exploration_reason=shares.reason,
        next_compute_seconds=_next_compute(pace, policy.limits, goal.usage, improved=judgement.gain > 0),
        gain=judgement.gain,
        gain_per_compute_second=judgement.gain / last.compute_seconds if last.compute_seconds > 0 else None,
        fruitless=judgement.fruitless,
        notices=budgets.notices(policy.limits, goal.usage),
        draws=shares.draws,
    )


class Measure(StrEnum):
    """What has to happen to a goal between its reports, so that it stays within its limits."""

    LEAVE = "leave"
    METER = "meter"
    HOLD = "hold"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """A measure and why; `room` is for how many more tasks where they are metered."""

    measure: Measure
    reason: str = ""
    room: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rush:
    """How fast a goal could use up its budget until somebody looks again."""

    workers: int
    seconds: float = 1.0

    def leases(self, mean_seconds: float) -> int:
        """As many as all workers could take: one each, and another whenever one of mean length ends."""
        return self.workers * (1 + math.ceil(self.seconds / max(mean_seconds, self.seconds / _MOST_A_LOOK)))


def enforce(usage: Usage, limits: Limits, rush: Rush, *, is_metered: bool = False) -> Enforcement:
    """Hold the hard limits without the client's help.

    What is used up stops. What is committed leases no more. Where all workers at once could overrun the budget until
    the next look, only so many tasks are let through as there is room for; from twice as much room on, all again.
    """
    really = replace(usage, iterations=0, compute=replace(usage.compute, running=0))
    reason = budgets.exhausted(replace(limits, money=None), really)
    if reason:
        return Enforcement(measure=Measure.STOP, reason=reason)
    left = budgets.room(limits, usage.compute)
    enough = rush.leases(usage.compute.expected_seconds) * (2 if is_metered else 1)
    if left is None or left >= max(1, enough):
        return Enforcement(measure=Measure.LEAVE)
    if left >= 1:
        words = f"the compute budget of {limits.compute_seconds:g} s has room for {left} more tasks"
        return Enforcement(measure=Measure.METER, reason=words, room=left)
    words = (
        f"the compute budget of {limits.compute_seconds:g} s has no room for one more task of "
        f"{usage.compute.expected_seconds:.3g} s: {usage.compute.committed_seconds:.4g} s are spent or committed"
    )
    return Enforcement(measure=Measure.HOLD if usage.compute.running else Measure.STOP, reason=words)


def pace_of(reports: Sequence[Report]) -> Pace:
    """What one more iteration is expected to take."""
    return Pace(
        seconds=budgets.expected([report.seconds for report in reports]),
        compute_seconds=budgets.expected([report.compute_seconds for report in reports]),
        money=budgets.expected([report.money for report in reports]),
    )


def _next_compute(pace: Pace, limits: Limits, usage: Usage, *, improved: bool) -> float | None:
    """Compute for the next iteration: a little more while it pays, and never more than there is."""
    if pace.compute_seconds is None:
        return None
    wanted = pace.compute_seconds * (_GROWTH if improved else 1.0)
    if limits.compute_seconds is not None:
        wanted = min(wanted, limits.compute_seconds - usage.compute.committed_seconds)
    return max(0.0, wanted)


def _trial(report: Report) -> Trial:
    return Trial(
        exploration_seconds=report.exploration_seconds,
        exploitation_seconds=report.exploitation_seconds,
        new_best=report.new_best,
    )
