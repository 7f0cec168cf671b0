"""Routes of workers on leases: lease a task, report progress, hand in the result, fail or release it."""

import hashlib
import json
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.fast_routes import LeanRoute
from app.http.fields import Usage, priority_name
from app.http.guard import Caller, requires, worker_of
from app.http.json import answer, check_size, join
from app.http.problems import responses_for
from app.http.services import PayloadLimit, Services, ServicesDep
from app.http.streaming import until_disconnect
from app.kernel import errors
from app.kernel.access import Principal, Scope
from app.kernel.errors import ConvenerError, WorkerGone
from app.kernel.ids import TaskId
from app.kernel.states import TaskState
from app.queue.api import advice
from app.queue.api.lease_schemas import (
    CompletedOut,
    CompleteIn,
    EndedOut,
    FailIn,
    HeldOut,
    LeaseIn,
    LeaseOut,
    LeaseStartIn,
    NextIn,
    ProgressIn,
    ReleaseIn,
)
from app.queue.broker.broker import Broker, LeaseCall
from app.queue.errors import (
    LeaseEnded,
    LeaseExpired,
    LeaseNotFound,
    LeaseSuperseded,
    TaskCancelled,
    WorkerBusy,
    WorkerNotReady,
)
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import leases as service
from app.queue.service.leases import Failure, Fence, LeaseService
from app.queue.store.claims import Lease
from app.queue.store.completions import Completion, Renewal

# Most requests to the service come here, once or more for every task.
router = APIRouter(tags=["leases"], route_class=LeanRoute, dependencies=[requires(Scope.LEASE)])
_FENCE_REFUSALS = responses_for(LeaseNotFound, LeaseExpired, LeaseSuperseded, LeaseEnded, TaskCancelled)
_MAX_DETAIL_BYTES = 64 << 10
_EXCERPT_CHARACTERS = 4000
_WORKER_REFUSALS = responses_for(WorkerNotReady, WorkerGone, WorkerBusy, errors.ShuttingDown)


@router.post(
    "/lease",
    summary="Lease one task",
    response_model=LeaseOut,
    responses={204: {"description": "nothing to do within the wait"}, **_WORKER_REFUSALS},
)
async def lease(call: LeaseIn, principal: Caller, services: ServicesDep, request: Request) -> Response:
    """One task for this worker, waiting for it up to `wait_seconds`."""
    lease_call = _lease_call(call, principal)
    wait = min(call.wait_seconds, services[LeasePolicy].max_wait_seconds)
    # Without a wait the answer comes at once, so watching the connection would only cost time.
    lease = (
        await until_disconnect(request, services[Broker].lease(lease_call, wait))
        if wait
        else await services[Broker].lease(lease_call)
    )
    return answer(_render(lease, services)) if lease else Response(status_code=204)


@router.post(
    "/leases/{task_id}/start",
    summary="Acknowledge a lease",
    response_model=HeldOut,
    responses=_FENCE_REFUSALS,
)
async def start(task_id: UUID, call: LeaseStartIn, principal: Caller, services: ServicesDep) -> Response:
    """Acknowledge a lease: the task begins."""
    return await _renew(services, Renewal(task_id=TaskId(task_id), token=call.token, worker_id=worker_of(principal)))


@router.post(
    "/leases/{task_id}/progress",
    summary="Report progress and renew",
    openapi_extra=body_limit(CONTENT_BYTES),
    response_model=HeldOut,
    responses=_FENCE_REFUSALS,
)
async def progress(task_id: UUID, call: ProgressIn, principal: Caller, services: ServicesDep) -> Response:
    """Report progress, which also renews the lease."""
    check_size(call.checkpoint, services[PayloadLimit].max_bytes, "checkpoint")
    report = call.model_dump_json(include={"percent", "message"})
    renewal = Renewal(
        task_id=TaskId(task_id),
        token=call.token,
        worker_id=worker_of(principal),
        progress=report,
        checkpoint=call.checkpoint,
    )
    return await _renew(services, renewal)


@router.post(
    "/leases/{task_id}/complete",
    summary="Hand in the result",
    openapi_extra=body_limit(CONTENT_BYTES),
    response_model=CompletedOut,
    responses=_FENCE_REFUSALS,
)
async def complete(task_id: UUID, call: CompleteIn, principal: Caller, services: ServicesDep) -> Response:
    """Hand in the result, and ask for the next task in the same breath if you like."""
    check_size(call.result, services[PayloadLimit].max_bytes, "result")
    completion = Completion(
        task_id=TaskId(task_id),
        token=call.token,
        worker_id=worker_of(principal),
        result=call.result,
        result_hash=_outcome_hash(call),
        usage=_usage(call.usage),
        quality=call.quality,
    )
    # Committed before the next task is claimed: a failed claim must not cost the result.
    await services[LeaseService].complete(completion)
    next_lease = await _next(services, principal, call.next) if call.next else None
    fields = {"task_id": task_id, "state": TaskState.COMPLETED.value}
    return answer(join(fields, {"lease": _render(next_lease, services).decode() if next_lease else None}))


