"""The list of every kind of event: of tasks, research goals, workers, the system as a whole, and alerts.

A value is stored with every event and published, so it never changes.
"""

from enum import StrEnum


class TaskEvent(StrEnum):
    """A change of a task's state; `rules.tasks.TRANSITIONS` says which are legal and where they lead."""

    SUBMITTED = "task.submitted"
    ASSIGNED = "task.assigned"
    EXECUTING = "task.executing"
    COMPLETED = "task.completed"
    # The attempt failed, and another one follows after a delay.
    RETRYING = "task.retrying"
    FAILED = "task.failed"
    # Its worker gave it back unharmed, which counts neither as a failure nor as a rescue.
    RELEASED = "task.released"
    # Its lease ended without a word from the worker.
    EXPIRED = "task.expired"
    CANCELLED = "task.cancelled"
    # Its last dependency has completed.
    UNBLOCKED = "task.unblocked"
    # A dead letter is in the queue again.
    REQUEUED = "task.requeued"
    # Leads to no other state: it has risen in priority, by its wait or its deadline.
    AGED = "task.aged"
    # Leads to no other state: its priority or deadline was changed by order.
    CHANGED = "task.changed"
    # Leads to no state: the task is deleted, and this is all that is left of it.
    PURGED = "task.purged"
    # Moved to the dead letters to make room for more urgent work.
    DISPLACED = "task.displaced"


class GoalEvent(StrEnum):
    """A change of a research goal."""

    CREATED = "goal.created"
    ITERATION = "goal.iteration"
    PAUSED = "goal.paused"
    RESUMED = "goal.resumed"
    EXTENDED = "goal.extended"
    # No more of its tasks are leased: its money or tokens are used up, until it is extended; or its compute is
    # committed to those under way, until they have ended.
    HELD = "goal.held"
    # Four fifths of its money or tokens are used.
    BUDGET_LOW = "goal.budget_low"
    STOPPED = "goal.stopped"


class WorkerEvent(StrEnum):
    """A worker that cannot work, or whom somebody has ended; about no task and no goal."""

    # Its first health report has not passed, and says why.
    NOT_READY = "worker.not_ready"
    # Another one registered under its name.
    SUPERSEDED = "worker.superseded"
    EVICTED = "worker.evicted"


class SystemEvent(StrEnum):
    """A change of the system as a whole, about no task and no goal."""

    DEGRADATION = "degradation.moved"
    # Somebody has lifted what holds calls of a language model back.
    MODEL_RESET = "llm_model.reset"
    # Its service is in another state: the key is refused, the quota used up, or all is well again.
    MODEL_STATE = "llm_model.state"
    # Four fifths of the budget of an agent type or a key are used.
    BUDGET_LOW = "llm_budget.low"


class AlertKind(StrEnum):
    """What is told of an alert; the value is also the kind of event that tells of it."""

    OPENED = "alert.opened"
    WORSENED = "alert.worsened"
    RESOLVED = "alert.resolved"


EventKind = TaskEvent | GoalEvent | WorkerEvent | SystemEvent | AlertKind
EVENT_KINDS: tuple[EventKind, ...] = (*TaskEvent, *GoalEvent, *WorkerEvent, *SystemEvent, *AlertKind)
