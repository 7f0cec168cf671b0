"""Requests and answers of the lease routes."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.http.fields import AgentNames, Body, Labels, Moment, PriorityName, Sentence, Token, Usage, Word
from app.http.json import JsonObject, OptionalJsonObject
from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.queue.api.advice import AdviceOut

_ID = "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"


class LeaseIn(Body):
    """A worker asks for one task."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request_id": _ID, "acknowledge": True}]})

    request_id: UUID = Field(description="repeat it when the answer was lost: the same lease is answered again")
    wait_seconds: float = Field(0, ge=0, le=30)
    agent_types: AgentNames | None = Field(None, description="null: whatever it can run")
    acknowledge: bool = Field(False, description="the task counts as started, so no call to start is needed")


class LeaseOut(BaseModel):
    """One task, given to one worker until `expires_at`; heartbeats renew it."""

    task_id: UUID
    token: int
    attempt: int
    agent_type: AgentType
    goal_id: str | None
    priority: PriorityName
    created_at: Moment = Field(description="when the task was submitted")
    timeout_seconds: float = Field(description="of this attempt; `deadline_at` is that much after `leased_at`")
    leased_at: Moment
    expires_at: Moment
    deadline_at: Moment
    trace_context: str | None
    payload: dict[str, object]
    labels: Labels
    checkpoint: dict[str, object] | None
    resources: dict[str, object] | None = Field(description="what the task asked for, of what this worker offers")
    degradation: AdviceOut | None = Field(description="what to keep to while resources are short; null: as usual")


class LeaseStartIn(Body):
    """The task has been received and begins."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": 1}]})

    token: Token


class ProgressIn(Body):
    """How far the task is; the checkpoint is handed to the next attempt if this one fails."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"token": 1, "percent": 40, "message": "paper 4 of 10", "checkpoint": {"papers_read": 4}}]
        }
    )

    token: Token
    percent: float = Field(ge=0, le=100)
    message: Sentence | None = None
    checkpoint: OptionalJsonObject = None


class NextIn(Body):
    """Also lease the next task, without waiting."""

    request_id: UUID
    agent_types: AgentNames | None = None
    acknowledge: bool = False


class CompleteIn(Body):
    """The result."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"token": 1, "result": {"score": 0.9}, "quality": 0.9, "next": {"request_id": _ID}}]
        }
    )

    token: Token
    result: JsonObject
    quality: float | None = Field(None, ge=0, le=1, description="how good it is, where that is known already")
    usage: Usage | None = None
    next: NextIn | None = None


class ErrorIn(Body):
    """What went wrong, in the words of the worker."""

    code: Word
    message: Sentence
    retryable: bool = True
    detail: OptionalJsonObject = None


class FailIn(Body):
    """The attempt failed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"token": 1, "error": {"code": "timeout", "message": "the model was slow"}}]}
    )

    token: Token
    error: ErrorIn
    usage: Usage | None = None


class ReleaseIn(Body):
    """The task goes back unharmed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"token": 1, "reason": "the model is busy", "delay_seconds": 30}]}
    )

    token: Token
    reason: Sentence = "released by its worker"
    delay_seconds: float = Field(0, ge=0, le=3600, description="not to be leased again before")
    waits_for_model: Word | None = Field(
        None, description="a language model whose service answers nobody now: when it does again, the delay is over"
    )
    expires_at: Moment | None = Field(
        None, description="only the lease that ends then: one that was renewed since is refused (`lease_superseded`)"
    )


class HeldOut(BaseModel):
    """The lease lives on."""

    task_id: UUID
    token: int
    state: TaskState
    expires_at: Moment


class CompletedOut(BaseModel):
    """The result was accepted; `lease` is the next task when one was asked for and there is one."""

    task_id: UUID
    state: TaskState
    lease: LeaseOut | None


class EndedOut(BaseModel):
    """Where the task is now; `run_at` is set when it is to be tried again later."""

    task_id: UUID
    state: TaskState
    run_at: Moment | None
