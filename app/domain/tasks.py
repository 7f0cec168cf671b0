"""What a task may become, and what happens to it when an attempt fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import NewType
from uuid import UUID

from app.domain.errors import IllegalMove

TaskId = NewType("TaskId", UUID)


class Priority(IntEnum):
    """Higher goes first."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class TaskState(StrEnum):
    """Where a task is in its life; `retrying` is pending with a future run_at."""

    BLOCKED = "blocked"
    PENDING = "pending"
    ASSIGNED = "assigned"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINISHED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
LEASED = frozenset({TaskState.ASSIGNED, TaskState.EXECUTING})


class Move(StrEnum):
    """A change of state; the value is the kind of event that tells of it."""

    SUBMIT = "task.submitted"
    ASSIGN = "task.assigned"
    EXECUTE = "task.executing"
    COMPLETE = "task.completed"
    RETRY = "task.retrying"
    FAIL = "task.failed"
    RELEASE = "task.released"
    EXPIRE = "task.expired"
    CANCEL = "task.cancelled"
    UNBLOCK = "task.unblocked"
    REQUEUE = "task.requeued"
    # Leads nowhere: the task is gone, and this is all that is left of it.
    PURGE = "task.purged"
    DISPLACE = "task.displaced"


# Every legal move, and where it leads. Statements in the store name their move; nothing else changes a state.
MOVES: Mapping[Move, tuple[frozenset[TaskState], TaskState]] = {
    Move.UNBLOCK: (frozenset({TaskState.BLOCKED}), TaskState.PENDING),
    Move.ASSIGN: (frozenset({TaskState.PENDING}), TaskState.ASSIGNED),
    Move.EXECUTE: (LEASED, TaskState.EXECUTING),
    Move.COMPLETE: (LEASED, TaskState.COMPLETED),
    Move.RETRY: (LEASED, TaskState.PENDING),
    Move.FAIL: (LEASED, TaskState.FAILED),
    Move.RELEASE: (LEASED, TaskState.PENDING),
    Move.EXPIRE: (LEASED, TaskState.PENDING),
    Move.DISPLACE: (frozenset({TaskState.PENDING}), TaskState.FAILED),
    Move.CANCEL: (frozenset({TaskState.BLOCKED, TaskState.PENDING}) | LEASED, TaskState.CANCELLED),
    Move.REQUEUE: (frozenset({TaskState.FAILED}), TaskState.PENDING),
}


def after(state: TaskState, move: Move) -> TaskState:
    """The state that `move` leads to from `state`. Raises IllegalMove."""
    origins, destination = MOVES.get(move, (frozenset(), state))
    if state not in origins:
        raise IllegalMove(f"{move} is not possible for a task that is {state}")
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

    move: Move
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
        return Verdict(move=Move.FAIL, failures=failures, rescues=rescues, run_at=None, reason="not retryable")
    if failures >= policy.max_attempts:
        reason = f"attempt {failures} of {policy.max_attempts} failed"
        return Verdict(move=Move.FAIL, failures=failures, rescues=rescues, run_at=None, reason=reason)
    delay = retry_delay(policy, failures) * draw
    run_at = now + timedelta(seconds=delay) if delay > 0 else None
    reason = f"attempt {failures} of {policy.max_attempts} failed; tried again in {delay:.1f} s"
    return Verdict(move=Move.RETRY, failures=failures, rescues=rescues, run_at=run_at, reason=reason)


def after_rescue(policy: RetryPolicy, *, failures: int, rescues: int, reason: str) -> Verdict:
    """Decide on a task whose worker was lost: back to the queue at once, unless it keeps killing its workers."""
    rescues += 1
    if rescues > policy.max_rescues:
        poison = f"given up after {rescues} lost workers: {reason}"
        return Verdict(move=Move.FAIL, failures=failures, rescues=rescues, run_at=None, reason=poison)
    return Verdict(move=Move.EXPIRE, failures=failures, rescues=rescues, run_at=None, reason=reason)


def retry_delay(policy: RetryPolicy, failures: int) -> float:
    """Upper bound in seconds of the wait after the `failures`-th failure."""
    if not policy.delays_seconds:
        return 0.0
    return policy.delays_seconds[min(failures, len(policy.delays_seconds)) - 1]