@router.post(
    "/leases/{task_id}/fail",
    summary="Report a failed attempt",
    openapi_extra=body_limit(CONTENT_BYTES),
    response_model=EndedOut,
    responses=_FENCE_REFUSALS,
)
async def fail(task_id: UUID, call: FailIn, principal: Caller, services: ServicesDep) -> Response:
    """Report that the attempt failed: the task is tried again after a delay, or given up."""
    failure = Failure(
        code=call.error.code,
        message=call.error.message,
        retryable=call.error.retryable,
        detail=_bounded_detail(call.error.detail),
        usage=_usage(call.usage),
    )
    async with services.database.transaction() as connection:
        ended_lease = await service.fail(connection, _fence(task_id, call.token, principal), failure)
    return answer(join({"task_id": task_id, "state": ended_lease.state.value, "run_at": ended_lease.run_at}, {}))


@router.post(
    "/leases/{task_id}/release",
    summary="Give the task back",
    response_model=EndedOut,
    responses=_FENCE_REFUSALS,
)
async def release(task_id: UUID, call: ReleaseIn, principal: Caller, services: ServicesDep) -> Response:
    """Give the task back; this burns no attempt. With a delay nobody gets it before."""
    async with services.database.transaction() as connection:
        ended_lease = await service.release(
            connection,
            _fence(task_id, call.token, principal),
            call.reason,
            call.delay_seconds,
            waits_for_model=call.waits_for_model,
        )
    return answer(join({"task_id": task_id, "state": ended_lease.state.value, "run_at": ended_lease.run_at}, {}))


async def _renew(services: Services, renewal: Renewal) -> Response:
    expires_at = await services[LeaseService].renew(renewal)
    identity = {"task_id": renewal.task_id, "token": renewal.token}
    return answer(join({**identity, "state": TaskState.EXECUTING.value, "expires_at": expires_at}, {}))


async def _next(services: Services, principal: Principal, call: NextIn) -> Lease | None:
    """Lease the next task, or None. The result is stored by now, so no refusal may make the call look failed."""
    try:
        return await services[Broker].lease(_lease_call(call, principal))
    except ConvenerError:
        return None


def _lease_call(call: LeaseIn | NextIn, principal: Principal) -> LeaseCall:
    """The call for a task, limited to agent types that the worker registered for."""
    can_run = principal.capabilities
    return LeaseCall(
        worker_id=worker_of(principal),
        request_id=call.request_id,
        agent_types=can_run if call.agent_types is None else can_run.intersection(call.agent_types),
        acknowledge=call.acknowledge,
    )


def _outcome_hash(call: CompleteIn) -> bytes:
    """Hash by which a repeated call is recognized; it leaves out the usage, which may be measured anew."""
    outcome = call.result if call.quality is None else f"{call.result}{call.quality!r}"
    return hashlib.sha256(outcome.encode()).digest()


def _bounded_detail(detail: str | None) -> str | None:
    """The detail, or where it is longer than 64 KiB its beginning as text: a failure must not fail for its length."""
    if detail is None or len(detail.encode()) <= _MAX_DETAIL_BYTES:
        return detail
    return json.dumps({"truncated": True, "characters": len(detail), "excerpt": detail[:_EXCERPT_CHARACTERS]})


def _usage(usage: Usage | None) -> str | None:
    return usage.model_dump_json() if usage else None


def _fence(task_id: UUID, token: int, principal: Principal) -> Fence:
    return Fence(task_id=TaskId(task_id), token=token, worker_id=worker_of(principal))


def _render(lease: Lease, services: Services) -> bytes:
    plain = {
        "task_id": lease.task_id,
        "token": lease.token,
        "attempt": lease.attempt,
        "agent_type": lease.agent_type,
        "goal_id": lease.goal_id,
        "priority": priority_name(lease.priority),
        "created_at": lease.created_at,
        "timeout_seconds": lease.timeout_seconds,
        "leased_at": lease.leased_at,
        "expires_at": lease.expires_at,
        "deadline_at": lease.deadline_at,
        "trace_context": lease.trace_context,
    }
    # JSON values pass through as text: parsing and writing them again would cost more than everything else here.
    texts = {"payload": lease.payload, "labels": lease.labels, "checkpoint": lease.checkpoint}
    return join(plain, texts | {"degradation": advice.text(services)})
