"""Settling permits: what a call came to is counted, charged, and learnt from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.llm.errors import PermitNotFound, PermitOver
from app.llm.rules import circuit_breaker, concurrency
from app.llm.rules.circuit_breaker import BreakerPolicy
from app.llm.rules.concurrency import PressurePolicy
from app.llm.rules.models import Model, ceiling, cost, meters
from app.llm.rules.outcomes import Outcome, Report
from app.llm.rules.permits import Ending
from app.llm.rules.rate_limit import Dimension, Meter, corrected
from app.llm.store import cache, gate, models, permits, usage
from app.llm.store.cache import NewAnswer
from app.llm.store.gate import Measured
from app.llm.store.permits import Permit
from app.llm.store.usage import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a caller tells of the call that a permit was for; `digest` tells this body from another."""

    permit_id: UUID
    token: str
    report: Report
    digest: bytes
    answer: NewAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How the model stands after that. `late`: the permit was over before, and everything was counted all the same."""

    limit: int
    in_use: int
    cooldown_seconds: float
    late: bool


async def settle_all(
    connection: AsyncConnection, settlements: Sequence[Settlement], policy: PressurePolicy
) -> list[Settled | PermitNotFound | PermitOver]:
    """Settle one permit after the other, in one transaction. A settlement that was made before is answered again."""
    names = await permits.models_of(connection, [settlement.permit_id for settlement in settlements])
    known = await models.lock(connection, names.values()) if names else {}
    held = await permits.lock(connection, names)
    round_ = _Round(known, await gate.measure(connection), policy)
    answers = [round_.settle(settlement, held.get(settlement.permit_id)) for settlement in settlements]
    await round_.write(connection)
    return answers


def over(permit: Permit, token: str) -> PermitOver | None:
    """Why nothing can be done with this permit any more; None: it lives."""
    if (error := wrong_token(permit, token)) is not None or permit.ending is None:
        return error
    return PermitOver(f"the permit is over: {permit.ending.value}", reason=permit.ending.value)


def wrong_token(permit: Permit, token: str) -> PermitOver | None:
    """Whoever has another token has nothing to do with this permit."""
    return None if permit.token == token else PermitOver("the permit has another token", reason="superseded")


def returned(model: Model, tokens: int, at: datetime) -> dict[Dimension, Meter]:
    """The meters of a model after a call that it was charged for was not made."""
    refunds = {Dimension.REQUESTS: -1, Dimension.TOKENS: -tokens}
    return {dimension: corrected(meter, refunds[dimension]) for dimension, meter in meters(model, at).items()}


class _Round:
    """Settlements of one transaction, with their models and permits locked."""

    def __init__(self, models: dict[str, Model], measured: Measured, policy: PressurePolicy) -> None:
        self._models = models
        self._at = measured.at
        self._most = measured.most
        self._policy = policy
        self._in_use = defaultdict(int, {name: usage.permits for name, usage in measured.usage.items()})
        self._meters: dict[str, dict[Dimension, Meter]] = {}
        self._endings: list[tuple[UUID, Ending, bytes | None]] = []
        self._calls: list[Call] = []
        self._answers: dict[bytes, tuple[str, NewAnswer]] = {}

    def settle(self, settlement: Settlement, permit: Permit | None) -> Settled | PermitNotFound | PermitOver:
        """Take one settlement in."""
        if permit is None:
            return PermitNotFound()
        if (error := wrong_token(permit, settlement.token)) is not None:
            return error
        late = permit.ending in (Ending.EXPIRED, Ending.LOST)
        if permit.digest == settlement.digest:
            return self._answer(permit, late=late)
        if permit.digest is not None:
            return PermitOver("the permit was settled with another body", reason=Ending.SETTLED.value)
        if not late and (error := over(permit, settlement.token)) is not None:
            return error
        self._learn(permit, settlement.report, late=late)
        self._count(permit, settlement.report)
        ending = permit.ending if late and permit.ending else Ending.SETTLED
        self._endings.append((permit.id, ending, settlement.digest))
        if settlement.answer is not None and settlement.report.outcome is Outcome.SUCCESS:
            self._answers[settlement.answer.key] = (permit.ask.model, settlement.answer)
        self._in_use[permit.ask.model] -= not late
        return self._answer(permit, late=late)

    async def write(self, connection: AsyncConnection) -> None:
        """Write down what has been taken in."""
        if not self._endings:
            return
        await permits.end(connection, self._at, self._endings)
        for name, kinds in sorted(self._meters.items()):
            tats = {dimension: meter.tat for dimension, meter in kinds.items()}
            await models.learn(connection, replace(self._models[name], tats=tats))
        await usage.add(connection, self._calls, self._at)
        for _, (model, answer) in sorted(self._answers.items(), key=itemgetter(0)):
            await cache.write(connection, model, answer)

    def _answer(self, permit: Permit, *, late: bool) -> Settled:
        model = self._models[permit.ask.model]
        return Settled(
            limit=model.pressure.allowed(ceiling(model, self._most)),
            in_use=self._in_use[model.name],
            cooldown_seconds=model.pressure.cooldown_seconds(self._at),
            late=late,
        )

    def _learn(self, permit: Permit, report: Report, *, late: bool) -> None:
        model = self._models[permit.ask.model]
        self._models[model.name] = replace(
            model,
            pressure=concurrency.after(
                model.pressure,
                report,
                in_use=self._in_use[model.name],
                ceiling=ceiling(model, self._most),
                now=self._at,
                policy=self._policy,
            ),
            # Of a probe that is over somebody else has taken the place.
            breaker=circuit_breaker.after(
                model.breaker,
                report.outcome,
                is_probe=permit.is_probe and not late,
                now=self._at,
                policy=BreakerPolicy(),
            ),
        )
        kinds = self._meters.setdefault(model.name, meters(model, self._at))
        if report.tokens is not None and Dimension.TOKENS in kinds:
            kinds[Dimension.TOKENS] = corrected(kinds[Dimension.TOKENS], report.tokens - permit.ask.tokens)

    def _count(self, permit: Permit, report: Report) -> None:
        prompt, completion = report.prompt_tokens, report.completion_tokens
        known_cost = report.cost_usd
        limits = self._models[permit.ask.model].limits
        self._calls.append(
            Call(
                model=permit.ask.model,
                agent_type=permit.ask.agent_type,
                goal_id=permit.ask.goal_id,
                of_task=permit.ask.task_id is not None,
                outcome=report.outcome,
                prompt_tokens=prompt or 0,
                completion_tokens=completion or 0,
                cost_usd=cost(limits, prompt, completion) if known_cost is None else known_cost,
                held_seconds=((permit.ended_at or self._at) - permit.granted_at).total_seconds(),
                latency_seconds=report.latency_seconds,
            )
        )
