"""What workers say of themselves, and what operators say to them."""

import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api import advice
from app.api.access import Caller, must_be, requires
from app.api.advice import AdviceOut
from app.api.connections import Reading, Writing
from app.api.fields import AgentName, Body, Labels, Limit, Moment, Sentence, Word
from app.api.json import answer, object_text, raw
from app.api.lean import LeanRoute
from app.api.problems import documented
from app.api.services import ServicesDep
from app.domain import errors
from app.domain.access import Scope
from app.domain.agents import AgentType
from app.domain.errors import Forbidden
from app.domain.workers import Directive, WorkerId
from app.operations import workers as operations
from app.store import workers as store
from app.store.workers import Beat, Pulse, Registration

router = APIRouter(tags=["workers"])
hot_router = APIRouter(tags=["workers"], route_class=LeanRoute)
_EXAMPLE: dict[str, Any] = {
    "name": "lab-1",
    "host": "lab.example",
    "pid": 4711,
    "capabilities": ["generation", "reflection"],
    "memory_gb": 8,
    "cpu_cores": 2,
}


class RegistrationIn(Body):
    """A worker introduces itself."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Word
    host: Word
    pid: int = Field(ge=1, le=2**31 - 1)
    capabilities: list[AgentName] = Field(min_length=1, description="the agent types it can run")
    labels: Labels = Field(default_factory=dict)
    version: Word = "unknown"
    memory_gb: float = Field(gt=0, le=65536)
    cpu_cores: float = Field(gt=0, le=65536)
    launch_token: UUID | None = Field(None, description="given to it by the provisioner that started it")


class RegistrationOut(BaseModel):
    """Its identity, its own key, and how often to report."""

    worker_id: UUID
    name: str
    incarnation: int
    key: str
    heartbeat_interval_seconds: float
    lost_after_seconds: float
    lease_seconds: float
    acknowledge_within_seconds: float


class LeaseRef(Body):
    """The lease that the worker believes it holds."""

    task_id: UUID
    token: int = Field(ge=1, le=2**63 - 1)


class LocalError(Body):
    """Something that went wrong on the worker."""

    at: Moment
    message: Sentence


class BeatIn(Body):
    """A sign of life."""

    state: Annotated[str, Field(pattern="^(ready|busy|draining)$")]
    lease: LeaseRef | None = None
    cpu_percent: float | None = Field(None, ge=0, description="percent of one core since the last report")
    memory_mb: float | None = Field(None, ge=0, description="MiB that are resident now")
    errors: list[LocalError] = Field(default_factory=list, max_length=50)


class DirectiveOut(BaseModel):
    """What the worker is to do."""

    kind: Directive
    reason: str | None
    task_id: UUID | None = None
    token: int | None = None


class BeatOut(BaseModel):
    """How the service sees the worker."""

    worker_id: UUID
    state: str
    directives: list[DirectiveOut]
    lease_expires_at: Moment | None
    degradation: AdviceOut | None = Field(description="what to keep to while resources are short; null: as usual")


class WorkerOut(BaseModel):
    """A worker; `state` is `busy` while it holds a task."""

    worker_id: UUID
    name: str
    incarnation: int
    state: str
    host: str | None
    pid: int | None
    capabilities: list[AgentType]
    labels: dict[str, str]
    version: str | None
    memory_gb: float | None
    cpu_cores: float | None
    task_id: UUID | None
    cpu_percent: float | None
    memory_mb: float | None
    directive: str | None
    requested_at: Moment
    registered_at: Moment | None
    last_seen_at: Moment | None
    ended_at: Moment | None
    ended_reason: str | None
    recent_errors: list[dict[str, Any]] | None


class WorkerPage(BaseModel):
    """By name and incarnation; pass `next` as `after` for what follows."""

    items: list[WorkerOut]
    next: str | None


class ReasonIn(Body):
    """Why."""

    reason: Sentence = "asked by an operator"


class StoppedOut(BaseModel):
    """The worker is over."""

    worker_id: UUID
    state: str


@router.post(
    "/workers",
    summary="Register a worker",
    status_code=201,
    dependencies=[requires(Scope.REGISTER)],
    responses=documented(errors.WorkerGone),
)
async def register(
    registration: RegistrationIn, principal: Caller, services: ServicesDep, connection: Writing
) -> RegistrationOut:
    """A new identity. A re-used name is a new incarnation, and the lease of the old one goes back to the queue.

    It takes the pool's key: a worker's own would let it take the place of any other.
    """
    if principal.worker_id is not None:
        raise Forbidden("register with the pool's key; a worker's own key is for its leases and heartbeats")
    said = Registration(
        capabilities=[agent.value for agent in registration.capabilities],
        labels=object_text(registration.labels) or "{}",
        **{name: getattr(registration, name) for name in ("name", "host", "pid", "version", "memory_gb", "cpu_cores")},
    )
    registered = await operations.register(connection, said, registration.launch_token)
    return RegistrationOut(
        worker_id=registered.worker_id,
        name=registered.name,
        incarnation=registered.incarnation,
        key=registered.key,
        heartbeat_interval_seconds=services.health.heartbeat_interval_seconds,
        lost_after_seconds=services.health.lost_after_seconds,
        lease_seconds=services.leases.lease_seconds,
        acknowledge_within_seconds=services.leases.acknowledge_within_seconds,
    )


@hot_router.post(
    "/workers/{worker_id}/heartbeat",
    summary="Report health",
    dependencies=[requires(Scope.LEASE)],
    response_model=BeatOut,
    responses=documented(errors.WorkerGone, errors.WorkerNotFound),
)
async def heartbeat(worker_id: UUID, call: BeatIn, principal: Caller, services: ServicesDep) -> Response:
    """Renews the lease it names; the answer may carry directives."""
    must_be(principal, WorkerId(worker_id))
    beat = Beat(
        worker_id=WorkerId(worker_id),
        draining=call.state == "draining",
        task_id=call.lease.task_id if call.lease else None,
        token=call.lease.token if call.lease else None,
        cpu_percent=call.cpu_percent,
        memory_mb=call.memory_mb,
        errors=json.dumps([error.model_dump(mode="json") for error in call.errors]) if call.errors else None,
    )
    pulse = await services.heartbeats.report(beat)
    seen = {"worker_id": worker_id, "state": pulse.state.value, "lease_expires_at": pulse.lease_expires_at}
    texts = {"directives": json.dumps(_directives(pulse, beat)), "degradation": advice.text(services)}
    return answer(raw(seen, texts))


@router.post(
    "/workers/{worker_id}/goodbye",
    summary="Stop in order",
    dependencies=[requires(Scope.LEASE)],
)
async def goodbye(worker_id: UUID, reason: ReasonIn, principal: Caller, connection: Writing) -> StoppedOut:
    """The last call of a worker; a lease it still holds is released without burning an attempt."""
    must_be(principal, WorkerId(worker_id))
    await operations.say_goodbye(connection, worker_id, reason.reason)
    return StoppedOut(worker_id=worker_id, state="stopped")


@router.get("/workers", summary="List workers", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    everybody: Annotated[bool, Query(alias="all", description="also those that are over")] = False,
    after: Annotated[str | None, Query(pattern=r"^[\s\S]+/[0-9]+$", max_length=220)] = None,
    limit: Limit = 100,
) -> WorkerPage:
    """The pool as it is."""
    name, _, incarnation = (after or "").rpartition("/")
    start = (name, int(incarnation)) if after else None
    rows = await store.page(connection, everybody=everybody, after=start, limit=limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    following = f"{last['name']}/{last['incarnation']}" if last else None
    return WorkerPage(items=[shown(row) for row in rows[:limit]], next=following)


@router.get(
    "/workers/{worker_id}",
    summary="Read a worker",
    dependencies=[requires(Scope.READ)],
    responses=documented(errors.WorkerNotFound),
)
async def read(worker_id: UUID, connection: Reading) -> WorkerOut:
    """Everything about it."""
    return shown(await operations.read(connection, worker_id))


def shown(row: dict[str, Any]) -> WorkerOut:
    """A worker as the store knows it, on the wire."""
    state = "busy" if row["state"] == "ready" and row["task_id"] else row["state"]
    return WorkerOut.model_validate({**row, "worker_id": row["id"], "state": state})


def _directives(pulse: Pulse, beat: Beat) -> list[dict[str, Any]]:
    """What was left for the worker, and the news that the lease it named is not its own any more."""
    directives: list[dict[str, Any]] = []
    if pulse.directive is not None:
        directives.append({"kind": pulse.directive, "reason": pulse.directive_reason, "task_id": None, "token": None})
    if beat.task_id is not None and pulse.lease_state is None:
        lost = {"task_id": str(beat.task_id), "token": beat.token}
        reason = "the task was cancelled, or its lease has moved on"
        directives.append({"kind": Directive.CANCEL_TASK.value, "reason": reason, **lost})
    return directives
