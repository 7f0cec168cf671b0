"""The state machine of a task, and the decisions after failed attempts, lost workers and expired leases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.admin.rules.config import Document
from app.kernel.events import TaskEvent
from app.kernel.states import TaskState
from app.queue.errors import IllegalMove

LEASED = frozenset({TaskState.ASSIGNED, TaskState.EXECUTING})

# Event -> the states in which it may happen and the state that follows. SQL statements that change states agree with
# this table; the property tests compare the whole service with it.
TRANSITIONS: Mapping[TaskEvent, tuple[frozenset[TaskState], TaskState]] = {
    TaskEvent.UNBLOCKED: (frozenset({TaskState.BLOCKED}), TaskState.PENDING),
    TaskEvent.ASSIGNED: (frozenset({TaskState.PENDING}), TaskState.ASSIGNED),
    TaskEvent.EXECUTING: (LEASED, TaskState.EXECUTING),
    TaskEvent.COMPLETED: (LEASED, TaskState.COMPLETED),
    TaskEvent.RETRYING: (LEASED, TaskState.PENDING),
    TaskEvent.FAILED: (LEASED, TaskState.FAILED),
    TaskEvent.RELEASED: (LEASED, TaskState.PENDING),
    TaskEvent.EXPIRED: (LEASED, TaskState.PENDING),
    TaskEvent.DISPLACED: (frozenset({TaskState.PENDING}), TaskState.FAILED),
    TaskEvent.CANCELLED: (frozenset({TaskState.BLOCKED, TaskState.PENDING}) | LEASED, TaskState.CANCELLED),
    TaskEvent.REQUEUED: (frozenset({TaskState.FAILED}), TaskState.PENDING),
}

# Error codes that say nothing about the agent: limits and outages of the language model, a worker without what it
# needs. Any other failure is the agent's own. Lost workers and released tasks are no failures at all.
_EXTERNAL_CODES = frozenset({"rate_limited", "llm_unavailable", "llm_not_configured", "handler_unavailable"})

# The unit of compute assigned to an agent: twice this gives each of its tasks twice its timeout, whatever that is.
BASE_COMPUTE_SECONDS = 600.0


def next_state(state: TaskState, event: TaskEvent) -> TaskState:
    """The state in which `event` leaves a task that is in `state`. Raises IllegalMove."""
    origins, destination = TRANSITIONS.get(event, (frozenset(), state))
    if state not in origins:
        raise IllegalMove(f"{event} is not possible for a task that is {state}")
    return destination


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits on attempts and rescues, and upper bounds of the delays between attempts; the last delay repeats."""

    max_attempts: int = 3
    delays_seconds: Sequence[float] = (5.0, 30.0, 120.0)
    max_rescues: int = 5
    # Leases that nobody acknowledged say nothing about a task that never ran, so there may be many. After the first few
    # the task rests, twice as long each time: whatever keeps workers from it needs time to be over.
    max_unacknowledged: int = 20
    unacknowledged_at_once: int = 3
    max_rest_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """Least wait in seconds of a task that was handed back more often than is free: a step for each time, to a limit.

    Otherwise a handler that always postpones would keep a worker busy for ever.
    """

    free_returns: int = 10
    step_seconds: float = 0.1
    max_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Decision on a task whose attempt ended without a result: the event, its new counts, and its next time to run.

    `unacknowledged` is None where it stays as it was.
    """

    event: TaskEvent
    failures: int
    rescues: int
    unacknowledged: int | None = None
    run_at: datetime | None
    reason: str


def after_failure(
    policy: RetryPolicy, *, failures: int, rescues: int, retryable: bool, now: datetime, draw: float
) -> Verdict:
    """Decide on a task whose attempt failed; `draw` in [0, 1) spreads the delay (full jitter, U(0, delay))."""
    failures += 1
    if not retryable:
        return Verdict(event=TaskEvent.FAILED, failures=failures, rescues=rescues, run_at=None, reason="not retryable")
    if failures >= policy.max_attempts:
        reason = f"attempt {failures} of {policy.max_attempts} failed"
        return Verdict(event=TaskEvent.FAILED, failures=failures, rescues=rescues, run_at=None, reason=reason)
    delay = retry_delay(policy, failures) * draw
    run_at = now + timedelta(seconds=delay) if delay > 0 else None
    reason = f"attempt {failures} of {policy.max_attempts} failed; tried again in {delay:.1f} s"
    return Verdict(event=TaskEvent.RETRYING, failures=failures, rescues=rescues, run_at=run_at, reason=reason)


def after_rescue(policy: RetryPolicy, *, failures: int, rescues: int, reason: str) -> Verdict:
    """Decide on a task whose worker was lost: back to the queue at once, unless it has lost too many workers."""
    rescues += 1
    if rescues > policy.max_rescues:
        # A poison task: whatever it does to its workers, it would do it to the next one too.
        reason = f"given up after {rescues} lost workers: {reason}"
        return Verdict(event=TaskEvent.FAILED, failures=failures, rescues=rescues, run_at=None, reason=reason)
    return Verdict(event=TaskEvent.EXPIRED, failures=failures, rescues=rescues, run_at=None, reason=reason)


def after_release(
    policy: ReleasePolicy,
    *,
    returns: int,
    failures: int,
    rescues: int,
    delay_seconds: float,
    now: datetime,
    reason: str,
) -> Verdict:
    """Decide on a task that its worker hands back, as `returns` did before: it waits as asked, and longer after many.

    It never fails for that: whoever has no room for a task may have none for days.
    """
    returns += 1
    least_seconds = min(policy.max_seconds, policy.step_seconds * returns) if returns > policy.free_returns else 0.0
    if least_seconds > delay_seconds:
        delay_seconds = least_seconds
        reason = f"{reason}; handed back {returns} times, so it waits {least_seconds:.1f} s"
    run_at = now + timedelta(seconds=delay_seconds) if delay_seconds else None
    return Verdict(event=TaskEvent.RELEASED, failures=failures, rescues=rescues, run_at=run_at, reason=reason)


def after_no_acknowledgement(
    policy: RetryPolicy, *, failures: int, rescues: int, unacknowledged: int, now: datetime, reason: str
) -> Verdict:
    """Decide on a task whose lease ended before its worker acknowledged it, so that it has not begun."""
    unacknowledged += 1
    verdict = Verdict(
        event=TaskEvent.EXPIRED,
        failures=failures,
        rescues=rescues,
        unacknowledged=unacknowledged,
        run_at=None,
        reason=reason,
    )
    if unacknowledged > policy.max_unacknowledged:
        reason = f"given up after {unacknowledged} leases that no worker acknowledged: {reason}"
        return replace(verdict, event=TaskEvent.FAILED, reason=reason)
    if unacknowledged <= policy.unacknowledged_at_once:
        return verdict
    rest = min(policy.max_rest_seconds, 2.0 ** (unacknowledged - policy.unacknowledged_at_once))
    return replace(verdict, run_at=now + timedelta(seconds=rest), reason=f"{reason}; tried again in {rest:.0f} s")


def retry_delay(policy: RetryPolicy, failures: int) -> float:
    """Upper bound in seconds of the wait after the `failures`-th failure."""
    if not policy.delays_seconds:
        return 0.0
    return policy.delays_seconds[min(failures, len(policy.delays_seconds)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """Times of leases in seconds. Heartbeats renew a lease; one that is not acknowledged expires early."""

    lease_seconds: float = 15.0
    acknowledge_within_seconds: float = 5.0
    # A worker kills a task at its limit by itself; the service waits this much longer before it steps in.
    deadline_grace_seconds: float = 10.0
    max_wait_seconds: float = 30.0
    # A task whose attempt has failed waits this long for another worker before the same one may try again.
    avoid_seconds: float = 3.0
    # Of a task that names no timeout of its own.
    task_timeout_seconds: float = 300.0


def lease_policy(document: Document, settings: LeasePolicy) -> LeasePolicy:
    """The policy of the configuration; what that leaves open is as the settings of the process say."""
    recovery = document.recovery
    return replace(
        settings,
        lease_seconds=recovery.lease_seconds or settings.lease_seconds,
        acknowledge_within_seconds=recovery.acknowledge_within_seconds or settings.acknowledge_within_seconds,
        avoid_seconds=document.queue.avoid_failed_worker_seconds,
        task_timeout_seconds=float(document.worker_pool.worker_timeout_seconds),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSnapshot:
    """Numbers of expired and of all live leases, and the time since the last sweep.

    Sweeps have held back for `held_back_seconds` already, None where the last one did not.
    """

    expired_count: int
    live_count: int
    seconds_since_last_sweep: float
    held_back_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """Limits beyond which mass expiry is blamed on the service rather than on its workers."""

    mass_share: float = 0.5
    mass_at_least: int = 4
    paused_after_seconds: float = 7.5
    # Of one interval between heartbeats, in which every live worker has renewed its lease.
    grace_seconds: float = 5.0


def hold_back_reason(snapshot: SweepSnapshot, policy: SweepPolicy) -> str | None:
    """The reason why this sweep must expire nothing, or None, as always once a heartbeat interval has passed."""
    if snapshot.expired_count == 0:
        return None
    if snapshot.held_back_seconds is not None:
        if snapshot.held_back_seconds > policy.grace_seconds:
            return None
        return (
            f"workers have until their next heartbeat to renew {snapshot.expired_count} of {snapshot.live_count} leases"
        )
    if snapshot.seconds_since_last_sweep > policy.paused_after_seconds:
        return f"no sweep ran for {snapshot.seconds_since_last_sweep:.0f} s: workers could not renew while we were away"
    if (
        snapshot.expired_count >= policy.mass_at_least
        and snapshot.expired_count > policy.mass_share * snapshot.live_count
    ):
        return f"{snapshot.expired_count} of {snapshot.live_count} leases expired at once"
    return None


def is_agent_fault(code: str) -> bool:
    """Whether a failure with this code counts against the agent."""
    return code not in _EXTERNAL_CODES
