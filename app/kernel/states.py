"""States of tasks and workers."""

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task is in its life; `retrying` is pending with a future run_at."""

    BLOCKED = "blocked"
    PENDING = "pending"
    ASSIGNED = "assigned"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


# Only the dead letters lead out of these: a failed task can be queued again.
FINISHED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})


class WorkerState(StrEnum):
    """Stored states. `busy` is shown for a ready worker that holds a lease; it is derived, never stored."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    LOST = "lost"
    FAILED = "failed"


LIVE_STATES = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING})
