"""Why a decision is what it is, in plain words: what drove the number, each limit, and what was rejected."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.scaling.rules.decision import Decision, Inputs
from app.scaling.rules.target import ScalingPlan, ScalingPolicy, ScalingSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Something else that could have been decided, and why it was not."""

    alternative: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Sentences without their full stops."""

    seen: Sequence[str]
    drove: Sequence[str]
    clamps: Sequence[str]
    rejected: Sequence[Rejected]


def explain(inputs: Inputs, decision: Decision) -> Explanation:
    """Put a decision into words."""
    plan = decision.plan
    return Explanation(
        seen=list(_seen(inputs)),
        drove=list(decision.reasons),
        clamps=[f"{clamp.limit}: {clamp.after} instead of {clamp.before}" for clamp in plan.clamps],
        rejected=list(_rejected(inputs, plan)),
    )


def _seen(inputs: Inputs) -> Iterator[str]:
    snapshot = inputs.snapshot
    coming, leaving = len(snapshot.starting), snapshot.draining
    yield (
        f"{snapshot.workers:,} workers: {snapshot.busy:,} busy, {snapshot.idle:,} idle, {coming:,} starting; "
        f"{leaving:,} more are on their way out"
    )
    yield _queue(snapshot)
    yield "the CPU is not measured" if snapshot.cpu is None else f"the CPU is {snapshot.cpu:.0%} busy"
    yield f"a new worker is taken to be ready after {snapshot.start_seconds:.1f} s"
    if snapshot.running_mean_seconds is not None:
        yield f"the tasks at work are taken to last {snapshot.running_mean_seconds:,.1f} s on average"
    for cap in snapshot.caps:
        yield f"{cap.resource}: enough for {cap.workers:,} workers"
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


def _rejected(inputs: Inputs, plan: ScalingPlan) -> Iterator[Rejected]:
    snapshot, policy = inputs.snapshot, inputs.policy
    waits = bool(snapshot.waiting) and any(group.tasks for group in snapshot.waiting or ())
    if plan.target < snapshot.workers:
        yield Rejected(alternative=_stay(snapshot), because=plan.reasons[0])
    elif waits:
        yield Rejected(alternative="to let workers go", because="nobody goes while a task waits")
    if plan.target > snapshot.workers:
        yield Rejected(alternative=_stay(snapshot), because=_too_few(plan, policy))
    yield from _more(snapshot, policy, plan, waits=waits)
    if plan.target <= snapshot.workers and not waits:
        yield _fewer(plan, policy)
    if not inputs.may_move:
        yield Rejected(alternative="to give workers another agent", because="the last moves are too recent")


def _stay(snapshot: ScalingSnapshot) -> str:
    return f"to stay at {snapshot.workers:,}"


def _too_few(plan: ScalingPlan, policy: ScalingPolicy) -> str:
    if plan.need is None:
        return plan.reasons[0]
    return f"some tasks would wait for longer than {policy.budget_seconds:g} s"


def _more(snapshot: ScalingSnapshot, policy: ScalingPolicy, plan: ScalingPlan, *, waits: bool) -> Iterator[Rejected]:
    if plan.need is not None and plan.need > plan.target:
        because = plan.clamps[-1].limit if plan.clamps else plan.reasons[-1]
        yield Rejected(alternative=f"to grow to {plan.need:,}", because=because)
    elif waits and plan.need is not None:
        because = f"with {plan.target:,} every task starts within {policy.budget_seconds:g} s"
        yield Rejected(alternative=f"to grow beyond {plan.target:,}", because=because)
    elif not waits and plan.target <= snapshot.workers:
        because = plan.reasons[0] if snapshot.waiting is None or policy.fixed else "nothing waits"
        yield Rejected(alternative="to grow", because=because)


def _fewer(plan: ScalingPlan, policy: ScalingPolicy) -> Rejected:
    alternative = f"to go below {plan.target:,}"
    if plan.target <= policy.min_workers:
        return Rejected(alternative=alternative, because=f"the minimum is {policy.min_workers:,}")
    if plan.target < plan.current:
        return Rejected(alternative=alternative, because="the others have not idled for long enough, or are at work")
    return Rejected(alternative=alternative, because=plan.reasons[0])
