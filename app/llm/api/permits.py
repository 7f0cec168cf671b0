"""Routes of permits for calls of language models, and of cached answers."""

import hashlib
import json
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.fields import Limit, Word, priority_name, priority_of
from app.http.guard import Caller, requires
from app.http.json import check_size as limit_size
from app.http.namespaces import Into, Within
from app.http.problems import CODES, Problem, responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel.access import Principal, Role, Scope
from app.kernel.errors import Forbidden, ShuttingDown, TooManyFailures
from app.kernel.namespaces import split_name, stored_name
from app.llm.api.model_schemas import ModelName
from app.llm.api.permit_schemas import (
    CachedOut,
    CacheKey,
    LivePermitOut,
    PermitIn,
    PermitOut,
    PermitPage,
    PermitToken,
    RefusalOut,
    RenewedOut,
    RenewIn,
    SettledOut,
    SettleIn,
)
from app.llm.errors import (
    AgentTypeMissing,
    AnswerNotCached,
    CacheKeyMismatch,
    LeaseMismatch,
    LeaseRequired,
    ModelNotAllowed,
    PermitNotFound,
    PermitOver,
    PermitRefused,
)
from app.llm.rules.conditions import ServiceState
from app.llm.rules.outcomes import CallReport
from app.llm.rules.permits import Refused, RequestId
from app.llm.service import permits as service
from app.llm.service.grant import AcquireRequest
from app.llm.service.permits import PermitService
from app.llm.service.settle import Settlement
from app.llm.store import permits as store
from app.llm.store.cache import NewAnswer
from app.llm.store.permits import Permit

router = Router(prefix="/llm", tags=["language models"])
_CALL = [requires(Scope.CALL)]
_FIRST = UUID(int=0)
_MAX_ANSWER_BYTES = 256 << 10
_REFUSAL = {
    "type": f"/problems#{PermitRefused.code}",
    "title": PermitRefused.title(),
    "status": 429,
    "detail": "the budget of ranking is used up; ask again in 60 s",
    "code": PermitRefused.code,
    "reason": Refused.BUDGET.value,
    "retry_after": 60.0,
    "fallback_models": ["gpt-4.1-mini"],
    "cached": {"answer": {"choices": []}, "stored_at": "2026-11-24T11:00:00Z", "degraded": True},
    "state": ServiceState.OK.value,
    "park_seconds": 3600.0,
    "waits_for": "budget:agent:ranking",
    "budget": {"scope": "agent", "name": "ranking", "until": "2026-11-25T00:00:00Z"},
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    429: {
        "model": RefusalOut | Problem,
        "description": f"`{PermitRefused.code}`: {PermitRefused.title()}. "
        f"`{TooManyFailures.code}`: {TooManyFailures.title()}.",
        "content": {"application/json": {"examples": {PermitRefused.code: {"value": _REFUSAL}}}},
        CODES: [TooManyFailures.code],
    }
}
_ASKING = responses_for(PermitOver, LeaseMismatch, LeaseRequired, ModelNotAllowed, AgentTypeMissing)
_FENCED = responses_for(PermitNotFound, PermitOver)
_SETTLING = responses_for(PermitNotFound, PermitOver, CacheKeyMismatch)


@router.post(
    "/permits",
    operation_id="acquire_permit",
    summary="Ask for a permit",
    status_code=201,
    dependencies=_CALL,
    responses={**_REFUSED, **_ASKING},
)
async def acquire(body: PermitIn, services: ServicesDep, caller: Caller, namespace: Into) -> PermitOut:
    """Granted or refused at once. Never more permits are live than `max_concurrent_llm_calls` of the configuration
    says, nor for one model than its service bears and its limits allow, nor for one worker than its share.
    No key gets all of several permits while others call or wait: the last one is for them.

    Safe to repeat: the same `request_id` gets the same permit while it lives; a permit that is over answers 409.
    """
    if services.stopping:
        raise ShuttingDown
    acquisition = await services[PermitService].acquire(_acquire_request(body, caller, namespace))
    return PermitOut(
        permit_id=acquisition.permit.id,
        token=acquisition.permit.token,
        model=acquisition.permit.request.model,
        expires_at=acquisition.permit.expires_at,
        ttl_seconds=acquisition.ttl_seconds,
        fallback_models=list(acquisition.fallback_models),
        limit=acquisition.limit,
        in_use=acquisition.in_use,
    )


@router.post(
    "/permits/{permit_id}/renew",
    operation_id="renew_permit",
    summary="Keep a permit alive",
    dependencies=_CALL,
    responses=_FENCED,
)
async def renew(
    permit_id: UUID, call: RenewIn, connection: Writing, services: ServicesDep, caller: Caller, namespace: Within
) -> RenewedOut:
    """For another `ttl_seconds` from now. A permit that is over is refused with its `reason`, and that of a worker when
    the task of the call is over. One of a key that is no worker's lives for a quarter of an hour at
    most, and is not renewed while others wait and that key has all.
    """
    policy = services[PermitService].policy
    expires_at = await service.renew(connection, permit_id, call.token, policy, caller.worker_id, namespace)
    return RenewedOut(expires_at=expires_at, ttl_seconds=policy.ttl_seconds)


