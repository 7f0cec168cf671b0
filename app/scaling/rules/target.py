"""Target size of the pool: enough workers that every waiting task starts in time, and no hurry to remove them.

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
from app.scaling.rules.blocks import Blocks
from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.idle import IdlePolicy, IdleSample, idle_prices, surplus
from app.scaling.rules.supply import work_started_in_time
from app.workers.rules.hosts import WorkerLimit

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
    """Bounds and settings: thresholds as shares of 1, durations in seconds.

    Shares of late tasks in the comments are those that waited over 30 s in simulations.
    """

    # The production mode of the specification.
    min_workers: int = 10
    max_workers: int = 1000
    # At 0.9 mixed lengths are late (0.03 %; with starts of 10 s 0.7 %); at 0.7 bursts cost 4 to 7 % more.
    scale_up_threshold: float = 0.8
    # From 0.15 to 0.7 the cost stays within 4 %; at 0 every pool counts as busy, and bursts cost 8 % more.
    scale_down_threshold: float = 0.3
    wait_target_seconds: float = 30.0  # as the contract has it
    # A pool that only holds its size: it is refilled to its minimum and cut to its maximum, nothing else.
    is_fixed: bool = False
    growth: float = conduct(Mode.PRODUCTION).growth
    # How surely workers at work are free in time. At 0 tasks of 120 s are late (0.1 %), at 1 still 0.03 %; at 3.3, the
    # normal quantile of the 0.05 % that may be late, small pools turn round more often than dask's.
    deviations: float = 2.0
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    tick_seconds: float = 5.0  # the most that the contract allows; at 10 mixed lengths are late (0.06 %)
    # A pool that may only double catches up by doubling again soon: at 2 s and with starts of 20 s, three quarters of
    # a large batch are late (seven doublings of 2 s, and a start, are more than a task may wait).
    hurry_seconds: float = 0.5
    # Workers that start may never be ready, so that as many as the minimum stay of those that are.
    keeps_ready: bool = True
    # Where nobody of ours starts workers no decision is made in a hurry, as others act on the target at their pace.
    awaits_others: bool = True
    # Sizes of tasks are multiples of this share of the base: with every digit workers would get others at every tick.
    size_step: float = 0.25

    @property
    def budget_seconds(self) -> float:
        """Seconds that a task may wait: scale_up_threshold * wait_target_seconds; the rest is for bad estimates."""
        return self.scale_up_threshold * self.wait_target_seconds


def in_mode(policy: ScalingPolicy, mode: Mode) -> ScalingPolicy:
    """The policy in a deployment mode, which may fix the size of the pool or slow it down, and nothing else."""
    limits = conduct(mode)
    settle_seconds = max(policy.idle.settle_seconds, limits.scale_down_window_seconds)
    return replace(
        policy,
        is_fixed=policy.is_fixed or not limits.scales,
        growth=min(policy.growth, limits.growth),
        idle=replace(policy.idle, settle_seconds=settle_seconds),
    )


def priced(policy: ScalingPolicy, start_seconds: float) -> ScalingPolicy:
    """The policy where workers take so long to start: idle ones are kept until that has cost as much as new ones."""
    return replace(policy, idle=idle_prices(policy.idle, start_seconds))


def scaling_policy(document: Document, mode: Mode) -> ScalingPolicy:
    """The policy of a configuration document in a deployment mode."""
    pool = document.worker_pool
    policy = ScalingPolicy(
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        scale_up_threshold=pool.scale_up_threshold,
        scale_down_threshold=pool.scale_down_threshold,
        wait_target_seconds=pool.wait_target_seconds,
    )
    return in_mode(policy, mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSnapshot:
    """The pool and its queue; None means not measured, which is not zero.

    `idle_unable` of the idle ones can run none of the tasks that wait; `idle_elsewhere` of them are not ours to
    remove, as hosts of ours have workers too; `blocks` is None where each worker goes alone; `starting` holds the
    seconds until each starting worker is ready; `waiting` is in the order of dispatch; `idle_history` has the
    latest last; `cpu` is a share of 1; `start_seconds` is a high percentile of measured starts; `limits` are those
    of hosts and permits; `fixed_size` is the size of a pool that does not scale; `running_mean_seconds` is the
    estimated mean run time, in all, of the tasks that run.
    """

    idle: int
    busy: int
    idle_unable: int = 0
    idle_elsewhere: int = 0
    blocks: Blocks | None = None
    starting: Sequence[float] = ()
    draining: int = 0
    waiting: Sequence[WaitingGroup] | None
    idle_history: Sequence[IdleSample] = ()
    cpu: float | None
    start_seconds: float = USUAL_START_SECONDS
    limits: Sequence[WorkerLimit] = ()
    fixed_size: int | None = None
    running_mean_seconds: float | None = None

    @property
    def ready(self) -> int:
        """Workers that can hold a task."""
        return self.idle + self.busy

    @property
    def able(self) -> int:
        """Workers that can hold a task of those that wait, or hold one."""
        return self.ready - self.idle_unable

    @property
    def workers(self) -> int:
        """Size of the pool: starting workers count, draining ones do not."""
        return self.ready + len(self.starting)

    def is_late(self, policy: ScalingPolicy) -> bool:
        """Whether a task waits that no worker can start in time any more."""
        return any(g.tasks and g.oldest_age_seconds > policy.budget_seconds for g in self.waiting or ())

    def is_above(self, size: int) -> bool:
        """Whether the pool is too large by a worker, or by a block: a part of one that is too many stays."""
        return self.workers - size >= (1 if self.blocks is None else self.blocks.smallest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """A limit that changed the target, with the target before and after it."""

    limit: str
    old_target: int
    new_target: int

    def __str__(self) -> str:
        return f"{self.limit}: {self.new_target} instead of {self.old_target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPlan:
    """Changes to the size of the pool, with reasons.

    `remove_idle` workers leave now, those at work in a block that goes after their task; `drain_busy` leave after
    theirs; `remove_starting` leave before they have worked; no other may be removed. `kept_with_blocks` more would
    leave, if not for others of their blocks. With `required_workers` every waiting task starts in time; None where that
    was not computed.
    """

    at: datetime
    decision_type: DecisionType
    current: int
    target: int
    start: int = 0
    remove_idle: int = 0
    drain_busy: int = 0
    kept_with_blocks: int = 0
    required_workers: int | None = None
    reasons: tuple[str, ...]
    clamps: tuple[Clamp, ...] = field(default=())
    decide_again_after_seconds: float

    @property
    def remove_starting(self) -> int:
        """Number of workers above the maximum that leave before they have worked."""
        return max(0, self.current - self.target - self.remove_idle - self.drain_busy)

    @property
    def is_deferred(self) -> bool:
        """Whether growth that is needed was left out for a reason other than a limit."""
        return self.required_workers is not None and self.required_workers > self.target and not self.clamps


def decide(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    """Decide the size of the pool: bounds come first, then growth while tasks wait, and shrinking once none does."""
    workers = snapshot.workers
    # The bounds hold in every mode and whatever is measured, so they come before everything else.
    if workers < policy.min_workers:
        reason = f"{plural(workers, 'worker')}, and the minimum is {policy.min_workers}"
        return _plan(snapshot, policy, now, policy.min_workers, reason, hurry=bool(snapshot.waiting))
    if snapshot.is_above(policy.max_workers):
        reason = f"{plural(workers, 'worker')}, and the maximum is {policy.max_workers}"
        return _plan(snapshot, policy, now, policy.max_workers, reason)
    if policy.is_fixed:
        return _hold_size(snapshot, policy, now)
    if snapshot.waiting is None:
        return _plan(snapshot, policy, now, workers, "it is not known how many tasks wait: nothing changes on a guess")
    if any(group.tasks for group in snapshot.waiting):
        return _up(snapshot, policy, now)
    return _down(snapshot, policy, now)


def required_workers(snapshot: ScalingSnapshot, policy: ScalingPolicy) -> int:
    """The smallest pool with which every waiting task starts within its budget; never more than there are tasks.

    Walk the groups in the order of dispatch, with k tasks and W seconds of work so far, the shortest task, and
    remaining = max(0, budget - age). The pool starts `capacity` of that work in time: remaining for each idle worker,
    work_started_in_time() for the busy ones, and remaining + shortest less the rest of its start for each starting
    one. A new worker starts max(0, remaining - start_seconds) + shortest, as its last task need only begin. The result
    is min(n + ceil(max((W - capacity) / new)), k + busy) for a pool of n. Idle workers that can run none of the tasks
    start nothing, and are there besides.
    """
    tasks, work, shortest, extra = 0, 0.0, math.inf, 0.0
    starting, until_ready, mean = len(snapshot.starting), sum(snapshot.starting), snapshot.running_mean_seconds
    for group in snapshot.waiting or ():
        if group.tasks <= 0 or group.work_seconds <= 0:
            continue
        tasks += group.tasks
        work += group.work_seconds
        # Not the mean of all so far: a mean would let a long task that joins lower the number of workers.
        shortest = min(shortest, group.work_seconds / group.tasks)
        remaining = max(0.0, policy.budget_seconds - group.oldest_age_seconds)
        if mean is None:  # it was not kept once, and a decision of then is to be made again as it was
            capacity = snapshot.able * remaining
        else:
            busy_capacity = work_started_in_time(snapshot.busy, mean, remaining, shortest, policy.deviations)
            capacity = (snapshot.idle - snapshot.idle_unable) * remaining + busy_capacity
        # Starting workers work only once they are ready; each may begin its last task at the end of the budget.
        capacity += max(0.0, starting * (remaining + shortest) - until_ready)
        if work > capacity:
            new_worker = max(0.0, remaining - snapshot.start_seconds) + shortest
            extra = max(extra, (work - capacity) / new_worker)
    # More workers than tasks could not help, whatever the estimates say.
    return min(snapshot.workers + math.ceil(extra), tasks + snapshot.busy + snapshot.idle_unable)


def is_burst(queued_work_seconds: float, workers: int, seconds_since_last: float, policy: ScalingPolicy) -> bool:
    """Whether an arrival calls for a decision at once instead of at the next tick."""
    overdue = queued_work_seconds > policy.budget_seconds / 2 * workers
    return overdue and seconds_since_last >= policy.hurry_seconds


def _hold_size(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    workers = snapshot.workers
    size = workers if snapshot.fixed_size is None else snapshot.fixed_size
    target = max(policy.min_workers, min(size, policy.max_workers))
    if workers >= target and not snapshot.is_above(target):
        return _plan(snapshot, policy, now, workers, "the pool has a fixed size in this mode")
    reason = f"{plural(workers, 'worker')}, and the pool has a fixed size of {target} in this mode"
    return _plan(snapshot, policy, now, target, reason)


def _up(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    workers, required_size = snapshot.workers, required_workers(snapshot, policy)
    groups = snapshot.waiting or ()
    tasks, work = sum(group.tasks for group in groups), sum(group.work_seconds for group in groups)
    backlog = f"{plural(tasks, 'task')} of about {work:,.0f} s of work {'waits' if tasks == 1 else 'wait'}"
    if required_size <= workers:
        in_time = f"start all within {policy.budget_seconds:g} s"
        enough = "are one for each of them beside those at work" if snapshot.is_late(policy) else in_time
        reason = f"{backlog}, and {plural(workers, 'worker')} {enough}"
        return _plan(snapshot, policy, now, workers, reason, required_workers=required_size)
    objection = _why_not_workers(snapshot, policy)
    if objection is not None:
        return _plan(snapshot, policy, now, workers, backlog, objection, required_workers=required_size)
    target, clamps = _clamp(required_size, snapshot, policy)
    reason = f"{backlog}; to start each within {policy.budget_seconds:g} s takes {plural(required_size, 'worker')}"
    limits = [str(clamp) for clamp in clamps]
    # Only where the step was the tightest limit does another decision soon allow more.
    hurry = bool(clamps) and clamps[-1].limit == _step(policy)
    return _plan(
        snapshot, policy, now, target, reason, *limits, required_workers=required_size, clamps=clamps, hurry=hurry
    )


def _why_not_workers(snapshot: ScalingSnapshot, policy: ScalingPolicy) -> str | None:
    """Why more workers would not help; None when workers are what is short."""
    # Where workers idle while tasks wait, something other than workers is short.
    able = snapshot.able
    busy_share = snapshot.busy / able if able else 1.0
    if busy_share >= policy.scale_up_threshold:
        return None
    if snapshot.cpu is None:
        return "the CPU is not measured, and not all workers are busy: nothing changes on a guess"
    if snapshot.cpu >= policy.scale_up_threshold:
        return None
    return f"tasks wait although {able - snapshot.busy} of {plural(able, 'worker')} are idle: more cannot help"


def _clamp(required_size: int, snapshot: ScalingSnapshot, policy: ScalingPolicy) -> tuple[int, tuple[Clamp, ...]]:
    """The target within every limit, and the limits that changed it, tightest last.

    No limit takes the target below the present size or the minimum.
    """
    workers = snapshot.workers
    limits = [
        # One worker more is always allowed, or a small pool whose step is a quarter could never grow.
        (_step(policy), max(workers + 1, math.floor(policy.growth * workers))),
        (f"max_workers is {policy.max_workers}", policy.max_workers),
        (f"{plural(snapshot.draining, 'draining worker')} still count", policy.max_workers - snapshot.draining),
        *(
            (f"{limit.resource} suffice for {plural(limit.workers, 'worker')}", limit.workers)
            for limit in snapshot.limits
        ),
    ]
    target, clamps = required_size, list[Clamp]()
    for name, max_workers in sorted(limits, key=lambda pair: -pair[1]):
        clamped_target = max(workers, policy.min_workers, min(target, max_workers))
        if clamped_target < target:
            clamps.append(Clamp(limit=name, old_target=target, new_target=clamped_target))
        target = min(target, clamped_target)
    return target, tuple(clamps)


def _step(policy: ScalingPolicy) -> str:
    return f"at most {policy.growth - 1:+.0%} in one step"


def _down(snapshot: ScalingSnapshot, policy: ScalingPolicy, now: datetime) -> ScalingPlan:
    # A busy pool keeps its idle workers for longer, as its next burst is nearer.
    busy = snapshot.busy >= policy.scale_down_threshold * snapshot.ready
    idle, seconds = surplus(snapshot.idle_history, snapshot.idle, policy.idle, busy=busy)
    # Whoever has started the others ends them; telling them to go would be said again at every tick.
    extra = min(idle, snapshot.idle - snapshot.idle_elsewhere)
    unclamped_target = snapshot.workers - extra
    starting = len(snapshot.starting) if policy.keeps_ready else 0
    target = max(policy.min_workers, min(policy.min_workers + starting, snapshot.workers), unclamped_target)
    if not snapshot.idle:
        return _plan(snapshot, policy, now, target, "nothing waits, and nobody is idle")
    ready = plural(snapshot.ready, "worker")
    if not extra:
        why = "and those are not ours to remove" if idle else "not yet for long"
        return _plan(snapshot, policy, now, target, f"nothing waits; {snapshot.idle} of {ready} idle, {why}")
    reason = f"nothing waits, and {extra} of {ready} idled for {seconds:,.0f} s"
    limit = f"min_workers is {policy.min_workers}" + (f" besides {starting} that start" if starting else "")
    clamps = [Clamp(limit=limit, old_target=unclamped_target, new_target=target)] if target > unclamped_target else []
    kept = 0 if snapshot.blocks is None else snapshot.blocks.kept_of(snapshot.workers - target)
    if kept:
        clamps.append(Clamp(limit="the workers of a block go together", old_target=target, new_target=target + kept))
    plan = _plan(snapshot, policy, now, target + kept, reason, *map(str, clamps), clamps=tuple(clamps))
    return replace(plan, kept_with_blocks=kept)


def _plan(
    snapshot: ScalingSnapshot,
    policy: ScalingPolicy,
    now: datetime,
    target: int,
    *reasons: str,
    required_workers: int | None = None,
    clamps: tuple[Clamp, ...] = (),
    hurry: bool = False,
) -> ScalingPlan:
    workers = snapshot.workers
    excess = max(0, workers - target)
    # Above the maximum those that have not started go first: nobody waits for the end of a task of theirs.
    is_over = workers > policy.max_workers and snapshot.blocks is None
    remove_starting = min(len(snapshot.starting), excess) if is_over else 0
    leaving = min(snapshot.idle, excess - remove_starting)
    # Draining workers still take their place, as the machine has to hold them.
    room = policy.max_workers - snapshot.draining - workers
    return ScalingPlan(
        at=now,
        decision_type=decision_type(workers, target),
        current=workers,
        target=target,
        start=max(0, min(target - workers, room)),
        remove_idle=leaving,
        drain_busy=min(snapshot.busy, excess - remove_starting - leaving),
        required_workers=required_workers,
        reasons=reasons,
        clamps=clamps,
        decide_again_after_seconds=policy.hurry_seconds if hurry else policy.tick_seconds,
    )


def decision_type(current: int, target: int, *, is_rearranged: bool = False) -> DecisionType:
    """Type of a decision; `is_rearranged` says that an assignment or a weight changed."""
    if target != current:
        return DecisionType.SCALE_UP if target > current else DecisionType.SCALE_DOWN
    return DecisionType.REBALANCE if is_rearranged else DecisionType.MAINTAIN
