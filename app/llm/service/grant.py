"""Granting permits, or refusing them, to all who ask in the same moment."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.db.uuids import time_ordered_uuid
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.errors import LeaseMismatch, LeaseRequired, ModelNotAllowed, PermitOver, PermitRefused
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.conditions import park_seconds, service_state
from app.llm.rules.grant import PermitPlan, plan_permits
from app.llm.rules.models import Model, changed_tats, concurrency_ceiling, is_usable
from app.llm.rules.permits import (
    Denial,
    Grant,
    PermitCounts,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    RequestId,
    VirtualTimes,
)
from app.llm.rules.spending import BudgetScope, budget_park_seconds, budget_reason
from app.llm.service.settle import permit_error
from app.llm.store import cache, gate, permits
from app.llm.store import models as model_store
from app.llm.store.cache import CachedAnswer
from app.llm.store.gate import GateState, HeldTask
from app.llm.store.permits import NewPermit, Permit

_REASONS = {
    Refused.CONCURRENCY: "as many calls as are allowed at once are under way, or kept for those who came earlier",
    Refused.SHARE: "this worker has as many calls under way as its share allows",
    Refused.REQUESTS: "the model has had all the requests that its rate allows",
    Refused.TOKENS: "the model has had all the tokens that its rate allows",
    Refused.BUDGET: "a budget is used up",
    Refused.COOLDOWN: "the service of the model has asked to be left alone for a while",
    Refused.KEY_EXPIRED: "the service of the model refuses the key, which is read anew and tried every few seconds",
    Refused.QUOTA_EXHAUSTED: "the account of the model's key has nothing left",
    Refused.MAINTENANCE: "the service of the model is under maintenance",
    Refused.LOADING: "the model is being loaded",
    Refused.BREAKER_OPEN: "the service of the model has failed again and again, and is left alone or being tried",
}

# A new limit holds from a turn of the gate on: whoever grants by the old one is waited for.
config.lock_before_change(gate.lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireRequest:
    """A request for a permit, and the digest of its question, under which a refusal brings the cached answer.

    A worker's agent type, goal and priority are those of the task that it holds; one that it names must be the same.
    `principal` vouches for a caller that is none.
    """

    id: RequestId
    model: str
    tokens: int
    worker_id: UUID | None = None
    agent_type: AgentType | None = None
    priority: Priority | None = None
    goal_id: str | None = None
    task_id: UUID | None = None
    question: bytes | None = None
    principal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquiredPermit:
    """A permit, its seconds to live, the calls of its model that are allowed and under way, and what to ask instead."""

    permit: Permit
    ttl_seconds: float
    limit: int
    in_use: int
    fallback_models: Sequence[str] = ()


AcquireResult = AcquiredPermit | PermitRefused | PermitOver | ModelNotAllowed | LeaseRequired | LeaseMismatch


async def grant_all(
    connection: AsyncConnection,
    requests: Sequence[AcquireRequest],
    weights: Mapping[AgentType, float],
    policy: PermitPolicy,
    concurrency_policy: ConcurrencyPolicy,
) -> list[AcquireResult]:
    """Answer the requests, in their order. A repeated request gets the permit that it was granted before."""
    # From here to the commit nobody else gets a permit: so a batch is answered as a whole, and the state of the gate is
    # read in one round trip. The gate comes before the models, by the lock order in store/permits.
    virtual_times = await gate.lock(connection)
    models = await model_store.lock(connection, {request.model for request in requests})
    request_ids = [request.id for request in requests]
    workers = {request.worker_id for request in requests if request.worker_id is not None}
    goals = {request.goal_id for request in requests if request.goal_id is not None}
    state = await gate.read_state(connection, request_ids, workers, goals, policy.probe_seconds)
    granted_before = await permits.read_by_request(connection, request_ids) if state.is_repeated else {}
    other_names = {reservation.request.model for reservation in state.reservations}
    other_names |= {permit.request.model for permit in granted_before.values()}
    claims = {request.id: _claim(request, state.tasks) for request in requests if request.id not in granted_before}
    results: dict[RequestId, AcquireResult] = {
        request_id: claim for request_id, claim in claims.items() if not isinstance(claim, PermitRequest)
    }
    if unlisted := [r for r in requests if r.id in claims and r.id not in results and r.model not in models]:
        names = await model_store.names(connection)
        results |= {request.id: _not_allowed(names) for request in unlisted}
    models |= await _read_models(connection, other_names - models.keys())
    snapshot = _snapshot(state, models, virtual_times, weights)
    new_requests = [claim for claim in claims.values() if isinstance(claim, PermitRequest) and claim.id not in results]
    plan = plan_permits(snapshot, new_requests, policy, concurrency_policy)
    results |= {request_id: _repeated_result(permit, snapshot) for request_id, permit in granted_before.items()}
    results |= await _write(connection, snapshot, plan, policy)
    results |= await _refusals(connection, plan, snapshot)
    return [results[request_id] for request_id in request_ids]


def _claim(request: AcquireRequest, tasks: Mapping[UUID, HeldTask]) -> PermitRequest | LeaseRequired | LeaseMismatch:
    """The request, for a worker with what the task that it holds says instead of what it says itself."""
    agent, priority, goal_id, task_id = request.agent_type, request.priority, request.goal_id, request.task_id
    principal = request.principal
    if request.worker_id is not None:
        task = tasks.get(request.worker_id)
        if task is None:
            return LeaseRequired()
        actual = (task.agent_type, task.priority, task.goal_id, task.task_id)
        for stated, value in zip((agent, priority, goal_id, task_id), actual, strict=True):
            if stated is not None and stated != value:
                return LeaseMismatch(f"the lease is of task {task.task_id}; name that one, or none")
        agent, priority, goal_id, task_id = actual
        principal = task.principal
    permit_request = PermitRequest(
        id=request.id,
        model=request.model,
        agent_type=agent or AgentType.GENERATION,
        priority=priority or Priority.MEDIUM,
        tokens=request.tokens,
        goal_id=goal_id,
        task_id=task_id,
        worker_id=request.worker_id,
        principal=principal,
    )
    if request.question is None:
        return permit_request
    return replace(permit_request, cache_key=permit_request.answer_key(request.question))


def _not_allowed(names: Sequence[str]) -> ModelNotAllowed:
    listed = f"those listed are {', '.join(names)}" if names else "none is listed"
    return ModelNotAllowed(
        f"{listed}; an operator lists one with `convener llm models add MODEL`, or in CONVENER_LLM_MODELS",
        facts={"models": list(names)},
    )


def _snapshot(
    state: GateState, models: Mapping[str, Model], virtual_times: VirtualTimes, weights: Mapping[AgentType, float]
) -> PermitSnapshot:
    load = state.load
    return PermitSnapshot(
        now=load.at,
        total_limit=load.total_limit,
        in_use=sum(count.permits for count in load.permit_counts.values()),
        models=models,
        permit_counts=load.permit_counts,
        held=state.held,
        # The model of an old reservation may have been removed.
        reservations=[place for place in state.reservations if place.request.model in models],
        virtual_times=virtual_times,
        weights=weights,
        budgets=state.budgets,
    )


def _repeated_result(permit: Permit, snapshot: PermitSnapshot) -> AcquiredPermit | PermitOver:
    if (error := permit_error(permit, permit.token, permit.request.worker_id)) is not None:
        return error
    model = snapshot.models.get(permit.request.model) or Model(name=permit.request.model)
    return AcquiredPermit(
        permit=permit,
        ttl_seconds=(permit.expires_at - snapshot.now).total_seconds(),
        limit=model.concurrency.allowed_calls(concurrency_ceiling(model, snapshot.total_limit)),
        in_use=snapshot.permit_counts.get(model.name, PermitCounts()).permits,
    )


async def _write(
    connection: AsyncConnection, snapshot: PermitSnapshot, plan: PermitPlan, policy: PermitPolicy
) -> dict[RequestId, AcquiredPermit]:
    """Store the permits, meters, virtual times and reservations of a plan; return the permits."""
    grants = {answer.request.id: answer for answer in plan.answers if isinstance(answer, Grant)}
    new = [
        NewPermit(
            id=time_ordered_uuid(),
            token=secrets.token_hex(16),
            request=grant.request,
            is_probe=grant.is_probe,
            reserved_usd=grant.reserved.usd,
            reserved_tokens=grant.reserved.tokens,
        )
        for grant in grants.values()
    ]
    new_permits = await permits.insert(connection, new, snapshot.now, policy.ttl_seconds) if new else {}
    for name in sorted({grant.request.model for grant in grants.values()}):
        if plan.meters[name]:
            tats = changed_tats(snapshot.models[name], plan.worker_tats.get(name, {}), snapshot.now)
            await model_store.write_meters(connection, name, plan.meters[name], tats)
    if plan.virtual_times != snapshot.virtual_times:
        await gate.write_virtual_times(connection, plan.virtual_times)
    denials = [answer for answer in plan.answers if isinstance(answer, Denial)]
    reservations = [place for denial in denials if (place := denial.reservation(snapshot.now, policy)) is not None]
    await gate.replace_reservations(connection, plan.resumed_ids, reservations)
    return {
        request_id: AcquiredPermit(
            permit=new_permits[request_id],
            ttl_seconds=policy.ttl_seconds,
            limit=grant.limit,
            in_use=grant.in_use,
            fallback_models=snapshot.models[grant.request.model].limits.fallback_models,
        )
        for request_id, grant in grants.items()
    }


async def _refusals(
    connection: AsyncConnection, plan: PermitPlan, snapshot: PermitSnapshot
) -> dict[RequestId, PermitRefused]:
    """The refusals of a plan, with the reason, the wait, fallback models and a cached answer."""
    denials = {answer.request.id: answer for answer in plan.answers if isinstance(answer, Denial)}
    if not denials:
        return {}
    keys = {request_id: key for request_id, denial in denials.items() if (key := denial.request.cache_key) is not None}
    cached_answers = await cache.read(connection, keys.values()) if keys else {}
    fallbacks = {
        name for denial in denials.values() for name in snapshot.models[denial.request.model].limits.fallback_models
    }
    models = {**await _read_models(connection, fallbacks - snapshot.models.keys()), **snapshot.models}
    return {
        request_id: _refusal(denial, models, snapshot, cached_answers.get(keys.get(request_id, b"")))
        for request_id, denial in denials.items()
    }


def _refusal(
    denial: Denial, models: Mapping[str, Model], snapshot: PermitSnapshot, cached_answer: CachedAnswer | None
) -> PermitRefused:
    now, owner, model = snapshot.now, denial.budget_owner, models[denial.request.model]
    budget = None if owner is None else snapshot.budgets[owner]
    seconds = max(0.001, denial.retry_after.total_seconds())
    chain = model.limits.fallback_models
    fallbacks = [name for name in chain if name in models and is_usable(models[name], denial.request.holder, now)]
    reason, waits_for = _REASONS[denial.reason], model.name
    wait_seconds = park_seconds(model, denial.reason, denial.retry_after, now)
    if owner is not None and budget is not None:
        reason = budget_reason(owner, budget)
        # The tasks of a goal without a budget are held with it.
        if budget.is_used_up and owner.scope is not BudgetScope.GOAL:
            waits_for, wait_seconds = owner.waits_for, budget_park_seconds(owner, budget, now)
    return PermitRefused(
        f"{reason}; ask again in {seconds:.3g} s",
        reason=denial.reason.value,
        retry_after_seconds=ceil(seconds),
        facts={
            "retry_after": seconds,
            "fallback_models": fallbacks,
            "park_seconds": wait_seconds,
            "waits_for": waits_for,
            "budget": None
            if owner is None or budget is None
            else {
                "scope": owner.scope.value,
                "name": owner.name,
                "until": budget.ends_at and budget.ends_at.isoformat(),
            },
            "state": service_state(model, now)[0].value,
            "cached": None
            if cached_answer is None
            else {"answer": cached_answer.answer, "stored_at": cached_answer.stored_at.isoformat(), "degraded": True},
        },
    )


async def _read_models(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Models that others wait for or may fall back to; not locked, as no permit of theirs is granted now."""
    return await model_store.read(connection, names) if names else {}
