"""Routes of workers on leases: lease a task, report progress, hand in the result, fail or release it."""

import json
import logging
from functools import partial
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.fast_routes import LeanRoute
from app.http.guard import Caller, requires, worker_of
from app.http.json import JsonAnswer, join
from app.http.problems import responses_for
from app.http.services import Services, ServicesDep
from app.http.streaming import until_disconnect
from app.kernel import errors
from app.kernel.access import Principal, Scope
from app.kernel.errors import ConvenerError, WorkerGone
from app.kernel.ids import TaskId
from app.queue.api import advice, lease_calls
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
from app.queue.broker.broker import Broker
from app.queue.broker.calls import PrecedingResult
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
from app.queue.store.completions import Renewal

log = logging.getLogger(__name__)
# Most requests to the service come here, once or more for every task.
router = APIRouter(tags=["leases"], route_class=LeanRoute, dependencies=[requires(Scope.LEASE)])
_FENCE_REFUSALS = responses_for(LeaseNotFound, LeaseExpired, LeaseSuperseded, LeaseEnded, TaskCancelled)
_MAX_DETAIL_BYTES = 64 << 10
_EXCERPT_CHARACTERS = 4000
_WORKER_REFUSALS = responses_for(WorkerNotReady, WorkerGone, WorkerBusy, errors.ShuttingDown)


@router.post(
    "/lease",
    operation_id="lease_task",
    summary="Lease one task",
    response_model=LeaseOut,
    responses={204: {"description": "nothing to do within the wait"}, **_WORKER_REFUSALS},
)
async def lease(call: LeaseIn, principal: Caller, services: ServicesDep, request: Request) -> Response:
    """One task for this worker, waiting for it up to `wait_seconds`."""
    lease_call = lease_calls.lease_call(call, principal)
    wait = min(call.wait_seconds, services[LeasePolicy].max_wait_seconds)
    broker = services[Broker]
    # Without a wait the answer comes at once, so watching the connection would only cost time.
    lease = (
        await until_disconnect(request, broker.lease(lease_call, wait), partial(broker.give_back, lease_call.worker_id))
        if wait
        else await broker.lease(lease_call)
    )
    if lease is None:
        return Response(status_code=204)
    return JsonAnswer(lease_calls.lease_text(lease, advice.text(services)))


@router.post(
    "/leases/{task_id}/start",
    operation_id="start_task",
    summary="Acknowledge a lease",
    response_model=HeldOut,
    responses=_FENCE_REFUSALS,
)
async def start(task_id: UUID, call: LeaseStartIn, principal: Caller, services: ServicesDep) -> Response:
    """Acknowledge a lease: the task begins."""
    return await _renew(services, lease_calls.renewal(task_id, call, principal, services))


@router.post(
    "/leases/{task_id}/progress",
    operation_id="report_progress",
    summary="Report progress and renew",
    openapi_extra=body_limit(CONTENT_BYTES),
    response_model=HeldOut,
    responses=_FENCE_REFUSALS,
)
async def progress(task_id: UUID, call: ProgressIn, principal: Caller, services: ServicesDep) -> Response:
    """Report progress, which also renews the lease."""
    return await _renew(services, lease_calls.renewal(task_id, call, principal, services))


@router.post(
    "/leases/{task_id}/complete",
    operation_id="complete_task",
    summary="Hand in the result",
    openapi_extra=body_limit(CONTENT_BYTES),
    response_model=CompletedOut,
    responses=_FENCE_REFUSALS,
)
async def complete(task_id: UUID, call: CompleteIn, principal: Caller, services: ServicesDep) -> Response:
    """Hand in the result, and ask for the next task in the same breath if you like."""
    result = PrecedingResult(lease_calls.completion(task_id, call, principal, services))
    next_lease = await _next(services, principal, call.next, result) if call.next and result.is_small else None
    if not result.is_accepted:
        # Alone: a failed claim must not cost the result, and whoever is refused hears why.
        await services[LeaseService].complete(result.completion)
        asks = call.next and not (result.is_superseded or services[Broker].is_waiting(worker_of(principal)))
        next_lease = await _next(services, principal, call.next) if call.next and asks else None
    return JsonAnswer(lease_calls.completed_text(task_id, next_lease, advice.text(services)))


@router.post(
    "/leases/{task_id}/fail",
    operation_id="fail_task",
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
        usage=lease_calls.usage_text(call.usage),
    )
    async with services.database.transaction() as connection:
        ended_lease = await service.fail(connection, _fence(task_id, call.token, principal), failure)
    return JsonAnswer(join({"task_id": task_id, "state": ended_lease.state.value, "run_at": ended_lease.run_at}, {}))


@router.post(
    "/leases/{task_id}/release",
    operation_id="release_task",
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
            expires_at=call.expires_at,
        )
    return JsonAnswer(join({"task_id": task_id, "state": ended_lease.state.value, "run_at": ended_lease.run_at}, {}))


async def _renew(services: Services, renewal: Renewal) -> Response:
    return JsonAnswer(lease_calls.held_text(renewal, await services[LeaseService].renew(renewal)))


async def _next(
    services: Services, principal: Principal, call: NextIn, result: PrecedingResult | None = None
) -> Lease | None:
    """Lease the next task, or None: nothing that keeps it back may cost the result, or make its call look failed."""
    try:
        return await services[Broker].lease(lease_calls.lease_call(call, principal, result))
    except ConvenerError:
        return None
    except Exception:
        log.exception("a call for the next task failed")
        return None


def _bounded_detail(detail: str | None) -> str | None:
    """The detail, or where it is longer than 64 KiB its beginning as text: a failure must not fail for its length."""
    if detail is None or len(detail.encode()) <= _MAX_DETAIL_BYTES:
        return detail
    return json.dumps({"truncated": True, "characters": len(detail), "excerpt": detail[:_EXCERPT_CHARACTERS]})


def _fence(task_id: UUID, token: int, principal: Principal) -> Fence:
    return Fence(task_id=TaskId(task_id), token=token, worker_id=worker_of(principal))
