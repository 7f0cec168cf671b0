"""Routes of tasks for the Supervisor: submit, list, read and cancel."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from pydantic import BaseModel, Field

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.fields import ReasonIn
from app.http.guard import Caller, requires
from app.http.namespaces import Into, Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import PayloadLimit, ServicesDep
from app.http.transactions import InBatches, Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope
from app.queue.api import advice
from app.queue.api.task_filters import CancelManyIn, TaskQuery
from app.queue.api.task_schemas import (
    BatchIn,
    BatchOut,
    ChangeIn,
    IdempotencyKey,
    NewTaskOut,
    Origin,
    SubmittedOut,
    TaskIn,
    TaskOut,
    TaskPage,
    Traceparent,
    summary,
    whole,
)
from app.queue.errors import (
    DependencyCycle,
    DependencyMissing,
    GoalStopped,
    IdempotencyMismatch,
    QueueFull,
    SubmitInFlight,
    TaskConflict,
    TaskFinished,
    TaskIdRefused,
    TaskNotFound,
    TaskRunning,
)
from app.queue.service import cancel as cancel_service
from app.queue.service import changes
from app.queue.service import tasks as service
from app.queue.service.submits import SubmitService
from app.queue.service.tasks import Intake
from app.queue.store import listing

router = Router(prefix="/tasks", tags=["tasks"])
_CONTENT = [requires(Scope.READ, Scope.CONTENT)]
# The answer shows all of what it changed.
_CHANGE = [requires(Scope.SUBMIT, Scope.CONTENT)]
_REFUSED = responses_for(
    TaskConflict,
    TaskIdRefused,
    SubmitInFlight,
    errors.PayloadTooLarge,
    IdempotencyMismatch,
    DependencyMissing,
    DependencyCycle,
    QueueFull,
    GoalStopped,
)

_SUBMITTED: dict[int | str, dict[str, Any]] = {201: {"headers": advice.DOCUMENTED}, **_REFUSED}


class CancelledMany(BaseModel):
    """What a call of `POST /tasks/cancel` has done."""

    matched: int = Field(description="tasks that the filter selected when the call began")
    cancelled: int = Field(description="those of them that were cancelled")
    dependents: int = Field(description="others that were cancelled because they waited for those")
    remaining: int = Field(description="those that are left: repeat the call to go on")
    dry_run: bool


@router.post(
    "",
    summary="Submit a task",
    openapi_extra=body_limit(CONTENT_BYTES),
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses={200: {"model": NewTaskOut, "description": "this id exists already, with the same body"}, **_SUBMITTED},
)
async def submit(
    task: TaskIn,
    services: ServicesDep,
    namespace: Into,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> NewTaskOut:
    """Durable before the answer. Choose the `id` or send an `Idempotency-Key` to be able to repeat the call safely."""
    origin = Origin(idempotency_key=idempotency_key, traceparent=traceparent)
    submission = task.submission(services[PayloadLimit].max_bytes, namespace, origin)
    # By now the body has been read, which may have taken until after the shutdown began.
    if services.stopping:
        raise errors.ShuttingDown
    result = await services[SubmitService].submit(submission)
    if not result.created:
        response.status_code = 200
    response.headers["Location"] = f"/tasks/{result.id}"
    advice.add_header(response, services)
    # Not the task itself: reading it back, and the payload once more, would cost more than the submit.
    return NewTaskOut(
        id=result.id,
        state=result.state,
        created=result.created,
        agent_type=task.agent_type,
        namespace=namespace,
        goal_id=task.goal_id,
        priority=task.priority,
    )


@router.post(
    "/batch",
    summary="Submit up to 1,000 tasks, all or none",
    openapi_extra=body_limit(CONTENT_BYTES),
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses=_SUBMITTED,
)
async def submit_batch(
    batch: BatchIn,
    services: ServicesDep,
    connection: Writing,
    namespace: Into,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> BatchOut:
    """One transaction for all; durable before the answer. With an `Idempotency-Key` the call is safe to repeat."""
    origin = Origin(idempotency_key=idempotency_key, traceparent=traceparent, count=len(batch.tasks))
    max_bytes = services[PayloadLimit].max_bytes
    submissions = [task.submission(max_bytes, namespace, origin, place) for place, task in enumerate(batch.tasks)]
    results = await service.submit(connection, submissions, services[Intake])
    advice.add_header(response, services)
    return BatchOut(tasks=[SubmittedOut(id=r.id, state=r.state, created=r.created) for r in results])


@router.get("", summary="List tasks", dependencies=_CONTENT)
async def page(connection: Reading, namespace: Within, query: Annotated[TaskQuery, Query()]) -> TaskPage:
    """Live and finished tasks, newest first. A page may be short and still have a `next`; go on until it is null."""
    rows = await listing.page(connection, query.selection(namespace), below=query.after, limit=query.limit)
    return TaskPage(items=[summary(row) for row in rows.items], next=None if rows.next is None else str(rows.next))


@router.post("/cancel", summary="Cancel the tasks that a filter selects", dependencies=[requires(Scope.SUBMIT)])
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
    "/{task_id}",
    summary="Read a task",
    dependencies=_CONTENT,
    responses=responses_for(TaskNotFound),
)
async def read(task_id: UUID, connection: Reading, namespace: Within) -> TaskOut:
    """Everything about it: payload, progress, result, and the attempts that failed."""
    return whole(await service.read(connection, task_id, namespace))


@router.patch(
    "/{task_id}",
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
