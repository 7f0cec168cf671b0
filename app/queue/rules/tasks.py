"""What a task may become, and what happens to it when an attempt fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.kernel.states import TaskState
from app.queue.errors import IllegalMove
from app.queue.rules.events import TaskEvent

LEASED = frozenset({TaskState.ASSIGNED, TaskState.EXECUTING})


# Every legal move, and where it leads. Statements in the store name their move; nothing else changes a state.
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


# What befalls an attempt from outside: limits and outages of the language model, a worker without what it needs. A
# failure of any other kind is the agent's own. Lost workers and tasks that are handed back are no failures at all.
_FROM_OUTSIDE = frozenset({"rate_limited", "llm_unavailable", "llm_not_configured", "handler_unavailable"})


# What a task may take by default, and so what compute time is measured by: twice that gives every task of the agent
# twice its own timeout, whatever that is.
BASE_COMPUTE_SECONDS = 600.0


def next_state(state: TaskState, event: TaskEvent) -> TaskState:
    """The state in which `event` leaves a task that is in `state`. Raises IllegalMove."""
    origins, destination = TRANSITIONS.get(event, (frozenset(), state))
    if state not in origins:
        raise IllegalMove(f"{event} is not possible for a task that is {state}")
    return destination


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failed task is tried again. Delays in seconds; the last one repeats."""

    max_attempts: int = 3
    delays_seconds: Sequence[float] = (5.0, 30.0, 120.0)
    max_rescues: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a task whose attempt ended badly: the move, when it may run again, and why."""

    event: TaskEvent
    failures: int
    rescues: int
    run_at: datetime | None
    reason: str


def after_failure(
    policy: RetryPolicy, *, failures: int, rescues: int, retryable: bool, now: datetime, draw: float
) -> Verdict:
    """Decide on a task whose attempt failed; `draw` in [0, 1) spreads the delay (full jitter: U(0, delay))."""
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
    """Decide on a task whose worker was lost: back to the queue at once, unless it keeps killing its workers."""
    rescues += 1
    if rescues > policy.max_rescues:
        poison = f"given up after {rescues} lost workers: {reason}"
        return Verdict(event=TaskEvent.FAILED, failures=failures, rescues=rescues, run_at=None, reason=poison)
    return Verdict(event=TaskEvent.EXPIRED, failures=failures, rescues=rescues, run_at=None, reason=reason)


def retry_delay(policy: RetryPolicy, failures: int) -> float:
    """Upper bound in seconds of the wait after the `failures`-th failure."""
    if not policy.delays_seconds:
        return 0.0
    return policy.delays_seconds[min(failures, len(policy.delays_seconds)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """Seconds. A lease is renewed by its worker's heartbeat; one that is not acknowledged returns early."""

    lease_seconds: float = 15.0
    acknowledge_within_seconds: float = 5.0
    # A worker kills a task at its limit by itself; the service waits this much longer before it steps in.
    deadline_grace_seconds: float = 10.0
    max_wait_seconds: float = 30.0
    # A task whose attempt has failed waits this long for another worker before the same one may try again.
    avoid_seconds: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSnapshot:
    """What a sweep sees: leases past their expiry, all live leases, and how long ago the last sweep was.

    `held_back_seconds` is for how long sweeps have taken nothing back already, None when the last one did.
    """

    expired: int
    live: int
    seconds_since_last_sweep: float
    held_back_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """When so many leases expire at once that the service is likelier at fault than the workers."""

    mass_share: float = 0.5
    mass_at_least: int = 4
    paused_after_seconds: float = 7.5
    # Workers beat every 5 s: in that time everybody who lives has renewed.
    patience_seconds: float = 5.0


def reason_to_hold_back(snapshot: SweepSnapshot, policy: SweepPolicy) -> str | None:
    """Why this sweep takes nothing back, or None. Not for longer than a heartbeat: then the leases are truly dead."""
    if snapshot.expired == 0:
        return None
    if snapshot.held_back_seconds is not None:
        if snapshot.held_back_seconds > policy.patience_seconds:
            return None
        return f"workers have until their next heartbeat to renew {snapshot.expired} of {snapshot.live} leases"
    if snapshot.seconds_since_last_sweep > policy.paused_after_seconds:
        return f"no sweep ran for {snapshot.seconds_since_last_sweep:.0f} s: workers could not renew while we were away"
    if snapshot.expired >= policy.mass_at_least and snapshot.expired > policy.mass_share * snapshot.live:
        return f"{snapshot.expired} of {snapshot.live} leases expired at once"
    return None


def is_agent_fault(code: str) -> bool:
    """Whether a failure with this code says something about the agent."""
    return code not in _FROM_OUTSIDE
