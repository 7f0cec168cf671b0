"""Routes by which the Supervisor submits tasks, one or many at once."""

from typing import Any

from starlette.responses import Response

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.fast_routes import PlainRoute
from app.http.guard import requires
from app.http.json import JsonAnswer, join
from app.http.namespaces import Into
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import PayloadLimit, ServicesDep
from app.kernel import errors
from app.kernel.access import Scope
from app.queue.api import advice
from app.queue.api.task_schemas import BatchIn, BatchOut, IdempotencyKey, NewTaskOut, Origin, TaskIn, Traceparent
from app.queue.errors import (
    DependencyCycle,
    DependencyMissing,
    GoalStopped,
    IdempotencyMismatch,
    QueueFull,
    SubmitInFlight,
    TaskConflict,
    TaskIdRefused,
    TooManyResourceClasses,
)
from app.queue.service.submits import SubmitService
from app.queue.service.tasks import Submitted

router = Router(prefix="/tasks", tags=["tasks"], route_class=PlainRoute, dependencies=[requires(Scope.SUBMIT)])
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
    TooManyResourceClasses,
)

_SUBMITTED: dict[int | str, dict[str, Any]] = {201: {"headers": advice.DOCUMENTED}, **_REFUSED}


@router.post(
    "",
    operation_id="submit_task",
    summary="Submit a task",
    openapi_extra=body_limit(CONTENT_BYTES),
    status_code=201,
    response_model=NewTaskOut,
    responses={200: {"model": NewTaskOut, "description": "this id exists already, with the same body"}, **_SUBMITTED},
)
async def submit(
    task: TaskIn,
    services: ServicesDep,
    namespace: Into,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> Response:
    """Durable before the answer. Choose the `id` or send an `Idempotency-Key` to be able to repeat the call safely."""
    origin = Origin(idempotency_key=idempotency_key, traceparent=traceparent)
    submission = task.submission(services[PayloadLimit].max_bytes, namespace, origin)
    _refuse_late(services)
    result = await services[SubmitService].submit(submission)
    # Not the task itself: reading it back, and the payload once more, would cost more than the submit.
    fields = {
        "id": result.id,
        "state": result.state,
        "created": result.created,
        "agent_type": task.agent_type,
        "namespace": namespace,
        "goal_id": task.goal_id,
        "priority": task.priority,
    }
    response = JsonAnswer(join(fields, {}), 201 if result.created else 200)
    response.headers["Location"] = f"/tasks/{result.id}"
    advice.add_header(response, services)
    return response


@router.post(
    "/batch",
    operation_id="submit_tasks",
    summary="Submit up to 1,000 tasks, all or none",
    openapi_extra=body_limit(CONTENT_BYTES),
    status_code=201,
    response_model=BatchOut,
    responses={
        200: {"model": BatchOut, "description": "all of them exist already, with the same bodies"},
        **_SUBMITTED,
    },
)
async def submit_batch(
    batch: BatchIn,
    services: ServicesDep,
    namespace: Into,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> Response:
    """One transaction for all; durable before the answer. With an `Idempotency-Key` the call is safe to repeat."""
    origin = Origin(idempotency_key=idempotency_key, traceparent=traceparent, count=len(batch.tasks))
    max_bytes = services[PayloadLimit].max_bytes
    submissions = [task.submission(max_bytes, namespace, origin, place) for place, task in enumerate(batch.tasks)]
    _refuse_late(services)
    results = await services[SubmitService].submit_batch(submissions)
    status = 201 if any(result.created for result in results) else 200
    response = JsonAnswer(f'{{"tasks":[{",".join(map(_submitted_text, results))}]}}'.encode(), status)
    advice.add_header(response, services)
    return response


def _submitted_text(result: Submitted) -> str:
    return f'{{"id":"{result.id}","state":"{result.state}","created":{"true" if result.created else "false"}}}'


def _refuse_late(services: ServicesDep) -> None:
    # By now the body has been read, which may have taken until after the shutdown began.
    if services.stopping:
        raise errors.ShuttingDown
