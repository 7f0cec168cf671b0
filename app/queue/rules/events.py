"""Every kind of event that the service records, in one list."""

from enum import StrEnum


class SystemMove(StrEnum):
    """What happens to the system as a whole; the value is the kind of event that tells of it."""

    DEGRADATION = "degradation.moved"


class GoalMove(StrEnum):
    """What happens to a goal; the value is the kind of event that tells of it."""

    CREATE = "goal.created"
    ITERATE = "goal.iteration"
    PAUSE = "goal.paused"
    RESUME = "goal.resumed"
    EXTEND = "goal.extended"
    # Its budget is committed: no more of its tasks are leased until it is extended.
    HOLD = "goal.held"
    STOP = "goal.stopped"


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


class AlertKind(StrEnum):
    """What is told of an alert; the value is also the kind of event that tells of it."""

    OPENED = "alert.opened"
    WORSENED = "alert.worsened"
    RESOLVED = "alert.resolved"
