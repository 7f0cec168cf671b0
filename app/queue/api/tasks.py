"""Routes of tasks for the Supervisor: list, read, change and cancel."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.http.fields import IdPrefix, MatchesOut, ReasonIn
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import InBatches, Reading, Writing
from app.kernel.access import Scope
from app.queue.api.task_filters import CancelManyIn, TaskQuery
from app.queue.api.task_schemas import (
    ChangeIn,
    TaskOut,
    TaskPage,
    summary,
    whole,
)
from app.queue.errors import (
    TaskFinished,
    TaskNotFound,
    TaskRunning,
)
from app.queue.service import cancel as cancel_service
from app.queue.service import changes
from app.queue.service import tasks as service
from app.queue.store import listing

router = Router(prefix="/tasks", tags=["tasks"])
_CONTENT = [requires(Scope.READ, Scope.CONTENT)]
# The answer shows all of what it changed.
_CHANGE = [requires(Scope.SUBMIT, Scope.CONTENT)]


class CancelledMany(BaseModel):
    """What a call of `POST /tasks/cancel` has done."""

    matched: int = Field(description="tasks that the filter selected when the call began")
    cancelled: int = Field(description="those of them that were cancelled")
    dependents: int = Field(description="others that were cancelled because they waited for those")
    remaining: int = Field(description="those that are left: repeat the call to go on")
    dry_run: bool


@router.get("", operation_id="list_tasks", summary="List tasks", dependencies=_CONTENT)
async def page(connection: Reading, namespace: Within, query: Annotated[TaskQuery, Query()]) -> TaskPage:
    """Live and finished tasks, newest first. A page may be short and still have a `next`; go on until it is null."""
    rows = await listing.page(connection, query.selection(namespace), below=query.after, limit=query.limit)
    return TaskPage(items=[summary(row) for row in rows.items], next=None if rows.next is None else str(rows.next))


@router.post(
    "/cancel",
    operation_id="cancel_tasks",
    summary="Cancel the tasks that a filter selects",
    dependencies=[requires(Scope.SUBMIT)],
)
async def cancel_many(order: CancelManyIn, database: InBatches, caller: Caller, namespace: Within) -> CancelledMany:
    """Waiting and running ones, and all that wait for them; workers that run one stop with their next heartbeat.

    Up to `limit` in one call, in batches that are each durable at once: repeat the call while `remaining` is not 0.
    """
    outcome = await cancel_service.cancel(
        database,
        order.filter.selection(namespace),
        limit=order.limit,
        reason=order.reason,
        dry_run=order.dry_run,
        by=caller.key_id,
    )
    return CancelledMany(
        matched=outcome.matching_count,
        cancelled=outcome.cancelled_count,
        dependents=outcome.dependent_count,
        remaining=outcome.remaining,
        dry_run=order.dry_run,
    )


@router.get(
    "/ids/{prefix}",
    operation_id="find_task_ids",
    summary="Find tasks by the beginning of their ids",
    dependencies=_CONTENT,
)
async def ids(prefix: IdPrefix, connection: Reading, namespace: Within) -> MatchesOut:
    """For people, who type a few digits of an id; live and finished tasks."""
    return MatchesOut.model_validate(await listing.ids(connection, prefix, namespace), from_attributes=True)


@router.get(
    "/{task_id}",
    operation_id="get_task",
    summary="Read a task",
    dependencies=_CONTENT,
    responses=responses_for(TaskNotFound),
)
async def read(task_id: UUID, connection: Reading, namespace: Within) -> TaskOut:
    """Everything about it: payload, progress, result, and the attempts that failed."""
    return whole(await service.read(connection, task_id, namespace))


@router.patch(
    "/{task_id}",
    operation_id="change_task",
    summary="Change a task that waits",
    dependencies=_CHANGE,
    responses=responses_for(TaskNotFound, TaskFinished, TaskRunning),
)
async def change(task_id: UUID, order: ChangeIn, connection: Writing, caller: Caller, namespace: Within) -> TaskOut:
    """With another priority it counts as submitted with that one, at its goal's next place.

    With a lower one it waits anew.

    Fields that are left out stay as they are, and repeating a change does nothing.
    """
    await changes.change(connection, task_id, order.change(), order.reason, namespace, by=caller.key_id)
    return whole(await service.read(connection, task_id))


@router.post(
    "/{task_id}/cancel",
    operation_id="cancel_task",
    summary="Cancel a task",
    dependencies=_CHANGE,
    responses=responses_for(TaskNotFound, TaskFinished),
)
async def cancel(
    task_id: UUID, cancellation: ReasonIn, connection: Writing, caller: Caller, namespace: Within
) -> TaskOut:
    """It ends now; a worker that runs it stops with its next heartbeat. Cancelling twice is fine."""
    await service.cancel(connection, task_id, cancellation.reason, namespace, by=caller.key_id)
    return whole(await service.read(connection, task_id))
