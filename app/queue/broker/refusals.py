"""Refusals of workers that may have no task."""

from app.kernel.errors import ConvenerError, WorkerGone
from app.kernel.states import WorkerState
from app.queue.errors import WorkerNotFound, WorkerNotReady


def refusal(state: str | None, not_ready_reason: str | None) -> ConvenerError:
    """The error for a worker in this state; None: there is no such worker."""
    if state is None:
        return WorkerNotFound()
    if state == WorkerState.STARTING:
        detail = f"the worker's health report has not passed: {not_ready_reason}" if not_ready_reason else None
        return WorkerNotReady(detail, reason=not_ready_reason)
    return WorkerGone(f"this worker is {state}", reason=state)
