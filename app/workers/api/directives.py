"""Routes by which operators start workers, and drain, stop or restart them: one by its id, or all of a filter."""

from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.config import CurrentConfig
from app.http.bodies import LISTS_BYTES, body_limit
from app.http.fields import AgentName, Body, Reason, ReasonIn, Word
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Writing
from app.kernel.access import Principal, Scope
from app.kernel.errors import WorkerGone
from app.queue.api.task_filters import BulkRequest, ExplicitFilter, LabelPairs, pairs
from app.queue.errors import WorkerNotFound
from app.workers.api.workers import WorkerOut, worker_out
from app.workers.errors import StartRefused
from app.workers.rules.workers import Directive
from app.workers.service import directives as service
from app.workers.service import eviction, manual_start
from app.workers.service.directives import Order, Outcome
from app.workers.service.manual_start import StartOrder
from app.workers.store.directives import WorkerSelector

router = Router(tags=["workers"])
_OPERATOR = [requires(Scope.OPERATE)]
_MANAGER = [requires(Scope.MANAGE)]
_DIRECTED = responses_for(WorkerNotFound, WorkerGone)


_EXAMPLE: dict[str, Any] = {
    "count": 2,
    "reason": "a long run tonight",
    "request_id": "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c",
}


class CrewFilter(ExplicitFilter):
    """Which live workers; all fields must agree."""

    name: list[Word] = Field(default_factory=list, max_length=1000, description="any of these")
    agent_type: AgentName | None = Field(None, description="that they are assigned to")
    label: LabelPairs = Field(default_factory=list)

    def selector(self) -> WorkerSelector:
        """The filter as the store takes it."""
        return WorkerSelector(names=self.name, agent_type=self.agent_type, labels=pairs(self.label))


