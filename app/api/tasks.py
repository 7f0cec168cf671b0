"""What the Supervisor does with tasks."""

from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.access import requires
from app.api.connections import Reading, Writing
from app.api.fields import (
    AgentName,
    Body,
    Labels,
    Limit,
    Moment,
    PriorityIn,
    PriorityName,
    Sentence,
    Usage,
    Word,
    priority_name,
    priority_of,
)
from app.api.json import JsonObject, limit, object_text
from app.api.problems import documented
from app.api.services import Services, ServicesDep
from app.domain import errors
from app.domain.access import Scope
from app.domain.agents import AgentType
from app.domain.tasks import RetryPolicy, TaskState
from app.operations import tasks as operations
from app.operations.tasks import Submission
from app.store import tasks as store

router = APIRouter(prefix="/tasks", tags=["tasks"])
_REFUSED = documented(
    errors.TaskConflict,
    errors.SubmitInFlight,
    errors.PayloadTooLarge,
    errors.IdempotencyMismatch,
    errors.DependencyMissing,
    errors.DependencyCycle,
)
_EXAMPLE: dict[str, Any] = {
    "agent_type": "generation",
    "goal_id": "kepler",
    "priority": "high",
    "payload": {"topic": "planetary motion"},
    "timeout_seconds": 120,
}


class RetryIn(Body):
    """When a failed task is tried again."""

    max_attempts: int = Field(3, ge=1, le=100)
    delays_seconds: list[Annotated[float, Field(ge=0, le=86_400)]] = Field(
        [5, 30, 120], max_length=20, description="upper bounds of the random wait before each retry; the last repeats"
    )


# One for all: Pydantic would otherwise build a new one for each of the thousand tasks of a batch.
_USUAL_RETRY = RetryIn()


