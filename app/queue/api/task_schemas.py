"""Schemas of tasks: as they are submitted, and as they are shown."""

from dataclasses import dataclass
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.http.fields import (
    AgentName,
    Body,
    Labels,
    Moment,
    NamedResources,
    NewGoalId,
    PriorityIn,
    PriorityName,
    Reason,
    TaskUsageOut,
    Word,
    optional_priority,
    priority_name,
    priority_of,
)
from app.http.json import JsonObject, check_size, object_text
from app.kernel.agents import AgentType
from app.kernel.errors import ValuesRefused
from app.kernel.namespaces import split_name, stored_name
from app.kernel.resources import NOTHING, Resources
from app.kernel.states import TaskState
from app.queue.errors import TaskIdRefused
from app.queue.rules.task_ids import chosen_id_problem
from app.queue.rules.tasks import RetryPolicy
from app.queue.service.changes import TaskChange
from app.queue.service.tasks import Submission
from worker_agent.tracing.context import read_traceparent

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

    def policy(self) -> RetryPolicy:
        """The policy, for the service."""
        if self is _DEFAULT_RETRY:
            return _DEFAULT_POLICY
        return RetryPolicy(max_attempts=self.max_attempts, delays_seconds=self.delays_seconds)


# Shared: otherwise Pydantic would build one for each of the thousand tasks of a batch.
_DEFAULT_RETRY = RetryIn()
_DEFAULT_POLICY = RetryPolicy(max_attempts=_DEFAULT_RETRY.max_attempts, delays_seconds=_DEFAULT_RETRY.delays_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The headers of a submit, which count for all its tasks: `count` of a batch, or one that came alone (None)."""

    idempotency_key: str | None = None
    traceparent: str | None = None
    count: int | None = None

    def complete(self, submission: Submission, place: int) -> None:
        """Set the fields for which the body of the task says nothing. Raises ValuesRefused for a second key."""
        if self.traceparent and submission.trace_context is None and (context := read_traceparent(self.traceparent)):
            submission.traceparent = context.text
        if self.idempotency_key is None or submission.id is not None:
            return
        if submission.idempotency_key is None:
            key = self.idempotency_key if self.count is None else f"{self.idempotency_key}/{place}"
            submission.idempotency_key, submission.batch_size = key, self.count
        elif self.count is None and submission.idempotency_key != self.idempotency_key:
            raise ValuesRefused([("idempotency_key", "differs from the header Idempotency-Key; give one of them")])


NO_ORIGIN = Origin()
IdempotencyKey = Annotated[
    Word | None,
    Header(alias="Idempotency-Key", description="equal keys are one submit; instead of keys or ids in the body"),
]
Traceparent = Annotated[str | None, Header(max_length=200, description="trace context of tasks that bring none")]


class RequestedResourcesIn(Body):
    """What a task asks its worker for; a worker that offers less does not get it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gpus": 1, "memory_gb": 16}]})

    cores: float = Field(0, ge=0, le=65_536)
    memory_gb: float = Field(0, ge=0, le=65_536)
    gpus: int = Field(0, ge=0, le=1024, description="whole devices, which no other task uses meanwhile")
    named: NamedResources = Field(default_factory=dict, description="licences, instruments: what workers offer by name")

    def text(self) -> str | None:
        """The canonical text; None where nothing is asked for."""
        request = Resources(
            cores=self.cores, memory_gb=self.memory_gb, gpus=self.gpus, named=frozenset(self.named.items())
        )
        return None if request == NOTHING else request.text()


class RequestedResourcesOut(BaseModel):
    """What a task asks its worker for."""

    cores: float = 0
    memory_gb: float = 0
    gpus: int = 0
    named: dict[str, int] = Field(default_factory=dict)


class TaskIn(Body):
    """A task to be done."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID | None = Field(None, description="choose it, at random, to make the call safe to repeat")
    agent_type: AgentName
    goal_id: NewGoalId | None = Field(None, description="the research goal that it serves, which need not exist yet")
    priority: PriorityIn = "medium"
    # Kept as text, but a caller's default is an object.
    payload: JsonObject = Field(
        default="{}",
        description="what the agent needs, at most 1 MiB by default",
        json_schema_extra={"default": {}},
    )
    labels: Labels = Field(default_factory=dict)
    timeout_seconds: float | None = Field(
        None,
        ge=1,
        le=86_400,
        description="wall time that one attempt may take; null: `worker_pool.worker_timeout_seconds` of the "
        "configuration when it is leased",
    )
    deadline: Moment | None = Field(
        None, description="when it is near the task becomes critical; what ends an attempt is `timeout_seconds`"
    )
    run_at: Moment | None = Field(None, description="not before this time")
    retry: RetryIn = Field(default_factory=lambda: _DEFAULT_RETRY)
    trace_context: Word | None = Field(None, description="W3C traceparent")
    idempotency_key: Word | None = Field(None, description="equal keys are one task; instead of choosing the `id`")
    depends_on: list[UUID] = Field(
        fail_fast=True,
        default_factory=list,
        max_length=1000,
        description="runs when all of these have completed, is cancelled when one fails; order in a batch is free",
    )
    resources: RequestedResourcesIn | None = Field(
        None, description="what its worker must offer; null: any worker may run it"
    )

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.id is not None and self.idempotency_key is not None:
            raise ValueError("give an id or an idempotency_key, not both")
        return self

    def submission(
        self, max_payload_bytes: int, namespace: str, origin: Origin = NO_ORIGIN, place: int = 0
    ) -> Submission:
        """The submission into a namespace, for the service; `place` is the task's in its batch.

        Raises PayloadTooLarge, TaskIdRefused, ValuesRefused.
        """
        if self.id is not None and (problem := chosen_id_problem(self.id, namespace)) is not None:
            raise TaskIdRefused([("id", problem)])
        check_size(self.payload, max_payload_bytes, "payload")
        submission = Submission(
            id=self.id,
            agent_type=self.agent_type,
            goal_id=stored_name(namespace, self.goal_id),
            priority=priority_of(self.priority),
            payload=self.payload,
            labels=(object_text(self.labels) or "{}") if self.labels else "{}",
            timeout_seconds=self.timeout_seconds,
            deadline=self.deadline,
            run_at=self.run_at,
            retry=self.retry.policy(),
            trace_context=self.trace_context,
            idempotency_key=self.idempotency_key,
            depends_on=self.depends_on,
            resources=self.resources.text() if self.resources is not None else None,
        )
        origin.complete(submission, place)
        return submission


# Their cost grows faster than their number, and holds up the transaction of the batch.
_MAX_DEPENDENCIES = 10_000


class BatchIn(Body):
    """All or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tasks": [
                        {"agent_type": "generation", "goal_id": "kepler", "payload": {"topic": "orbits"}},
                        {"agent_type": "ranking", "goal_id": "kepler", "priority": "low"},
                    ]
                }
            ]
        }
    )

    tasks: list[TaskIn] = Field(min_length=1, max_length=1000, fail_fast=True)

    @model_validator(mode="after")
    def _bound_dependencies(self) -> Self:
        if sum(len(task.depends_on) for task in self.tasks) > _MAX_DEPENDENCIES:
            raise ValueError(f"must have {_MAX_DEPENDENCIES:,} dependencies at most in all")
        return self


