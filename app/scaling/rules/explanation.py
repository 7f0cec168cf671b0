"""Explanation of a decision in plain words: its observations, its reasons, each limit, and rejected alternatives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.scaling.rules.decision import Decision, DecisionInputs
from app.scaling.rules.target import ScalingPlan, ScalingPolicy, ScalingSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedAlternative:
    """Another decision that was possible, and the reason why it was not taken."""

    alternative: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Sentences without their full stops: observations, reasons, limits that applied, and rejected alternatives."""

    observations: Sequence[str]
    reasons: Sequence[str]
    limits: Sequence[str]
    alternatives: Sequence[RejectedAlternative]


def explain(inputs: DecisionInputs, decision: Decision) -> Explanation:
    """Put a decision into words."""
    plan = decision.plan
    return Explanation(
        observations=list(_observations(inputs)),
        reasons=list(decision.reasons),
        limits=list(map(str, plan.clamps)),
        alternatives=list(_alternatives(inputs, plan)),
    )


def _observations(inputs: DecisionInputs) -> Iterator[str]:
    snapshot = inputs.snapshot
    starting, leaving = len(snapshot.starting), snapshot.draining
    yield (
        f"{snapshot.workers:,} workers: {snapshot.busy:,} busy, {snapshot.idle:,} idle, {starting:,} starting; "
        f"{leaving:,} more are on their way out"
    )
    yield _queue(snapshot)
    if snapshot.idle_unable:
        yield f"{snapshot.idle_unable:,} of the idle workers can run none of the tasks that wait"
    yield "the CPU is not measured" if snapshot.cpu is None else f"the CPU is {snapshot.cpu:.0%} busy"
    yield f"a new worker is taken to be ready after {snapshot.start_seconds:.1f} s"
    if snapshot.running_mean_seconds is not None:
        yield f"the tasks at work are taken to last {snapshot.running_mean_seconds:,.1f} s on average"
    for limit in snapshot.limits:
        yield f"{limit.resource}: enough for {limit.workers:,} workers"
    policy = inputs.policy
    yield (
        f"{policy.min_workers:,} to {policy.max_workers:,} workers are allowed in the mode {inputs.mode}, by version "
        f"{inputs.config_version} of the configuration"
    )


def _queue(snapshot: ScalingSnapshot) -> str:
    if snapshot.waiting is None:
        return "it is not known how many tasks wait"
    tasks = sum(group.tasks for group in snapshot.waiting)
    if not tasks:
        return "no task waits for a worker"
    work = sum(group.work_seconds for group in snapshot.waiting)
    oldest = max(group.oldest_age_seconds for group in snapshot.waiting)
    return f"{tasks:,} tasks of about {work:,.0f} s of work wait, the oldest for {oldest:,.0f} s at most"


def _alternatives(inputs: DecisionInputs, plan: ScalingPlan) -> Iterator[RejectedAlternative]:
    # The first reason of a plan decided its size; the others are the limits that applied.
    snapshot, policy = inputs.snapshot, inputs.policy
    waits = bool(snapshot.waiting) and any(group.tasks for group in snapshot.waiting or ())
    if plan.target < snapshot.workers:
        yield RejectedAlternative(alternative=_stay(snapshot), because=plan.reasons[0])
    elif waits:
        yield RejectedAlternative(alternative="to let workers go", because="nobody goes while a task waits")
    if plan.target > snapshot.workers:
        yield RejectedAlternative(alternative=_stay(snapshot), because=_too_few(plan, policy))
    yield from _growth_alternatives(snapshot, policy, plan, waits=waits)
    if plan.target <= snapshot.workers and not waits:
        yield _smaller_alternative(plan, policy)
    if not inputs.may_move:
        yield RejectedAlternative(alternative="to give workers another agent", because="the last moves are too recent")


def _stay(snapshot: ScalingSnapshot) -> str:
    return f"to stay at {snapshot.workers:,}"


def _too_few(plan: ScalingPlan, policy: ScalingPolicy) -> str:
    if plan.required_workers is None:
        return plan.reasons[0]
    return f"some tasks would wait for longer than {policy.budget_seconds:g} s"


def _growth_alternatives(
    snapshot: ScalingSnapshot, policy: ScalingPolicy, plan: ScalingPlan, *, waits: bool
) -> Iterator[RejectedAlternative]:
    if plan.required_workers is not None and plan.required_workers > plan.target:
        because = plan.clamps[-1].limit if plan.clamps else plan.reasons[-1]
        yield RejectedAlternative(alternative=f"to grow to {plan.required_workers:,}", because=because)
    elif waits and plan.required_workers is not None:
        in_time = f"with {plan.target:,} every task starts within {policy.budget_seconds:g} s"
        because = "no task would start sooner with more" if snapshot.is_late(policy) else in_time
        yield RejectedAlternative(alternative=f"to grow beyond {plan.target:,}", because=because)
    elif not waits and plan.target <= snapshot.workers:
        because = plan.reasons[0] if snapshot.waiting is None or policy.is_fixed else "nothing waits"
        yield RejectedAlternative(alternative="to grow", because=because)


def _smaller_alternative(plan: ScalingPlan, policy: ScalingPolicy) -> RejectedAlternative:
    alternative = f"to go below {plan.target:,}"
    if plan.target <= policy.min_workers:
        return RejectedAlternative(alternative=alternative, because=f"the minimum is {policy.min_workers:,}")
    if plan.target < plan.current:
        return RejectedAlternative(
            alternative=alternative, because="the others have not idled for long enough, or are at work"
        )
    return RejectedAlternative(alternative=alternative, because=plan.reasons[0])