class TaskIn(Body):
    """A task to be done."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID | None = Field(None, description="choose it to make the call safe to repeat")
    agent_type: AgentName
    goal_id: Word | None = None
    priority: PriorityIn = "medium"
    payload: JsonObject = Field(default="{}", description="what the agent needs, at most 1 MiB by default")
    labels: Labels = Field(default_factory=dict)
    timeout_seconds: float = Field(600, ge=1, le=86_400, description="wall time that one attempt may take")
    deadline: Moment | None = None
    run_at: Moment | None = Field(None, description="not before this time")
    retry: RetryIn = Field(default_factory=lambda: _USUAL_RETRY)
    trace_context: Word | None = Field(None, description="W3C traceparent")
    idempotency_key: Word | None = Field(None, description="equal keys are one task; instead of choosing the `id`")
    depends_on: list[UUID] = Field(
        default_factory=list,
        max_length=1000,
        description="runs when all of these have completed, is cancelled when one fails; order in a batch is free",
    )

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.id is not None and self.idempotency_key is not None:
            raise ValueError("give an id or an idempotency_key, not both")
        return self

    def submission(self, services: Services) -> Submission:
        """What the operation takes."""
        limit(self.payload, services.max_payload_bytes, "payload")
        retry = RetryPolicy(max_attempts=self.retry.max_attempts, delays_seconds=self.retry.delays_seconds)
        plain = {name: getattr(self, name) for name in ("id", "agent_type", "goal_id", "timeout_seconds", "deadline")}
        return Submission(
            priority=priority_of(self.priority),
            payload=self.payload,
            labels=object_text(self.labels) or "{}",
            run_at=self.run_at,
            retry=retry,
            trace_context=self.trace_context,
            idempotency_key=self.idempotency_key,
            depends_on=self.depends_on,
            **plain,
        )


class BatchIn(Body):
    """All or none."""

    tasks: list[TaskIn] = Field(min_length=1, max_length=1000)


class SubmittedOut(BaseModel):
    """A task after submit; `created` is false when it existed already."""

    id: UUID
    state: TaskState
    created: bool


class BatchOut(BaseModel):
    """In the order of the request; an id that comes twice is listed once."""

    tasks: list[SubmittedOut]


class AttemptOut(BaseModel):
    """An attempt that did not complete the task."""

    attempt: int
    token: int
    worker_id: UUID
    leased_at: Moment
    ended_at: Moment
    outcome: str
    error: dict[str, Any] | None
    usage: Usage | None


class ProgressOut(BaseModel):
    """The last that was heard."""

    percent: float
    message: str | None = None


class TaskSummary(BaseModel):
    """A task without its payload and result."""

    id: UUID
    agent_type: AgentType
    goal_id: str | None
    priority: PriorityName
    state: TaskState
    labels: dict[str, str]
    attempt: int = Field(description="the attempt that runs or would run next, from 1")
    failures: int
    max_attempts: int
    depends_on: list[UUID]
    idempotency_key: str | None
    rescues: int = Field(description="how often it was taken from a lost worker; these are no attempts")
    timeout_seconds: float
    deadline: Moment | None
    run_at: Moment | None
    token: int
    worker_id: UUID | None
    created_at: Moment
    leased_at: Moment | None
    finished_at: Moment | None
    progress: ProgressOut | None
    error: dict[str, Any] | None


class TaskOut(TaskSummary):
    """Everything about a task."""

    payload: dict[str, Any]
    result: dict[str, Any] | None
    checkpoint: dict[str, Any] | None
    usage: Usage | None
    attempts: list[AttemptOut]


class TaskPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[TaskSummary]
    next: str | None


class CancelIn(Body):
    """Why."""

    reason: Sentence = "cancelled"


@router.post(
    "",
    summary="Submit a task",
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses={
        200: {"model": TaskOut, "description": "this id exists already, with the same body"},
        **_REFUSED,
    },
)
async def submit(task: TaskIn, services: ServicesDep, connection: Writing, response: Response) -> TaskOut:
    """Durable before the answer. Choose the `id` yourself to be able to repeat the call safely."""
    submitted = (await operations.submit(connection, [task.submission(services)]))[0]
    if not submitted.created:
        response.status_code = 200
    response.headers["Location"] = f"/tasks/{submitted.id}"
    return _whole(await operations.read(connection, submitted.id))


@router.post(
    "/batch",
    summary="Submit up to 1,000 tasks, all or none",
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses=_REFUSED,
)
async def submit_batch(batch: BatchIn, services: ServicesDep, connection: Writing) -> BatchOut:
    """One transaction for all; durable before the answer."""
    submitted = await operations.submit(connection, [task.submission(services) for task in batch.tasks])
    return BatchOut(tasks=[SubmittedOut(id=s.id, state=s.state, created=s.created) for s in submitted])


@router.get("", summary="List tasks", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    goal_id: Annotated[str | None, Query(max_length=200)] = None,
    agent_type: Annotated[AgentName | None, Query()] = None,
    state: TaskState | None = None,
    after: Annotated[int | None, Query(ge=0, description="`next` of the page before")] = None,
    limit: Limit = 50,
) -> TaskPage:
    """Live and finished tasks, newest first."""
    rows = await store.page(
        connection, goal_id=goal_id, agent_type=agent_type, state=state, before=after, limit=limit + 1
    )
    more = str(rows[limit - 1]["seq"]) if len(rows) > limit else None
    return TaskPage(items=[TaskSummary.model_validate(_plain(row)) for row in rows[:limit]], next=more)


@router.get(
    "/{task_id}",
    summary="Read a task",
    dependencies=[requires(Scope.READ)],
    responses=documented(errors.TaskNotFound),
)
async def read(task_id: UUID, connection: Reading) -> TaskOut:
    """Everything about it: payload, progress, result, and the attempts that failed."""
    return _whole(await operations.read(connection, task_id))


@router.post(
    "/{task_id}/cancel",
    summary="Cancel a task",
    dependencies=[requires(Scope.SUBMIT)],
    responses=documented(errors.TaskNotFound, errors.TaskFinished),
)
async def cancel(task_id: UUID, cancellation: CancelIn, connection: Writing) -> TaskOut:
    """It ends now; a worker that runs it stops with its next heartbeat. Cancelling twice is fine."""
    await operations.cancel(connection, task_id, cancellation.reason)
    return _whole(await operations.read(connection, task_id))


def _whole(row: dict[str, Any]) -> TaskOut:
    return TaskOut.model_validate(_plain(row))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    finished = row["state"] in ("completed", "failed", "cancelled")
    attempt = max(1, row["failures"] + (0 if finished and row["state"] != "completed" else 1))
    return {**row, "priority": priority_name(row["priority"]), "attempt": attempt}