class SubmittedOut(BaseModel):
    """A task after submit; `created` is false when it existed already."""

    id: UUID
    state: TaskState
    created: bool


class NewTaskOut(SubmittedOut):
    """A task after submit, as it was submitted; `GET /tasks/{id}` has everything about it."""

    agent_type: AgentType
    namespace: str
    goal_id: str | None
    priority: PriorityName


class BatchOut(BaseModel):
    """In the order of the request; an id that comes twice is listed once."""

    tasks: list[SubmittedOut]


class AttemptOut(BaseModel):
    """An attempt that did not complete the task."""

    attempt: int
    token: int
    worker_id: UUID
    worker_name: str | None
    leased_at: Moment
    ended_at: Moment
    outcome: str
    error: dict[str, Any] | None
    usage: TaskUsageOut | None


class ProgressOut(BaseModel):
    """The last that was heard."""

    percent: float
    message: str | None = None


class TaskSummary(BaseModel):
    """A task without its payload and result."""

    id: UUID
    agent_type: AgentType
    namespace: str
    goal_id: str | None
    priority: PriorityName
    submitted_priority: PriorityName = Field(description="as it was submitted; waiting and near deadlines raise it")
    state: TaskState
    labels: dict[str, str]
    attempt: int = Field(description="the attempt that runs or would run next, from 1")
    failures: int
    max_attempts: int
    depends_on: list[UUID]
    idempotency_key: str | None
    resources: RequestedResourcesOut | None = Field(
        description="what its worker must offer; null: any worker may run it"
    )
    rescues: int = Field(description="how often it was taken from a lost worker; these are no attempts")
    unacknowledged: int = Field(description="how many of its leases no worker acknowledged; it did not run in these")
    timeout_seconds: float | None = Field(description="null: as the configuration says when it is leased")
    deadline: Moment | None
    run_at: Moment | None
    held: bool = Field(description="not leased, because its goal is paused or out of budget")
    token: int
    worker_id: UUID | None
    worker_name: str | None
    created_at: Moment
    waiting_since: Moment | None = Field(description="when it last became ready to run; it waits, or waited, from then")
    leased_at: Moment | None
    finished_at: Moment | None
    progress: ProgressOut | None
    error: dict[str, Any] | None = Field(
        description="with `detail` in the task itself; a list has its first 500 characters as `detail_excerpt`"
    )


