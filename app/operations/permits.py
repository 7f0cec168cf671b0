"""What happens to permits of language-model calls: acquired, renewed, settled, released, expired, lost.

A turn at the gate serves all who ask in the same moment, and so does a settlement: their cost is shared, and sixty
callers do not queue up for one lock.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.errors import PermitNotFound, PermitOver, PermitRefused
from app.domain.fairness import FairQueue
from app.domain.llm_models import Model, ceiling, usable
from app.domain.permit_queue import PermitPlan, decide
from app.domain.permits import Ask, AskId, Denied, Ending, Granted, PermitPolicy, PermitSnapshot, Refused, Usage
from app.domain.pressure import PressurePolicy
from app.operations.coalescing import Coalescer
from app.operations.identifiers import time_ordered_uuid
from app.operations.settling import Settled, Settlement, over, returned, settle_all
from app.store import llm_cache, llm_models, permit_gate, permits
from app.store.database import Database
from app.store.llm_cache import CachedAnswer
from app.store.permit_gate import Measured
from app.store.permits import NewPermit, Permit

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

    ask: Ask
    cache_key: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquired:
    """A permit, and how many calls of its model there may be and are."""

    permit: Permit
    limit: int
    in_use: int


class PermitDesk:
    """Where permits are acquired and settled, many at a time."""

    def __init__(
        self,
        database: Database,
        fairness: FairQueue,
        policy: PermitPolicy | None = None,
        pressure: PressurePolicy | None = None,
    ) -> None:
        self.policy = policy or PermitPolicy()
        self._pressure = pressure or PressurePolicy()
        self._database = database
        self._fairness = fairness
        self._acquiring: Coalescer[Request, Acquired | PermitRefused | PermitOver] = Coalescer(
            self._acquire, lambda request: request.ask.id
        )
        self._settling: Coalescer[Settlement, Settled | PermitNotFound | PermitOver] = Coalescer(
            self._settle, lambda settlement: settlement.permit_id
        )

    async def acquire(self, request: Request) -> Acquired:
        """A permit, at once. Raises PermitRefused, and PermitOver for a request whose permit is over."""
        answer = await self._acquiring(request)
        if not isinstance(answer, Acquired):
            raise answer
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        """End a permit with what the call came to. Raises PermitNotFound, PermitOver."""
        answer = await self._settling(settlement)
        if not isinstance(answer, Settled):
            raise answer
        return answer

    async def stop(self) -> None:
        """Finish what has arrived."""
        await self._acquiring.close()
        await self._settling.close()

    async def _acquire(self, requests: Sequence[Request]) -> list[Acquired | PermitRefused | PermitOver]:
        # The weights by which leases are shared.
        weights = self._fairness.weights
        async with self._database.transaction() as connection:
            return await acquire_all(connection, requests, weights, self.policy, self._pressure)

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled | PermitNotFound | PermitOver]:
        async with self._database.transaction() as connection:
            return await settle_all(connection, settlements, self._pressure)


async def acquire_all(
    connection: AsyncConnection,
    requests: Sequence[Request],
    weights: Mapping[AgentType, float],
    policy: PermitPolicy,
    pressure: PressurePolicy,
) -> list[Acquired | PermitRefused | PermitOver]:
    """An answer to each request, in their order. A request that was made before gets the permit that it got then."""
    turns = await permit_gate.close(connection)
    models = await llm_models.lock(connection, {request.ask.model for request in requests})
    asked = [request.ask.id for request in requests]
    survey = await permit_gate.survey(connection, asked)
    known = await permits.known(connection, asked) if survey.is_repeated else {}
    named = {claim.ask.model for claim in survey.claims} | {permit.ask.model for permit in known.values()}
    models |= await _others(connection, named - models.keys())
    measured = survey.measured
    snapshot = PermitSnapshot(
        now=measured.at,
        most=measured.most,
        in_use=sum(usage.permits for usage in measured.usage.values()),
        models=models,
        usage=measured.usage,
        claims=[claim for claim in survey.claims if claim.ask.model in models],
        turns=turns,
        weights=weights,
    )
    plan = decide(snapshot, [request.ask for request in requests if request.ask.id not in known], policy, pressure)
    made = await _write(connection, snapshot, plan, policy)
    refused = await _refusals(connection, requests, plan, snapshot)
    granted = {answer.ask.id: answer for answer in plan.answers if isinstance(answer, Granted)}
    return [
        _repeated(known[ask_id], models, measured)
        if (ask_id := request.ask.id) in known
        else Acquired(permit=made[ask_id], limit=granted[ask_id].limit, in_use=granted[ask_id].in_use)
        if ask_id in granted
        else refused[ask_id]
        for request in requests
    ]


async def renew(connection: AsyncConnection, permit_id: UUID, token: str, policy: PermitPolicy) -> datetime:
    """Let a permit live on; returns until when. Raises PermitNotFound, PermitOver."""
    expires_at = await permits.renew(connection, permit_id, token, policy.ttl)
    if expires_at is not None:
        return expires_at
    permit = await permits.read(connection, permit_id)
    if permit is None:
        raise PermitNotFound
    # A live row that was not renewed has expired, and nobody has ended it yet.
    raise over(permit, token) or PermitOver(reason=Ending.EXPIRED)


async def release(connection: AsyncConnection, permit_id: UUID, token: str) -> None:
    """Give back a permit that was not used, with what it was charged. Safe to repeat.

    Raises PermitNotFound, PermitOver.
    """
    names = await permits.models_of(connection, [permit_id])
    models = await llm_models.lock(connection, names.values()) if names else {}
    permit = (await permits.lock(connection, names)).get(permit_id)
    if permit is None:
        raise PermitNotFound
    if permit.token == token and permit.ending is Ending.RELEASED:
        return
    if (error := over(permit, token)) is not None:
        raise error
    at = (await permit_gate.measure(connection)).at
    await permits.end(connection, at, [(permit.id, Ending.RELEASED, None)])
    await llm_models.charge(connection, permit.ask.model, returned(models[permit.ask.model], permit.ask.tokens, at))


async def sweep(connection: AsyncConnection) -> dict[str, Any]:
    """End what has expired, and forget what is long over."""
    return {
        "models": await llm_models.prune(connection),
        "expired": await permits.expire(connection),
        "permits": await permits.prune(connection),
        "claims": await permit_gate.prune(connection),
        "answers": await llm_cache.prune(connection),
    }


async def _others(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Models that nobody asks for just now, but that others wait for, or asked for before."""
    return await llm_models.read(connection, names) if names else {}


