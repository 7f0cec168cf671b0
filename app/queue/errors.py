"""Errors of tasks, leases and workers at the queue; the first line of a docstring is the title of the problem."""

from app.kernel.errors import ConvenerError


class TaskNotFound(ConvenerError):
    """There is no such task."""

    code = "task_not_found"


class TaskConflict(ConvenerError):
    """A task with this id exists already and its body differs."""

    code = "task_conflict"


class TaskFinished(ConvenerError):
    """The task has already finished, so it cannot be changed."""

    code = "task_finished"


class TaskNotCompleted(ConvenerError):
    """The task has no result that could be judged."""

    code = "task_not_completed"


class DependencyMissing(ConvenerError):
    """A task depends on one that does not exist."""

    code = "dependency_missing"


class DependencyCycle(ConvenerError):
    """The dependencies of the tasks form a cycle."""

    code = "dependency_cycle"


class IdempotencyMismatch(ConvenerError):
    """This idempotency key was used for another body."""

    code = "idempotency_mismatch"


class SubmitInFlight(ConvenerError):
    """Another request with this idempotency key is still being worked on; send it again in a moment."""

    code = "submit_in_flight"


class WorkerNotFound(ConvenerError):
    """There is no such worker."""

    code = "worker_not_found"


class WorkerNotReady(ConvenerError):
    """The worker has not passed its first health report, so it gets no lease."""

    code = "worker_not_ready"


class WorkerBusy(ConvenerError):
    """The worker holds a lease already and asked for another."""

    code = "worker_busy"


class WorkerGone(ConvenerError):
    """This incarnation of the worker is over."""

    code = "worker_gone"


class LeaseNotFound(ConvenerError):
    """There is no such lease, or it is not yours."""

    code = "lease_not_found"


class LeaseExpired(ConvenerError):
    """The lease expired before this call arrived; nothing was changed."""

    code = "lease_expired"


class LeaseSuperseded(ConvenerError):
    """The task has moved on to a newer lease; nothing was changed."""

    code = "lease_superseded"


class TaskCancelled(ConvenerError):
    """The task was cancelled; nothing was changed."""

    code = "task_cancelled"


class QueueFull(ConvenerError):
    """The queue is full; nothing was taken in, so send the request again later."""

    code = "queue_full"


class IllegalMove(ConvenerError):
    """The table of legal moves forbids this change of state."""

    code = "illegal_move"


class DeadLetterNotFound(ConvenerError):
    """There is no such dead letter."""

    code = "dead_letter_not_found"


class GoalStopped(ConvenerError):
    """The research goal has stopped, which is final."""

    code = "goal_stopped"