@router.post(
    "/permits/{permit_id}/settle",
    operation_id="settle_permit",
    summary="Settle a permit",
    openapi_extra=body_limit(CONTENT_BYTES),
    dependencies=_CALL,
    responses=_SETTLING,
)
async def settle(
    permit_id: UUID, call: SettleIn, services: ServicesDep, caller: Caller, namespace: Within
) -> SettledOut:
    """The permit is free for others, and what the call came to is counted, charged to the rates and learnt from.

    What a caller reports of the service binds that caller; it binds all once somebody reports the same for whom another
    key vouches, or a third one where only one key does. Safe to
    repeat with the same body; another body is refused. A permit that expired, or whose worker was lost, is
    settled all the same, and the answer says `late`.
    """
    if services.stopping:
        raise ShuttingDown
    result = await services[PermitService].settle(_settlement(permit_id, call, caller, namespace))
    return SettledOut.model_validate(result, from_attributes=True)


@router.delete(
    "/permits/{permit_id}",
    operation_id="release_permit",
    summary="Give a permit back unused",
    status_code=204,
    dependencies=_CALL,
    responses=_FENCED,
)
async def release(
    permit_id: UUID, token: Annotated[PermitToken, Query()], connection: Writing, caller: Caller, namespace: Within
) -> None:
    """The call was not made: what it was charged is given back to the rates. Safe to repeat."""
    await service.release(connection, permit_id, token, caller.worker_id, namespace)


@router.get("/permits", operation_id="list_permits", summary="List live permits", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    namespace: Within,
    after: Annotated[UUID, Query(description="`next` of the page before")] = _FIRST,
    limit: Limit = 100,
) -> PermitPage:
    """Who calls a model right now."""
    permits = await store.page(connection, namespace=namespace, after_id=after, limit=limit)
    items = [_live_permit_out(permit) for permit in permits.items]
    return PermitPage(items=items, next=permits.next(lambda permit: permit.id))


@router.get(
    "/cache/{key}",
    operation_id="get_cached_answer",
    summary="Read a cached answer",
    dependencies=_CALL,
    responses=responses_for(AnswerNotCached, LeaseRequired),
)
async def cached(
    key: Annotated[CacheKey, Path()],
    model: Annotated[ModelName, Query()],
    connection: Reading,
    caller: Caller,
    namespace: Into,
    goal_id: Annotated[Word | None, Query(description="of anybody but a worker, whose task says it")] = None,
) -> CachedOut:
    """The answer of the model that a settlement has left under this key, while it is not too old. A worker sees those
    of the goal whose task it holds, and others of its own.
    """
    name = _goal_name(goal_id, caller, namespace)
    answer = await service.cached_answer(
        connection, model, bytes.fromhex(key), key_id=caller.key_id, worker_id=caller.worker_id, goal_id=name
    )
    if answer is None:
        raise AnswerNotCached
    return CachedOut(answer=answer.answer, stored_at=answer.stored_at)


def _goal_name(goal_id: str | None, caller: Principal, namespace: str) -> str | None:
    """The stored name of the goal that a caller names. Raises Forbidden for a goal of another namespace."""
    # A worker names the goal as its lease does, which is compared.
    name = goal_id if caller.worker_id is not None else stored_name(namespace, goal_id)
    if caller.namespace not in (None, split_name(name)[0]):
        raise Forbidden(f"the key belongs to the namespace {caller.namespace}, and the goal to another")
    return name


def _acquire_request(body: PermitIn, caller: Principal, namespace: str) -> AcquireRequest:
    if caller.worker_id is None and body.agent_type is None:
        raise AgentTypeMissing([("agent_type", "must be given with the key of somebody who is no worker")])
    if body.priority == "critical" and caller.role is Role.SUPERVISOR:
        raise Forbidden("a key with the role supervisor calls language models with the priority high at most")
    return AcquireRequest(
        id=RequestId(caller.key_id, body.request_id),
        model=body.model,
        tokens=body.estimated_tokens,
        worker_id=caller.worker_id,
        agent_type=body.agent_type,
        priority=None if body.priority is None else priority_of(body.priority),
        goal_id=_goal_name(body.goal_id, caller, namespace),
        task_id=body.task_id,
        principal="" if caller.namespace is None else f"@{caller.namespace}",
        question=None if body.cache_key is None else bytes.fromhex(body.cache_key),
    )


def _settlement(permit_id: UUID, call: SettleIn, caller: Principal, namespace: str | None) -> Settlement:
    # Two settlements are the same if their bodies are, but for the token, which the permit itself is checked by.
    content = call.model_dump(mode="json", exclude={"token"})
    report = {name: getattr(call, name) for name in CallReport.__dataclass_fields__ if name != "latency_seconds"}
    answer = None
    if call.cache is not None:
        limit_size(call.cache.answer, _MAX_ANSWER_BYTES, "answer")
        question = bytes.fromhex(call.cache.key)
        answer = NewAnswer(question=question, answer=call.cache.answer, ttl_seconds=call.cache.ttl_seconds)
    return Settlement(
        permit_id=permit_id,
        token=call.token,
        worker_id=caller.worker_id,
        namespace=namespace,
        report=CallReport(latency_seconds=None if call.latency_ms is None else call.latency_ms / 1000, **report),
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest(),
        answer=answer,
    )


def _live_permit_out(permit: Permit) -> LivePermitOut:
    permit_fields = {name: getattr(permit, name) for name in ("is_probe", "granted_at", "expires_at")}
    names = ("model", "agent_type", "task_id", "worker_id")
    request_fields = {name: getattr(permit.request, name) for name in names}
    namespace, goal_id = split_name(permit.request.goal_id)
    return LivePermitOut(
        permit_id=permit.id,
        key_id=permit.request.id.key_id,
        priority=priority_name(permit.request.priority),
        estimated_tokens=permit.request.tokens,
        namespace=namespace,
        goal_id=goal_id,
        **permit_fields,
        **request_fields,
    )
