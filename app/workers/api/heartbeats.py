"""Heartbeats: the report of a worker every few seconds, and the answer with directives and its assignment."""

import json
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.admin.rules.config import LimitsConfig
from app.admin.service.config import CurrentConfig
from app.http.fast_routes import LeanRoute
from app.http.fields import Body, Moment, Sentence, Word
from app.http.guard import Caller, requires
from app.http.json import JsonAnswer, join
from app.http.problems import responses_for
from app.http.services import ServicesDep
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.errors import WorkerGone
from app.kernel.ids import WorkerId
from app.queue.api import advice
from app.queue.api.advice import AdviceOut
from app.queue.errors import WorkerNotFound
from app.workers.api.workers import must_be
from app.workers.rules.assignment import in_force, version
from app.workers.rules.workers import Directive
from app.workers.service.signs_of_life import SignsOfLife
from app.workers.service.workers import Heartbeats
from app.workers.store.workers import Heartbeat, HeartbeatReply

router = APIRouter(tags=["workers"], route_class=LeanRoute)
# Cores, or GB: the most that a worker may register with, so that sums over all workers stay finite.
_MAX_AMOUNT = 65536


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

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"state": "ready", "cpu_percent": 12.5, "memory_mb": 310}]}
    )

    state: Literal["ready", "busy", "draining"]
    lease: LeaseRef | None = None
    cpu_percent: float | None = Field(
        None, ge=0, le=100 * _MAX_AMOUNT, description="percent of one core since the last report"
    )
    memory_mb: float | None = Field(None, ge=0, le=1024 * _MAX_AMOUNT, description="MiB that are resident now")
    errors: list[LocalError] = Field(default_factory=list, max_length=50)
    not_ready_reason: Sentence | None = Field(
        None,
        min_length=1,
        description="why it cannot work yet, by its own check, such as handlers that do not load: a starting worker "
        "stays so until a report without one; of a worker that was ready before it is ignored",
    )
    assignment: Word | None = Field(None, description="version of the assignment that the worker goes by")


class DirectiveOut(BaseModel):
    """What the worker is to do."""

    kind: Directive
    reason: str | None
    task_id: UUID | None = None
    token: int | None = None


class AssignmentOut(BaseModel):
    """What the worker is to prefer, and how much each of its tasks may use from the next one on.

    Never more than the worker registered with, nor than the configuration allows.
    """

    version: str = Field(description="names these values; send it with the following heartbeats")
    agent: AgentType | None
    memory_gb: float
    cpu_cores: float
    compute_seconds: float | None = Field(
        description="of a usual task of that agent: one with another timeout gets as many times more; leases say it"
    )


class BeatOut(BaseModel):
    """How the service sees the worker."""

    worker_id: UUID
    state: str
    not_ready_reason: str | None = Field(description="why this report has not passed, so that it gets no lease")
    directives: list[DirectiveOut]
    lease_expires_at: Moment | None
    degradation: AdviceOut | None = Field(description="what to keep to while resources are short; null: as usual")
    assignment: AssignmentOut | None = Field(description="null when the heartbeat named the version in force")


@router.post(
    "/workers/{worker_id}/heartbeat",
    operation_id="send_heartbeat",
    summary="Report health",
    dependencies=[requires(Scope.LEASE)],
    response_model=BeatOut,
    responses=responses_for(WorkerGone, WorkerNotFound),
)
async def heartbeat(worker_id: UUID, call: BeatIn, principal: Caller, services: ServicesDep) -> Response:
    """Renews the lease it names; the answer may carry directives, and a new assignment until the worker names it.

    The first one that passes makes a worker ready. It does not where the worker itself says why it cannot work, or
    reports more memory or processor time than it has; one that never passes has failed after 30 s, for this reason.
    """
    must_be(principal, WorkerId(worker_id))
    beat = Heartbeat(
        worker_id=WorkerId(worker_id),
        draining=call.state == "draining",
        task_id=call.lease.task_id if call.lease else None,
        token=call.lease.token if call.lease else None,
        cpu_percent=call.cpu_percent,
        memory_mb=call.memory_mb,
        errors=json.dumps([error.model_dump(mode="json") for error in call.errors]) if call.errors else None,
        not_ready_reason=call.not_ready_reason,
    )
    reply = await services[Heartbeats].report(beat)
    services[SignsOfLife].note_heartbeat(beat.worker_id)
    limits = (await services[CurrentConfig].read()).document.resource_limits
    fields = {
        "worker_id": worker_id,
        "state": reply.state.value,
        "not_ready_reason": reply.not_ready_reason,
        "lease_expires_at": reply.lease_expires_at,
        "assignment": _assignment(reply, limits, call.assignment),
    }
    # Parts that are JSON text already are joined as they are, without a model that would parse and validate them.
    texts = {"directives": json.dumps(_directives(reply, beat)), "degradation": advice.text(services)}
    return JsonAnswer(join(fields, texts))


def _assignment(reply: HeartbeatReply, limits: LimitsConfig, worker_version: str | None) -> dict[str, Any] | None:
    """The assignment in force; None when the worker goes by it already."""
    # By version, not by change: an answer that was lost is so repeated with the next heartbeat.
    assignment = in_force(reply.assignment, limits, memory_gb=reply.memory_gb, cpu_cores=reply.cpu_cores)
    name = version(assignment)
    return None if name == worker_version else {"version": name, **assignment._asdict()}


def _directives(reply: HeartbeatReply, beat: Heartbeat) -> list[dict[str, Any]]:
    """The directive of the worker, and one to cancel its task when it does not hold the lease it named any more."""
    directives: list[dict[str, Any]] = []
    if reply.directive is not None:
        directives.append({"kind": reply.directive, "reason": reply.directive_reason, "task_id": None, "token": None})
    if beat.task_id is not None and reply.lease_state is None:
        lease = {"task_id": str(beat.task_id), "token": beat.token}
        reason = "the task was cancelled, or its lease has moved on"
        directives.append({"kind": Directive.CANCEL_TASK.value, "reason": reason, **lease})
    return directives