class TaskOut(TaskSummary):
    """Everything about a task."""

    payload: dict[str, Any]
    result: dict[str, Any] | None
    quality: float | None = Field(description="of the result, 0 to 1, where its worker has judged it")
    checkpoint: dict[str, Any] | None
    trace_context: str | None = Field(description="W3C traceparent; of its submit, where the trace is recorded")
    usage: TaskUsageOut | None
    attempts: list[AttemptOut]


class TaskPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows, until it is null.

    A page looks at 50,000 tasks at most. Where a filter finds few among them, it is shorter than `limit`, or even
    empty, and `next` leads on.
    """

    items: list[TaskSummary]
    next: str | None


class ChangeIn(Body):
    """New values; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"priority": "high", "reason": "a deadline"}]})

    priority: PriorityIn | None = None
    deadline: Moment | None = Field(None, description="null: none any more")
    reason: Reason = ""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set & {"priority", "deadline"}:
            raise ValueError("name a priority or a deadline")
        return self

    def change(self) -> TaskChange:
        """The change, for the service."""
        priority = optional_priority(self.priority)
        return TaskChange(fields=self.model_fields_set, priority=priority, deadline=self.deadline)


def whole(row: dict[str, Any]) -> TaskOut:
    """The row of a task with everything about it."""
    return TaskOut.model_validate(_task_fields(row))


def summary(row: dict[str, Any]) -> TaskSummary:
    """The row of a task as an item of a list."""
    return TaskSummary.model_validate(_task_fields(row))


def _task_fields(row: dict[str, Any]) -> dict[str, Any]:
    # A failed or cancelled task has no next attempt, and its failures include the last one.
    is_over = row["state"] in ("failed", "cancelled")
    attempt = max(1, row["failures"] + (0 if is_over else 1))
    namespace, goal_id = split_name(row["goal_id"])
    return {
        **row,
        "namespace": namespace,
        "goal_id": goal_id,
        "priority": priority_name(row["priority"]),
        "submitted_priority": priority_name(row["submitted_priority"] or row["priority"]),
        "attempt": attempt,
    }
