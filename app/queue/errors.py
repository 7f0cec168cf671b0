"""Errors of tasks, leases and workers at the queue; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, Exhausted, Gone, Invalid, NotFound, ValuesRefused


class TaskNotFound(NotFound):
    """There is no such task."""

    code = "task_not_found"


class TaskConflict(Conflict):
    """A task with this id exists already and its body differs."""

    code = "task_conflict"


class TaskIdRefused(ValuesRefused):
    """A task cannot have this id."""

    code = "task_id_refused"


class TaskFinished(Conflict):
    """The task has already finished, so it cannot be changed."""

    code = "task_finished"


class TaskRunning(Conflict):
    """The task is with a worker, so its place in the queue cannot be changed."""

    code = "task_running"


class TaskNotCompleted(Conflict):
    """The task has no result that could be judged."""

    code = "task_not_completed"


class DependencyMissing(Invalid):
    """A task depends on one that does not exist."""

    code = "dependency_missing"


class DependencyCycle(Invalid):
    """The dependencies of the tasks form a cycle."""

    code = "dependency_cycle"


class IdempotencyMismatch(Invalid):
    """This idempotency key was used for another body."""

    code = "idempotency_mismatch"


class SubmitInFlight(Conflict):
    """Another request with this idempotency key is still being worked on; send it again in a moment."""

    code = "submit_in_flight"


class WorkerNotFound(NotFound):
    """There is no such worker."""

    code = "worker_not_found"


class WorkerNotReady(Conflict):
    """The worker has not passed its first health report, so it gets no lease."""

    code = "worker_not_ready"


class WorkerBusy(Conflict):
    """The worker holds a lease already and asked for another."""

    code = "worker_busy"


class LeaseNotFound(NotFound):
    """There is no such lease, or it is not yours."""

    code = "lease_not_found"


class LeaseExpired(Conflict):
    """The lease expired before this call arrived; nothing was changed."""

    code = "lease_expired"


class LeaseSuperseded(Conflict):
    """The task has moved on to a newer lease; nothing was changed."""

    code = "lease_superseded"


class LeaseEnded(Conflict):
    """This lease has ended already, by another call of its worker; nothing was changed."""

    code = "lease_ended"


class CursorExpired(Gone):
    """Events that follow this cursor are no longer kept, so a reader that goes on from it would miss them."""

    code = "cursor_expired"


class CursorAhead(Invalid):
    """No event has such a cursor yet."""

    code = "cursor_ahead"


class TaskCancelled(Conflict):
    """The task was cancelled; nothing was changed."""

    code = "task_cancelled"


class QueueFull(Exhausted):
    """The queue is full; nothing was taken in, so send the request again later."""

    code = "queue_full"


class TooManyResourceClasses(Conflict):
    """Tasks that are not over ask for so many different amounts of resources that there is no room for another."""

    code = "too_many_resource_classes"


class IllegalMove(Conflict):
    """The table of legal moves forbids this change of state."""

    code = "illegal_move"


class DeadLetterNotFound(NotFound):
    """There is no such dead letter."""

    code = "dead_letter_not_found"


class GoalStopped(Conflict):
    """The research goal has stopped, which is final."""

    code = "goal_stopped"
