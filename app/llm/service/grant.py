"""Granting permits, or refusing them, to all who ask in the same moment."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.db.uuids import time_ordered_uuid
from app.kernel.agents import AgentType
from app.llm.errors import PermitOver, PermitRefused
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.grant import PermitPlan, plan_permits
from app.llm.rules.models import Model, concurrency_ceiling, is_usable
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
from app.llm.service.settle import permit_error
from app.llm.store import cache, gate, permits
from app.llm.store import models as model_store
from app.llm.store.cache import CachedAnswer
from app.llm.store.gate import GateState
from app.llm.store.permits import NewPermit, Permit

_REASONS = {
    Refused.CONCURRENCY: "as many calls as are allowed at once are under way, or kept for those who came earlier",
    Refused.REQUESTS: "the model has had all the requests that its rate allows",
    Refused.TOKENS: "the model has had all the tokens that its rate allows",
    Refused.COOLDOWN: "the service of the model has asked to be left alone for a while",
    Refused.BREAKER_OPEN: "the service of the model has failed again and again, and is left alone or being tried",
}

# A new limit holds from a turn of the gate on: whoever grants by the old one is waited for.
config.lock_before_change(gate.lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireRequest:
    """A request for a permit, and the key of a cached answer that is returned with a refusal."""

    permit_request: PermitRequest
    cache_key: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquiredPermit:
    """A permit, its seconds to live, and the calls of its model that are allowed and under way."""

    permit: Permit
    ttl_seconds: float
    limit: int
    in_use: int


AcquireResult = AcquiredPermit | PermitRefused | PermitOver


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
    models = await model_store.lock(connection, {request.permit_request.model for request in requests})
    request_ids = [request.permit_request.id for request in requests]
    state = await gate.read_state(connection, request_ids)
    granted_before = await permits.read_by_request(connection, request_ids) if state.is_repeated else {}
    other_names = {reservation.request.model for reservation in state.reservations}
    other_names |= {permit.request.model for permit in granted_before.values()}
    models |= await _read_models(connection, other_names - models.keys())
    snapshot = _snapshot(state, models, virtual_times, weights)
    new_requests = [request.permit_request for request in requests if request.permit_request.id not in granted_before]
    plan = plan_permits(snapshot, new_requests, policy, concurrency_policy)
    results: dict[RequestId, AcquireResult] = {
        request_id: _repeated_result(permit, snapshot) for request_id, permit in granted_before.items()
    }
    results |= await _write(connection, snapshot, plan, policy)
    results |= await _refusals(connection, requests, plan, snapshot)
    return [results[request_id] for request_id in request_ids]


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
        # The model of an old reservation may have been pruned.
        reservations=[place for place in state.reservations if place.request.model in models],
        virtual_times=virtual_times,
        weights=weights,
    )


def _repeated_result(permit: Permit, snapshot: PermitSnapshot) -> AcquiredPermit | PermitOver:
    if (error := permit_error(permit, permit.token)) is not None:
        return error
    model = snapshot.models[permit.request.model]
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
        NewPermit(id=time_ordered_uuid(), token=secrets.token_hex(16), request=grant.request, is_probe=grant.is_probe)
        for grant in grants.values()
    ]
    new_permits = await permits.insert(connection, new, snapshot.now, policy.ttl_seconds) if new else {}
    for name in sorted({grant.request.model for grant in grants.values()}):
        if plan.meters[name]:
            await model_store.write_meters(connection, name, plan.meters[name])
    if plan.virtual_times != snapshot.virtual_times:
        await gate.write_virtual_times(connection, plan.virtual_times)
    denials = [answer for answer in plan.answers if isinstance(answer, Denial)]
    reservations = [place for denial in denials if (place := denial.reservation(snapshot.now, policy)) is not None]
    await gate.replace_reservations(connection, plan.resumed_ids, reservations)
    return {
        request_id: AcquiredPermit(
            permit=new_permits[request_id], ttl_seconds=policy.ttl_seconds, limit=grant.limit, in_use=grant.in_use
        )
        for request_id, grant in grants.items()
    }


async def _refusals(
    connection: AsyncConnection, requests: Sequence[AcquireRequest], plan: PermitPlan, snapshot: PermitSnapshot
) -> dict[RequestId, PermitRefused]:
    """The refusals of a plan, with the reason, the wait, fallback models and a cached answer."""
    denials = {answer.request.id: answer for answer in plan.answers if isinstance(answer, Denial)}
    if not denials:
        return {}
    keys = {
        r.permit_request.id: r.cache_key for r in requests if r.permit_request.id in denials and r.cache_key is not None
    }
    cached_answers = await cache.read(connection, keys.values()) if keys else {}
    fallbacks = {
        name for denial in denials.values() for name in snapshot.models[denial.request.model].limits.fallback_models
    }
    models = {**await _read_models(connection, fallbacks - snapshot.models.keys()), **snapshot.models}
    return {
        request_id: _refusal(denial, models, snapshot.now, cached_answers.get(keys.get(request_id, b"")))
        for request_id, denial in denials.items()
    }


def _refusal(
    denial: Denial, models: Mapping[str, Model], now: datetime, cached_answer: CachedAnswer | None
) -> PermitRefused:
    seconds = max(0.001, denial.retry_after.total_seconds())
    chain = models[denial.request.model].limits.fallback_models
    # A model that nobody has asked for yet is as good as any.
    fallbacks = [name for name in chain if name not in models or is_usable(models[name], now)]
    return PermitRefused(
        f"{_REASONS[denial.reason]}; ask again in {seconds:.3g} s",
        reason=denial.reason.value,
        retry_after_seconds=ceil(seconds),
        facts={
            "retry_after": seconds,
            "fallback_models": fallbacks,
            "cached": None
            if cached_answer is None
            else {"answer": cached_answer.answer, "stored_at": cached_answer.stored_at.isoformat(), "degraded": True},
        },
    )


async def _read_models(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Models that others wait for or may fall back to; not locked, as no permit of theirs is granted now."""
    return await model_store.read(connection, names) if names else {}
