"""Routes by which workers register and stop, and by which they are listed and read."""

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import access, config
from app.admin.service.config import CurrentConfig
from app.db import prefixes
from app.http.fields import (
    AgentNames,
    Body,
    IdPrefix,
    Labels,
    Limit,
    MatchesOut,
    Moment,
    NamedResources,
    ReasonIn,
    Word,
)
from app.http.guard import UNCACHED, Caller, requires
from app.http.json import object_text
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import Services, ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel.access import Principal, Scope
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.text import NO_REASON
from app.queue.api.task_filters import LabelPairs, pairs
from app.queue.errors import LeaseNotFound, WorkerNotFound
from app.queue.rules.tasks import LeasePolicy
from app.workers.errors import NameTaken, PoolFull
from app.workers.rules.workers import HealthPolicy
from app.workers.service import workers as service
from app.workers.service.workers import WorkerIdentity
from app.workers.store import workers as store
from app.workers.store.workers import Registration, WorkerFilter

router = Router(tags=["workers"])
ShownState = Literal["starting", "ready", "busy", "draining", "stopped", "lost", "failed"]
SHOWN_STATES = get_args(ShownState)
_INTRODUCTION = ("name", "host", "pid", "version", "memory_gb", "cpu_cores", "gpus", "seconds_left", "request_id")
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
    capabilities: AgentNames = Field(description="the agent types it can run")
    labels: Labels = Field(default_factory=dict)
    version: Word = "unknown"
    memory_gb: float = Field(gt=0, le=65536)
    cpu_cores: float = Field(gt=0, le=65536)
    seconds_left: float | None = Field(
        None,
        ge=0,
        le=366 * 86_400,
        description="in which its tasks must end, as it is part of something that ends, such as a job at its walltime",
    )
    gpus: int = Field(0, ge=0, le=1024, description="devices of this worker alone, for the task that it runs")
    resources: NamedResources = Field(
        default_factory=dict, description="others that it offers by name: instruments, licences of its host"
    )
    request_id: UUID | None = Field(
        None,
        description="one for each registration, chosen at random: repeated with it and the same key, where the answer "
        "was lost, it has the same worker, and a new `key`, until the worker is heard of",
    )


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
    gpus: int | None = Field(description="that a task of it can have")
    resources: dict[str, int] | None = Field(description="others that it offers, by name")
    assigned_agent: AgentType | None = Field(description="what it is to prefer")
    assigned_memory_gb: float | None = Field(description="that a task may use; null: not decided")
    assigned_cpu_cores: float | None = Field(description="that a task may use; null: not decided")
    assigned_compute_seconds: float | None = Field(description="for a usual task of that agent; null: not decided")
    not_ready_reason: str | None = Field(description="why its last health report has not passed, while it is starting")
    task_id: UUID | None
    leased_at: Moment | None = Field(description="since when it has that task")
    lease_expires_at: Moment | None = Field(description="when that lease ends, unless a heartbeat renews it before")
    cpu_percent: float | None
    memory_mb: float | None
    directive: str | None
    directive_reason: str | None
    ends_at: Moment | None = Field(description="by then its tasks must have ended; null: no end is known")
    requested_at: Moment
    registered_at: Moment | None
    last_seen_at: Moment | None
    ended_at: Moment | None
    ended_reason: str | None
    recent_errors: list[dict[str, Any]] | None = Field(
        description="oldest first, in a list the newest alone; of one that died the last error in its log is among "
        "them; null also for keys without `content:read`"
    )
    log_file: str | None = Field(
        description="on its host; null where the pool has not started it, and for keys without `content:read`"
    )


class WorkerPage(BaseModel):
    """By name and incarnation; pass `next` as `after` for what follows."""

    items: list[WorkerOut]
    next: str | None


class StoppedOut(BaseModel):
    """The worker is over."""

    worker_id: UUID
    state: str


@router.post(
    "/workers",
    operation_id="register_worker",
    summary="Register a worker",
    status_code=201,
    dependencies=[requires(Scope.REGISTER), UNCACHED],
    responses=responses_for(NameTaken, PoolFull),
)
async def register(
    registration: RegistrationIn, caller: Caller, services: ServicesDep, connection: Writing
) -> RegistrationOut:
    """A new identity. A re-used name is a new incarnation, and the lease of the old one goes back to the queue.

    A live worker is superseded only by a registration with the key that it registered with itself, or when it has
    missed two heartbeats; its credential ends at once. One that a provisioner started gives way to its provisioner.
    Beyond `worker_pool.max_workers` nobody is registered: ask again later.

    Repeated with its `request_id`, where the answer was lost, it has the same worker.

    It takes a pool's key, or the one that a provisioner has given to the very worker that it started: any other would
    let its holder take the place of a worker.
    """
    identity = None
    if registration.request_id is not None:
        identity = await service.register_again(connection, registration.request_id, caller.key_id)
    if identity is None:
        identity = await _register(registration, caller, services, connection)
    # The model takes the fields that the worker is to know, and leaves out the rest of the policies.
    return RegistrationOut(**asdict(identity), **asdict(services[HealthPolicy]), **asdict(services[LeasePolicy]))