async def _write(
    connection: AsyncConnection, snapshot: PermitSnapshot, plan: PermitPlan, policy: PermitPolicy
) -> dict[AskId, Permit]:
    """Write down what was decided; returns the permits."""
    granted = [answer for answer in plan.answers if isinstance(answer, Granted)]
    denied = [answer for answer in plan.answers if isinstance(answer, Denied)]
    new = [
        NewPermit(id=time_ordered_uuid(), token=secrets.token_hex(16), ask=answer.ask, is_probe=answer.is_probe)
        for answer in granted
    ]
    made = await permits.insert(connection, new, snapshot.now, policy.ttl) if new else {}
    for name in sorted({answer.ask.model for answer in granted}):
        if plan.meters[name]:
            await llm_models.charge(connection, name, plan.meters[name])
    if plan.turns != snapshot.turns:
        await permit_gate.turn(connection, plan.turns)
    claims = [claim for answer in denied if (claim := answer.claim(snapshot.now, policy)) is not None]
    await permit_gate.replace_claims(connection, plan.taken_up, claims)
    return made


async def _refusals(
    connection: AsyncConnection, requests: Sequence[Request], plan: PermitPlan, snapshot: PermitSnapshot
) -> dict[AskId, PermitRefused]:
    """What those are told who get no permit: why, until when, and what they might use instead."""
    denied = {answer.ask.id: answer for answer in plan.answers if isinstance(answer, Denied)}
    if not denied:
        return {}
    keys = {r.ask.id: r.cache_key for r in requests if r.ask.id in denied and r.cache_key is not None}
    cached = await llm_cache.read(connection, keys.values()) if keys else {}
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


def _repeated(permit: Permit, models: Mapping[str, Model], measured: Measured) -> Acquired | PermitOver:
    if (error := over(permit, permit.token)) is not None:
        return error
    model = models[permit.ask.model]
    in_use = measured.usage.get(model.name, Usage()).permits
    return Acquired(permit=permit, limit=model.pressure.allowed(ceiling(model, measured.most)), in_use=in_use)
