"""Granting permits, or refusing them: one turn at the gate for all who ask in the same moment."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.uuids import time_ordered_uuid
from app.kernel.agents import AgentType
from app.llm.errors import PermitOver, PermitRefused
from app.llm.rules.concurrency import PressurePolicy
from app.llm.rules.grant import PermitPlan, decide
from app.llm.rules.models import Model, ceiling, usable
from app.llm.rules.permits import (
    AskId,
    Denied,
    Granted,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    Turns,
    Usage,
)
from app.llm.service.settle import over
from app.llm.store import cache, gate, permits
from app.llm.store import models as model_store
from app.llm.store.cache import CachedAnswer
from app.llm.store.gate import Survey
from app.llm.store.permits import NewPermit, Permit

_WHY = {
    Refused.CONCURRENCY: "as many calls as are allowed at once are under way, or kept for those who came earlier",
    Refused.REQUESTS: "the model has had all the requests that its rate allows",
    Refused.TOKENS: "the model has had all the tokens that its rate allows",
    Refused.COOLDOWN: "the service of the model has asked to be left alone for a while",
    Refused.BREAKER_OPEN: "the service of the model has failed again and again, and is left alone or being tried",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Somebody wants a permit, or else the cached answer under this key."""

    ask: PermitRequest
    cache_key: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """A permit, for how long it is good from now on, and how many calls of its model there may be and are."""

    permit: Permit
    ttl_seconds: float
    limit: int
    in_use: int


Answer = Acquired | PermitRefused | PermitOver


async def grant_all(
    connection: AsyncConnection,
    requests: Sequence[Request],
    weights: Mapping[AgentType, float],
    policy: PermitPolicy,
    pressure: PressurePolicy,
) -> list[Answer]:
    """An answer to each request, in their order. A request that was made before gets the permit that it got then."""
    turns = await gate.close(connection)
    models = await model_store.lock(connection, {request.ask.model for request in requests})
    asked = [request.ask.id for request in requests]
    survey = await gate.survey(connection, asked)
    known = await permits.known(connection, asked) if survey.is_repeated else {}
    named = {claim.ask.model for claim in survey.claims} | {permit.ask.model for permit in known.values()}
    models |= await _others(connection, named - models.keys())
    snapshot = _snapshot(survey, models, turns, weights)
    plan = decide(snapshot, [request.ask for request in requests if request.ask.id not in known], policy, pressure)
    answers: dict[AskId, Answer] = {ask_id: _repeated(permit, snapshot) for ask_id, permit in known.items()}
    answers |= await _write(connection, snapshot, plan, policy)
    answers |= await _refusals(connection, requests, plan, snapshot)
    return [answers[ask_id] for ask_id in asked]


def _snapshot(
    survey: Survey, models: Mapping[str, Model], turns: Turns, weights: Mapping[AgentType, float]
) -> PermitSnapshot:
    measured = survey.measured
    return PermitSnapshot(
        now=measured.at,
        most=measured.most,
        in_use=sum(usage.permits for usage in measured.usage.values()),
        models=models,
        usage=measured.usage,
        claims=[claim for claim in survey.claims if claim.ask.model in models],
        turns=turns,
        weights=weights,
    )


def _repeated(permit: Permit, snapshot: PermitSnapshot) -> Acquired | PermitOver:
    if (error := over(permit, permit.token)) is not None:
        return error
    model = snapshot.models[permit.ask.model]
    in_use = snapshot.usage.get(model.name, Usage()).permits
    return Acquired(
        permit=permit,
        ttl_seconds=(permit.expires_at - snapshot.now).total_seconds(),
        limit=model.pressure.allowed(ceiling(model, snapshot.most)),
        in_use=in_use,
    )


async def _write(
    connection: AsyncConnection, snapshot: PermitSnapshot, plan: PermitPlan, policy: PermitPolicy
) -> dict[AskId, Acquired]:
    """Write down what was decided; returns the permits."""
    granted = {answer.ask.id: answer for answer in plan.answers if isinstance(answer, Granted)}
    new = [
        NewPermit(id=time_ordered_uuid(), token=secrets.token_hex(16), ask=answer.ask, is_probe=answer.is_probe)
        for answer in granted.values()
    ]
    made = await permits.insert(connection, new, snapshot.now, policy.ttl) if new else {}
    for name in sorted({answer.ask.model for answer in granted.values()}):
        if plan.meters[name]:
            await model_store.charge(connection, name, plan.meters[name])
    if plan.turns != snapshot.turns:
        await gate.turn(connection, plan.turns)
    denied = [answer for answer in plan.answers if isinstance(answer, Denied)]
    claims = [claim for answer in denied if (claim := answer.claim(snapshot.now, policy)) is not None]
    await gate.replace_claims(connection, plan.taken_up, claims)
    return {
        ask_id: Acquired(permit=made[ask_id], ttl_seconds=policy.ttl, limit=answer.limit, in_use=answer.in_use)
        for ask_id, answer in granted.items()
    }


async def _refusals(
    connection: AsyncConnection, requests: Sequence[Request], plan: PermitPlan, snapshot: PermitSnapshot
) -> dict[AskId, PermitRefused]:
    """What those are told who get no permit: why, until when, and what they might use instead."""
    denied = {answer.ask.id: answer for answer in plan.answers if isinstance(answer, Denied)}
    if not denied:
        return {}
    keys = {r.ask.id: r.cache_key for r in requests if r.ask.id in denied and r.cache_key is not None}
    cached = await cache.read(connection, keys.values()) if keys else {}
    chains = {name for answer in denied.values() for name in snapshot.models[answer.ask.model].limits.fallback_models}
    others = {**await _others(connection, chains - snapshot.models.keys()), **snapshot.models}
    return {
        ask_id: _refusal(answer, others, snapshot.now, cached.get(keys.get(ask_id, b"")))
        for ask_id, answer in denied.items()
    }


def _refusal(denied: Denied, models: Mapping[str, Model], now: datetime, cached: CachedAnswer | None) -> PermitRefused:
    seconds = max(0.001, denied.retry_after.total_seconds())
    chain = models[denied.ask.model].limits.fallback_models
    # A model that nobody has asked for yet is as good as any.
    fallbacks = [name for name in chain if name not in models or usable(models[name], now)]
    return PermitRefused(
        f"{_WHY[denied.reason]}; ask again in {seconds:.3g} s",
        reason=denied.reason.value,
        retry_after_seconds=ceil(seconds),
        facts={
            "retry_after": seconds,
            "fallback_models": fallbacks,
            "cached": None
            if cached is None
            else {"answer": cached.answer, "stored_at": cached.stored_at.isoformat(), "degraded": True},
        },
    )


async def _others(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Models that nobody asks for just now, but that others wait for, or asked for before."""
    return await model_store.read(connection, names) if names else {}
