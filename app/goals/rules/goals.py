"""Research goals: states, the decision after an iteration, and enforcement of hard limits between iterations."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.admin.rules.config import IterationConfig
from app.goals.rules import budgets, compute_budget, exploration, stopping
from app.goals.rules.budgets import Compute, Forecast, Limits, Usage
from app.goals.rules.compute_budget import Room
from app.goals.rules.exploration import ExplorationPolicy, Trial
from app.goals.rules.stopping import Quality, QualityReading, StoppingPolicy, StoppingRule, Unit, unit_of
from app.kernel.events import GoalEvent
from app.queue.errors import GoalStopped

# Compute of the next iteration over that of one that improved; after one that did not it stays the same.
_GROWTH = 1.25
# Tasks that take less than a hundredth of the time between two checks are too quick to matter to a budget.
_MAX_TASKS_PER_CHECK = 100


class GoalState(StrEnum):
    """Where a goal is in its life; a stopped one stays so."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


LIVE_STATES = frozenset({GoalState.RUNNING, GoalState.PAUSED})
# The states in which an event is possible, and the one it leads to; None: the goal stays where it is.
TRANSITIONS: Mapping[GoalEvent, tuple[Collection[GoalState], GoalState | None]] = {
    GoalEvent.ITERATION: (LIVE_STATES, None),
    GoalEvent.PAUSED: (LIVE_STATES, GoalState.PAUSED),
    GoalEvent.RESUMED: (LIVE_STATES, GoalState.RUNNING),
    GoalEvent.EXTENDED: (LIVE_STATES, None),
    GoalEvent.STOPPED: (LIVE_STATES, GoalState.STOPPED),
}


def next_state(state: GoalState, event: GoalEvent) -> GoalState:
    """The state that `event` leads to. Raises GoalStopped: the stopped state is the only one without a way out."""
    origins, destination = TRANSITIONS[event]
    if state not in origins:
        raise GoalStopped
    return destination or state


class GoalAction(StrEnum):
    """What a goal is to do after an iteration."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Limits and stopping rule that a client sets for a goal. None: the configuration in force decides, or no limit."""

    time_limit_seconds: float | None = None
    compute_budget_seconds: float | None = None
    money_budget: float | None = None
    token_budget: int | None = None
    min_iterations: int | None = None
    max_iterations: int | None = None
    improvement_threshold: float | None = None
    improvement_unit: Unit | None = None
    rule: StoppingRule | None = None
    patience: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredIteration(Trial):
    """Quality and cost of one iteration, in seconds as the service has measured them.

    `exploration_seconds` and `exploitation_seconds` are those of generation and evolution tasks, `compute_seconds` is
    the compute of all types, and `money` the amount that the client reports, or what calls have cost if that is more.
    """

    number: int
    quality: Quality
    seconds: float = 0.0
    compute_seconds: float = 0.0
    exploration_seconds: float = 0.0
    exploitation_seconds: float = 0.0
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalPolicy:
    """Rules by which a goal is judged: stopping, hard limits, exploration."""

    stopping: StoppingPolicy
    limits: Limits
    exploration: ExplorationPolicy = field(default_factory=ExplorationPolicy)