class CrewIn(BulkRequest):
    """Which workers to tell, and why."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"filter": {"agent_type": "ranking"}, "dry_run": True, "reason": "an upgrade"}]}
    )

    filter: CrewFilter
    reason: Reason = ""


class _Counted(BaseModel):
    matched: int = Field(description="live workers that the filter selected and that had not been told")
    remaining: int = Field(description="those that are left: repeat the call to go on")
    dry_run: bool


class Drained(_Counted):
    """What a call of `POST /workers/drain` has done."""

    drained: int = Field(description="those of them that are told to")


class Stopped(_Counted):
    """What a call of `POST /workers/stop` has done."""

    stopped: int = Field(description="those of them that are told to")


class Restarted(_Counted):
    """What a call of `POST /workers/restart` has done."""

    restarted: int = Field(description="those of them that are told to")


@router.post(
    "/workers/drain",
    operation_id="drain_workers",
    summary="Drain the workers that a filter selects",
    openapi_extra=body_limit(LISTS_BYTES),
    dependencies=_MANAGER,
)
async def drain_many(call: CrewIn, caller: Caller, connection: Writing) -> Drained:
    """As for a single one. A name that no live worker has selects nobody."""
    outcome = await _direct_many(Directive.DRAIN, call, caller.key_id, connection)
    return Drained(drained=outcome.directed_workers, **_counts(outcome, call))


@router.post(
    "/workers/stop",
    operation_id="stop_workers",
    summary="Stop the workers that a filter selects",
    openapi_extra=body_limit(LISTS_BYTES),
    dependencies=_OPERATOR,
)
async def stop_many(call: CrewIn, caller: Caller, connection: Writing) -> Stopped:
    """As for a single one. A name that no live worker has selects nobody."""
    outcome = await _direct_many(Directive.STOP, call, caller.key_id, connection)
    return Stopped(stopped=outcome.directed_workers, **_counts(outcome, call))


@router.post(
    "/workers/restart",
    operation_id="restart_workers",
    summary="Restart the workers that a filter selects",
    openapi_extra=body_limit(LISTS_BYTES),
    dependencies=_OPERATOR,
)
async def restart_many(call: CrewIn, caller: Caller, connection: Writing) -> Restarted:
    """As for a single one. A name that no live worker has selects nobody."""
    outcome = await _direct_many(Directive.RESTART, call, caller.key_id, connection)
    return Restarted(restarted=outcome.directed_workers, **_counts(outcome, call))


@router.post(
    "/workers/{worker_id}/drain",
    operation_id="drain_worker",
    summary="Drain a worker",
    dependencies=_MANAGER,
    responses=_DIRECTED,
)
async def drain(worker_id: UUID, reason: ReasonIn, caller: Caller, connection: Writing) -> WorkerOut:
    """It finishes its task, takes no more, and ends. The pool starts another in its place. Safe to repeat."""
    return await _direct_one(Directive.DRAIN, worker_id, reason, caller, connection)


@router.post(
    "/workers/{worker_id}/stop",
    operation_id="stop_worker",
    summary="Stop a worker",
    dependencies=_OPERATOR,
    responses=_DIRECTED,
)
async def stop(worker_id: UUID, reason: ReasonIn, caller: Caller, connection: Writing) -> WorkerOut:
    """As drain, but after a grace period it is ended and its task goes back without burning an attempt.

    A worker that was told to stop is not told to drain or restart any more.
    """
    return await _direct_one(Directive.STOP, worker_id, reason, caller, connection)


@router.post(
    "/workers/{worker_id}/restart",
    operation_id="restart_worker",
    summary="Restart a worker",
    dependencies=_OPERATOR,
    responses=_DIRECTED,
)
async def restart(worker_id: UUID, reason: ReasonIn, caller: Caller, connection: Writing) -> WorkerOut:
    """As stop, and a new process takes its place in the pool under the same name, which counts neither as a loss nor
    as a crash. A worker that nobody provisions starts itself anew.
    """
    return await _direct_one(Directive.RESTART, worker_id, reason, caller, connection)


@router.post(
    "/workers/{worker_id}/evict",
    operation_id="evict_worker",
    summary="Evict a worker",
    dependencies=_OPERATOR,
    responses=responses_for(WorkerNotFound),
)
async def evict(worker_id: UUID, reason: ReasonIn, caller: Caller, connection: Writing) -> WorkerOut:
    """For one that is not trusted any more, also if it has ended: its key is revoked at once, its task goes back to the
    queue, its permits end, and the process is killed where the service has started it. It is not asked, and the pool
    starts another. Safe to repeat.
    """
    return worker_out(await eviction.evict(connection, worker_id, by=caller.key_id, reason=reason.reason), caller)


@router.post(
    "/workers/{worker_id}/lost",
    operation_id="declare_worker_lost",
    summary="Report that a worker is dead",
    dependencies=_MANAGER,
    responses=responses_for(WorkerNotFound),
)
async def lost(worker_id: UUID, reason: ReasonIn, caller: Caller, connection: Writing) -> WorkerOut:
    """For whoever knows before its silence shows it: it counts as lost now, its key works no longer, and its task goes
    back to the queue, which counts as a rescue. Safe to repeat; one that has ended stays as it is.

    It is believed: a worker that lives ends as well, however lately it has called, since a process that was killed a
    moment ago has called just before. To end a worker in order, drain or stop it.
    """
    return worker_out(await eviction.report_lost(connection, worker_id, by=caller.key_id, reason=reason.reason), caller)


async def _direct_one(
    directive: Directive, worker_id: UUID, reason: ReasonIn, caller: Principal, connection: AsyncConnection
) -> WorkerOut:
    order = Order(directive=directive, by=caller.key_id, reason=reason.reason)
    return worker_out(await service.direct(connection, worker_id, order), caller)


async def _direct_many(directive: Directive, call: CrewIn, by: str, connection: AsyncConnection) -> Outcome:
    order = Order(directive=directive, by=by, reason=call.reason)
    return await service.direct_many(connection, call.filter.selector(), order, limit=call.limit, dry_run=call.dry_run)


def _counts(outcome: Outcome, call: CrewIn) -> dict[str, int | bool]:
    return {
        "matched": outcome.selected_workers,
        "remaining": outcome.selected_workers - outcome.directed_workers,
        "dry_run": call.dry_run,
    }


class WorkersStartIn(Body):
    """How many workers more, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    count: int = Field(1, ge=1, le=1000)
    reason: Reason = ""
    request_id: UUID | None = Field(None, description="repeat it when the answer was lost: nobody else is started")


class StartingOut(BaseModel):
    """A worker that is asked for."""

    worker_id: UUID
    name: str


class StartedOut(BaseModel):
    """What a call of `POST /workers/start` has done."""

    started: int
    workers: list[StartingOut] = Field(description="they register within seconds; read one by its id")


@router.post(
    "/workers/start",
    operation_id="start_workers",
    summary="Start workers",
    status_code=201,
    dependencies=_MANAGER,
    responses=responses_for(StartRefused),
)
async def start(call: WorkersStartIn, caller: Caller, connection: Writing, services: ServicesDep) -> StartedOut:
    """On the hosts that start workers, the next where most room is left; within the maximum of the configuration and
    what the hosts suffice for, all or none.

    They stay until the scaling loop finds that they idle, or where the size of the pool is fixed until the loops of
    their host end. Safe to repeat with the same `request_id`.
    """
    order = StartOrder(request_id=call.request_id or uuid4(), count=call.count, by=caller.key_id, reason=call.reason)
    workers = await manual_start.start(connection, services[CurrentConfig].initial, order)
    return StartedOut.model_validate({"started": len(workers), "workers": workers}, from_attributes=True)
