"""How many workers there should be: enough that every waiting task starts in time, and no hurry to let them go.

Growth follows from a bound, not from a ratio: the smallest pool that starts each waiting task inside its budget. The
numbers were found on the two Azure traces of 2023 and on synthetic loads; `convener simulate` shows what they do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from app.admin.rules.config import Document, conduct
from app.kernel.modes import Mode
from app.kernel.text import plural
from app.scaling.rules.demand import Waiting
from app.scaling.rules.idle import Spare, SparePolicy, surplus
from app.workers.rules.hosts import Cap

# What the specification allows a start to take; a local one takes about one.
USUAL_START_SECONDS = 5.0


class DecisionType(StrEnum):
    """What a decision does; `rebalance` changes who works on what, but not how many there are."""

    SCALE_UP = "scale_up"
    SCALE_DOWN = "scale_down"
    REBALANCE = "rebalance"
    MAINTAIN = "maintain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """Bounds and dials. Thresholds are shares of 1, durations seconds. Late: over 30 s, in a simulation."""

    # The production mode of the specification.
    min_workers: int = 10
    max_workers: int = 1000
    # At 0.9 mixed lengths are late (0.03 %; with starts of 10 s 0.7 %); at 0.7 bursts cost 4 to 7 % more.
    scale_up_threshold: float = 0.8
    # From 0.15 to 0.7 the cost stays within 4 %; at 0 every pool counts as busy, and bursts cost 8 % more.
    scale_down_threshold: float = 0.3
    wait_target_seconds: float = 30.0  # as the contract has it
    # A pool that only holds its size: it is refilled to its minimum and cut to its maximum, nothing else.
    fixed: bool = False
    growth: float = conduct(Mode.PRODUCTION).growth
    # How surely workers at work are free in time. At 0 tasks of 120 s are late (0.1 %), at 1 still 0.03 %; at 3.3, the
    # normal quantile of the 0.05 % that may be late, small pools turn round more often than dask's.
    deviations: float = 2.0
    spare: SparePolicy = field(default_factory=SparePolicy)
    tick_seconds: float = 5.0  # the most that the contract allows; at 10 mixed lengths are late (0.06 %)
    # A pool that may only double catches up by doubling again soon: at 5 s a third of a large batch is late.
    hurry_seconds: float = 2.0

    @property
    def budget_seconds(self) -> float:
        """What a task may wait; the rest of its target is left for what estimates get wrong."""
        return self.scale_up_threshold * self.wait_target_seconds


def in_mode(policy: ScalingPolicy, mode: Mode) -> ScalingPolicy:
    """The policy as a deployment mode has it: a mode may hold a pool still or slow it down, and does nothing else."""
    limits = conduct(mode)
    settle_seconds = max(policy.spare.settle_seconds, limits.scale_down_window_seconds)
    return replace(
        policy,
        fixed=policy.fixed or not limits.scales,
        growth=min(policy.growth, limits.growth),
        spare=replace(policy.spare, settle_seconds=settle_seconds),
    )


def scaling_policy(document: Document, mode: Mode) -> ScalingPolicy:
    """The policy that the configuration asks for."""
    pool = document.worker_pool
    policy = ScalingPolicy(
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        scale_up_threshold=pool.scale_up_threshold,
        scale_down_threshold=pool.scale_down_threshold,
    )
    return in_mode(policy, mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSnapshot:
    """The pool and its queue. What could not be measured is None, which is not zero.

    `starting` holds the seconds until each starting worker is ready; `waiting` is in the order of dispatch; `spare` has
    the latest last; `cpu` is a share of 1; `start_seconds` is a high percentile of the starts that were measured;
    `running_mean_seconds` is what a task at work is estimated to take in all, on average; `usual` is the size of a pool
    that does not scale.
    """

    idle: int
    busy: int
    starting: Sequence[float] = ()
    draining: int = 0
    waiting: Sequence[Waiting] | None
    spare: Sequence[Spare] = ()
    cpu: float | None
    start_seconds: float = USUAL_START_SECONDS
    caps: Sequence[Cap] = ()
    usual: int | None = None
    running_mean_seconds: float | None = None

    @property
    def ready(self) -> int:
        """Workers that can hold a task."""
        return self.idle + self.busy

    @property
    def workers(self) -> int:
        """The size of the pool; those on their way out no longer count, those on their way in do."""
        return self.ready + len(self.starting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """A limit that changed the target, and both sides of the change."""

    limit: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPlan:
    """What to do, and why. `remove_idle` leave now; `drain_busy` end their task first; nobody else may be removed."""

    at: datetime
    decision_type: DecisionType
    current: int
    target: int
    start: int = 0
    remove_idle: int = 0
    drain_busy: int = 0
    need: int | None = None
    reasons: tuple[str, ...]
    clamps: tuple[Clamp, ...] = field(default=())
    decide_again_after_seconds: float


def decide(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    """The size of the pool for the next seconds."""
    workers = snapshot.workers
    if workers < policy.min_workers:
        reason = f"{plural(workers, 'worker')}, and the minimum is {policy.min_workers}"
        return _plan(snapshot, policy, now, policy.min_workers, reason, hurry=bool(snapshot.waiting))
    if workers > policy.max_workers:
        reason = f"{plural(workers, 'worker')}, and the maximum is {policy.max_workers}"
        return _plan(snapshot, policy, now, policy.max_workers, reason)
    if policy.fixed:
        return _fixed(snapshot, policy, now)
    if snapshot.waiting is None:
        return _plan(snapshot, policy, now, workers, "it is not known how many tasks wait: nothing changes on a guess")
    if any(group.tasks for group in snapshot.waiting):
        return _up(snapshot, policy, now)
    return _down(snapshot, policy, now)


def need(snapshot: ScalingSnapshot, policy: ScalingPolicy) -> int:
    """The smallest pool with which every waiting task starts inside its budget; never more than there are tasks.

    For every group in turn: the work up to it must be started in what is left of its budget. Those who are at work
    start what they surely will, each new one what is left after its start; the last task of each need only begin.
    """
    tasks, work, one, extra = 0, 0.0, math.inf, 0.0
    coming, until_ready, mean = len(snapshot.starting), sum(snapshot.starting), snapshot.running_mean_seconds
    for group in snapshot.waiting or ():
        if group.tasks <= 0 or group.work_seconds <= 0:
            continue
        tasks += group.tasks
        work += group.work_seconds
        # The shortest, not the mean of all so far: a mean would let a long task that joins lower the need.
        one = min(one, group.work_seconds / group.tasks)
        left = max(0.0, policy.budget_seconds - group.oldest_age_seconds)
        if mean is None:  # it was not kept once, and a decision of then is to be made again as it was
            have = snapshot.ready * left
        else:
            have = snapshot.idle * left + started(snapshot.busy, mean, left, one, policy.deviations)
        have += max(0.0, coming * (left + one) - until_ready)
        if work > have:
            extra = max(extra, (work - have) / (max(0.0, left - snapshot.start_seconds) + one))
    return min(snapshot.workers + math.ceil(extra), tasks + snapshot.busy)


def is_burst(queued_work_seconds: float, workers: int, seconds_since_last: float, policy: ScalingPolicy) -> bool:
    """Whether an arrival calls for a decision at once instead of at the next tick."""
    overdue = queued_work_seconds > policy.budget_seconds / 2 * workers
    return overdue and seconds_since_last >= policy.hurry_seconds


def _fixed(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    workers = snapshot.workers
    usual = workers if snapshot.usual is None else snapshot.usual
    target = max(policy.min_workers, min(usual, policy.max_workers))
    if target == workers:
        return _plan(snapshot, policy, now, workers, "the pool has a fixed size in this mode")
    reason = f"{plural(workers, 'worker')}, and the pool has a fixed size of {target} in this mode"
    return _plan(snapshot, policy, now, target, reason)


def _up(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    workers, wanted = snapshot.workers, need(snapshot, policy)
    groups = snapshot.waiting or ()
    tasks, work = sum(group.tasks for group in groups), sum(group.work_seconds for group in groups)
    backlog = f"{plural(tasks, 'task')} of about {work:,.0f} s of work {'waits' if tasks == 1 else 'wait'}"
    if wanted <= workers:
        reason = f"{backlog}, and {plural(workers, 'worker')} start all within {policy.budget_seconds:g} s"
        return _plan(snapshot, policy, now, workers, reason, need=wanted)
    idle = _why_not_workers(snapshot, policy)
    if idle is not None:
        return _plan(snapshot, policy, now, workers, backlog, idle, need=wanted)
    target, clamps = _limited(wanted, snapshot, policy)
    reason = f"{backlog}; to start each within {policy.budget_seconds:g} s takes {plural(wanted, 'worker')}"
    limits = [_words(clamp) for clamp in clamps]
    hurry = bool(clamps) and clamps[-1].limit == _step(policy)
    return _plan(snapshot, policy, now, target, reason, *limits, need=wanted, clamps=clamps, hurry=hurry)


def _why_not_workers(snapshot: ScalingSnapshot, policy: ScalingPolicy) -> str | None:
    """Why more workers would not help, or None when they are what is short."""
    busy_share = snapshot.busy / snapshot.ready if snapshot.ready else 1.0
    if busy_share >= policy.scale_up_threshold:
        return None
    if snapshot.cpu is None:
        return "the CPU is not measured, and not all workers are busy: nothing changes on a guess"
    if snapshot.cpu >= policy.scale_up_threshold:
        return None
    return f"tasks wait although {snapshot.idle} of {plural(snapshot.ready, 'worker')} are idle: more cannot help"


def _limited(wanted: int, snapshot: ScalingSnapshot, policy: ScalingPolicy) -> tuple[int, tuple[Clamp, ...]]:
    """The target after every limit, tightest last, and the limits that changed it. The minimum is never cut."""
    workers = snapshot.workers
    limits = [
        (_step(policy), max(workers + 1, math.floor(policy.growth * workers))),
        (f"max_workers is {policy.max_workers}", policy.max_workers),
        (f"{plural(snapshot.draining, 'draining worker')} still count", policy.max_workers - snapshot.draining),
        *((f"{cap.resource} suffice for {plural(cap.workers, 'worker')}", cap.workers) for cap in snapshot.caps),
    ]
    target, clamps = wanted, list[Clamp]()
    for limit, most in sorted(limits, key=lambda pair: -pair[1]):
        after = max(workers, policy.min_workers, min(target, most))
        if after < target:
            clamps.append(Clamp(limit=limit, before=target, after=after))
        target = min(target, after)
    return target, tuple(clamps)


def _words(clamp: Clamp) -> str:
    return f"{clamp.limit}: {clamp.after} instead of {clamp.before}"


def _step(policy: ScalingPolicy) -> str:
    return f"at most {policy.growth - 1:+.0%} in one step"


def _down(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    busy = snapshot.busy >= policy.scale_down_threshold * snapshot.ready
    extra, seconds = surplus(snapshot.spare, snapshot.idle, policy.spare, busy=busy)
    wanted = snapshot.workers - extra
    target = max(policy.min_workers, wanted)
    if not snapshot.idle:
        return _plan(snapshot, policy, now, target, "nothing waits, and nobody is idle")
    ready = plural(snapshot.ready, "worker")
    if not extra:
        return _plan(snapshot, policy, now, target, f"nothing waits; {snapshot.idle} of {ready} idle, not yet for long")
    reason = f"nothing waits, and {extra} of {ready} idled for {seconds:,.0f} s"
    if target == wanted:
        return _plan(snapshot, policy, now, target, reason)
    clamp = Clamp(limit=f"min_workers is {policy.min_workers}", before=wanted, after=target)
    return _plan(snapshot, policy, now, target, reason, _words(clamp), clamps=(clamp,))


def _plan(
    snapshot: ScalingSnapshot,
    policy: ScalingPolicy,
    now: datetime,
    target: int,
    *reasons: str,
    need: int | None = None,
    clamps: tuple[Clamp, ...] = (),
    hurry: bool = False,
) -> ScalingPlan:
    workers = snapshot.workers
    excess = max(0, workers - target)
    leaving = min(snapshot.idle, excess)
    # Those who drain still take their place: the machine has to hold them.
    room = policy.max_workers - snapshot.draining - workers
    return ScalingPlan(
        at=now,
        decision_type=decision_type(workers, target),
        current=workers,
        target=target,
        start=max(0, min(target - workers, room)),
        remove_idle=leaving,
        drain_busy=min(snapshot.busy, excess - leaving),
        need=need,
        reasons=reasons,
        clamps=clamps,
        decide_again_after_seconds=policy.hurry_seconds if hurry else policy.tick_seconds,
    )


def decision_type(current: int, target: int, *, rearranged: bool = False) -> DecisionType:
    """What to call a decision; `rearranged` says that an assignment or a weight changed."""
    if target != current:
        return DecisionType.SCALE_UP if target > current else DecisionType.SCALE_DOWN
    return DecisionType.REBALANCE if rearranged else DecisionType.MAINTAIN


def started(busy: int, mean_seconds: float, left: float, one: float, deviations: float) -> float:
    """Seconds of work that `busy` workers start within the next `left` seconds, the last task of each being `one`.

    Their tasks take `mean_seconds` in all, on average, and end at that rate however long they have run (memoryless, as
    nothing better is known). So a worker is free in time with p = 1 - exp(-left / mean), has left / p - mean seconds
    then, on average, and begins one task more. How many are free is binomial; what counts is so many standard
    deviations fewer than expected. At none, and with tasks at work like those that wait, it is `left` for each.
    """
    if left <= 0:
        return 0.0
    free = -math.expm1(-left / mean_seconds)
    expected = busy * free
    surely = max(0.0, expected - deviations * math.sqrt(expected * (1 - free)))
    return surely * (left / free - mean_seconds + one)