async def _register(
    registration: RegistrationIn, caller: Principal, services: Services, connection: AsyncConnection
) -> WorkerIdentity:
    is_repeatable = registration.request_id is not None
    launched = await access.use_to_register(connection, caller.key_id, is_repeatable=is_repeatable)
    new_worker = Registration(
        capabilities=[agent.value for agent in registration.capabilities],
        labels=object_text(registration.labels) or "{}",
        resources=json.dumps(registration.resources) if registration.resources else None,
        registered_by=caller.key_id,
        **{name: getattr(registration, name) for name in _INTRODUCTION},
    )
    max_workers = (await config.current(connection, services[CurrentConfig].initial)).document.worker_pool.max_workers
    return await service.register(connection, new_worker, launched, services[HealthPolicy], max_workers=max_workers)


@router.post(
    "/workers/{worker_id}/goodbye",
    operation_id="deregister_worker",
    summary="Stop in order",
    dependencies=[requires(Scope.LEASE)],
)
async def goodbye(worker_id: UUID, reason: ReasonIn, principal: Caller, connection: Writing) -> StoppedOut:
    """The last call of a worker; a lease it still holds is released without burning an attempt."""
    must_be(principal, WorkerId(worker_id))
    await service.say_goodbye(connection, worker_id, reason.reason or NO_REASON)
    return StoppedOut(worker_id=worker_id, state="stopped")


@router.get("/workers", operation_id="list_workers", summary="List workers", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    caller: Caller,
    with_ended: Annotated[bool, Query(alias="all", description="also those that are over")] = False,
    name: Annotated[list[Word] | None, Query(max_length=100, description="any of these")] = None,
    state: Annotated[list[ShownState] | None, Query(max_length=len(SHOWN_STATES), description="any of these")] = None,
    label: Annotated[LabelPairs, Query()] = [],  # noqa: B006 - FastAPI copies it
    after: Annotated[str | None, Query(pattern=r"^[\s\S]+/[0-9]+$", max_length=220)] = None,
    limit: Limit = 100,
) -> WorkerPage:
    """The pool as it is."""
    last_name, _, incarnation = (after or "").rpartition("/")
    start = (last_name, int(incarnation)) if after else None
    selection = WorkerFilter(with_ended=with_ended, names=name or (), states=state or (), labels=pairs(label))
    rows = await store.page(connection, selection, start_after=start, limit=limit)
    following = rows.next(lambda row: f"{row['name']}/{row['incarnation']}")
    return WorkerPage(items=[worker_out(row, caller) for row in rows.items], next=following)


@router.get(
    "/workers/ids/{prefix}",
    operation_id="find_worker_ids",
    summary="Find workers by the beginning of their ids",
    dependencies=[requires(Scope.READ)],
)
async def ids(prefix: IdPrefix, connection: Reading) -> MatchesOut:
    """For people, who type a few digits of an id; also workers that are over."""
    matches = await prefixes.matches(connection, prefix, ["workers"])
    return MatchesOut.model_validate(matches, from_attributes=True)


@router.get(
    "/workers/{worker_id}",
    operation_id="get_worker",
    summary="Read a worker",
    dependencies=[requires(Scope.READ)],
    responses=responses_for(WorkerNotFound),
)
async def read(worker_id: UUID, connection: Reading, caller: Caller) -> WorkerOut:
    """Everything about it."""
    return worker_out(await service.read(connection, worker_id), caller)


def worker_out(row: dict[str, Any], caller: Principal) -> WorkerOut:
    """A stored worker as the API shows it to the caller: `busy` while it holds a task."""
    state = "busy" if row["state"] == "ready" and row["task_id"] else row["state"]
    shown = {**row, "worker_id": row["id"], "state": state}
    if not caller.may(Scope.CONTENT):
        shown |= {"recent_errors": None, "log_file": None}
    return WorkerOut.model_validate(shown)


def must_be(principal: Principal, worker_id: WorkerId) -> None:
    """A worker acts for itself only; anybody else's affairs look like nothing to it."""
    if principal.worker_id != worker_id:
        raise LeaseNotFound("there is no such worker, or it is not you")