def goal_policy(
    constraints: Constraints, config: IterationConfig, iterations: Sequence[MeasuredIteration] = ()
) -> GoalPolicy:
    """The policy of a goal: its own constraints, completed by the configuration in force and what was measured."""
    default = StoppingPolicy()
    threshold, minimum = constraints.improvement_threshold, constraints.min_iterations
    maximum = constraints.max_iterations
    return GoalPolicy(
        stopping=StoppingPolicy(
            rule=constraints.rule or default.rule,
            unit=constraints.improvement_unit or unit_of(iteration.quality for iteration in iterations),
            threshold=config.improvement_threshold if threshold is None else threshold,
            min_iterations=config.min_iterations if minimum is None else minimum,
            patience=default.patience if constraints.patience is None else constraints.patience,
            judges=config.enabled,
            ends_at_minimum=not config.enabled,
        ),
        limits=Limits(
            max_iterations=config.max_iterations if maximum is None else min(maximum, config.max_iterations),
            time_seconds=constraints.time_limit_seconds,
            compute_seconds=constraints.compute_budget_seconds,
            money=constraints.money_budget,
            tokens=constraints.token_budget,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalSnapshot:
    """Everything a decision reads: the iterations so far, the last being the one to decide on, and the usage."""

    goal_id: str
    iterations: Sequence[MeasuredIteration]
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalDecision:
    """Continue or stop, with the reason, and the advice for the next iteration."""

    action: GoalAction
    reason: str
    exploration_share: float
    exploration_reason: str
    next_compute_seconds: float | None
    gain: float
    gain_per_compute_second: float | None
    stalled_iterations: int
    notices: Sequence[str]
    draws: Sequence[tuple[float, float]]


def decide(goal: GoalSnapshot, policy: GoalPolicy) -> GoalDecision:
    """Decide after the last iteration. Hard limits come first, also where quality would give a reason to stop."""
    last = goal.iterations[-1]
    forecast = forecast_next(goal.iterations)
    # Judged also where a limit stops the goal anyway, since the gain is part of the answer.
    readings = [QualityReading(number=row.number, quality=row.quality) for row in goal.iterations]
    judgement = stopping.judge(readings, policy.stopping)
    limit_reason = budgets.overrun_reason(policy.limits, goal.usage, forecast)
    split = exploration.split(goal.iterations, policy.exploration, goal_id=goal.goal_id, iteration=last.number)
    return GoalDecision(
        action=GoalAction.STOP if limit_reason or judgement.stop else GoalAction.CONTINUE,
        reason=limit_reason or judgement.reason,
        exploration_share=split.share,
        exploration_reason=split.reason,
        next_compute_seconds=_next_compute(forecast, policy.limits, goal.usage, has_improved=judgement.gain > 0),
        gain=judgement.gain,
        gain_per_compute_second=judgement.gain / last.compute_seconds if last.compute_seconds > 0 else None,
        stalled_iterations=judgement.stalled_iterations,
        notices=budgets.notices(policy.limits, goal.usage),
        draws=split.draws,
    )


class EnforcementAction(StrEnum):
    """Action on a goal between its reports that keeps it within its limits."""

    ALLOW = "allow"
    METER = "meter"
    HOLD = "hold"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """An action and its reason; `remaining_attempts` is the number of further tasks that a metered goal may start.

    `excess_attempts` are the youngest that run and are to be taken back.
    """

    action: EnforcementAction
    reason: str = ""
    remaining_attempts: int = 0
    excess_attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCapacity:
    """Workers that could lease tasks of a goal during the `check_seconds` between two checks of its budget."""

    workers: int
    check_seconds: float = 1.0

    def max_leases(self, mean_seconds: float) -> int:
        """Number of leases if all workers took one, and another whenever a task of mean length ends."""
        seconds = max(mean_seconds, self.check_seconds / _MAX_TASKS_PER_CHECK)
        return self.workers * (1 + math.ceil(self.check_seconds / seconds))


def enforce(
    usage: Usage,
    limits: Limits,
    capacity: LeaseCapacity,
    *,
    ages: Sequence[float] = (),
    is_metered: bool = False,
) -> Enforcement:
    """Decide how to keep a goal within its limits of time, compute, money and tokens, without help of the client.

    A goal whose time or compute is used up stops; one whose compute is committed, or whose money or tokens are used up,
    leases no more: its budget may be extended. Where all workers together could overrun the budget before the next
    check, the goal is metered: only as many tasks start as the budget has room for. `ages` are the seconds for which
    attempts have been running.
    """
    # Iterations are judged when they are reported.
    usage = replace(usage, iterations=0)
    if reason := budgets.exhausted_limit(replace(limits, compute_seconds=None, money=None, tokens=None), usage):
        return Enforcement(action=EnforcementAction.STOP, reason=reason)
    room = _compute_room(usage.compute, limits, ages, capacity)
    if room is not None and room.is_over:
        return _out_of_compute(EnforcementAction.STOP, usage.compute, limits, ages)
    if reason := budgets.exhausted_limit(spending_limits(limits), usage):
        return Enforcement(action=EnforcementAction.HOLD, reason=reason)
    if room is None or room.tasks is None:
        return Enforcement(action=EnforcementAction.ALLOW)
    # A metered goal is let go only with twice the room, so that it does not flip at every check.
    required_tasks = capacity.max_leases(usage.compute.expected_seconds) * (2 if is_metered else 1)
    if room.tasks == 0 or room.excess:
        # While attempts run they may turn out shorter than expected, and leave room again; without any nothing changes.
        action = EnforcementAction.HOLD if ages else EnforcementAction.STOP
        return replace(_out_of_compute(action, usage.compute, limits, ages), excess_attempts=room.excess)
    if room.tasks >= max(1, required_tasks):
        return Enforcement(action=EnforcementAction.ALLOW)
    reason = f"the compute budget of {limits.compute_seconds:g} s has room for {room.tasks} more tasks"
    return Enforcement(action=EnforcementAction.METER, reason=reason, remaining_attempts=room.tasks)


def _compute_room(compute: Compute, limits: Limits, ages: Sequence[float], capacity: LeaseCapacity) -> Room | None:
    budget = limits.compute_seconds
    return None if budget is None else compute_budget.room(budget, compute, ages, capacity.check_seconds)


def _out_of_compute(action: EnforcementAction, compute: Compute, limits: Limits, ages: Sequence[float]) -> Enforcement:
    # Running attempts count by the time they have really taken: a budget is not used up by an estimate.
    used = Usage(compute=replace(compute, running=0, running_seconds=sum(ages)))
    reason, budget = budgets.exhausted_limit(replace(limits, time_seconds=None), used), limits.compute_seconds
    if not reason:
        spent = f"{compute.spent_seconds:.4g} s are spent"
        reason = (
            f"the compute budget of {budget:g} s lets no more tasks begin until those under way end: {spent}, and "
            f"{sum(ages):.4g} s taken by the {len(ages)} under way"
            if ages
            else f"the compute budget of {budget:g} s has no room for one more task of "
            f"{compute.expected_seconds:.3g} s: {spent}"
        )
    return Enforcement(action=action, reason=reason)


def spending_limits(limits: Limits) -> Limits:
    """The limits of money and tokens alone."""
    return replace(limits, time_seconds=None, compute_seconds=None)


def forecast_next(iterations: Sequence[MeasuredIteration]) -> Forecast:
    """Forecast the cost of one more iteration from the costs of those before it."""
    return Forecast(
        seconds=budgets.decayed_mean([iteration.seconds for iteration in iterations]),
        compute_seconds=budgets.decayed_mean([iteration.compute_seconds for iteration in iterations]),
        money=budgets.decayed_mean([iteration.money for iteration in iterations]),
    )


def _next_compute(forecast: Forecast, limits: Limits, usage: Usage, *, has_improved: bool) -> float | None:
    """Seconds of compute for the next iteration: more while it pays, and never more than the budget still has."""
    if forecast.compute_seconds is None:
        return None
    seconds = forecast.compute_seconds * (_GROWTH if has_improved else 1.0)
    if limits.compute_seconds is not None:
        seconds = min(seconds, limits.compute_seconds - usage.compute.committed_seconds)
    return max(0.0, seconds)
