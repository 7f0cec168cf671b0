"""Settling permits: a finished call is counted, charged by its real tokens, and changes the state of its model."""

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
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.models import Model, call_cost, concurrency_ceiling, meters
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.permits import Ending
from app.llm.rules.rate_limit import Dimension, Meter, correct
from app.llm.store import cache, gate, models, permits, usage
from app.llm.store.cache import NewAnswer
from app.llm.store.gate import PermitLoad
from app.llm.store.permits import Permit
from app.llm.store.usage import FinishedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The report on the call of a permit, and an answer to cache; `digest` is the SHA-256 of the body."""

    permit_id: UUID
    token: str
    report: CallReport
    digest: bytes
    answer: NewAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementResult:
    """The model after a settlement. `late`: the permit was over before; everything was counted all the same."""

    limit: int
    in_use: int
    cooldown_seconds: float
    late: bool


async def settle_all(
    connection: AsyncConnection, settlements: Sequence[Settlement], policy: ConcurrencyPolicy
) -> list[SettlementResult | PermitNotFound | PermitOver]:
    """Settle permits one after another. A repeated settlement is answered again and changes nothing."""
    names = await permits.model_names(connection, [settlement.permit_id for settlement in settlements])
    # Without the gate, so that settling does not wait for granting. A decision under way may count a permit that ends
    # here as live, which errs on the safe side.
    locked_models = await models.lock(connection, names.values()) if names else {}
    locked_permits = await permits.lock(connection, names)
    batch = _SettlementBatch(locked_models, await gate.read_load(connection), policy)
    results = [batch.settle(settlement, locked_permits.get(settlement.permit_id)) for settlement in settlements]
    await batch.write(connection)
    return results


def permit_error(permit: Permit, token: str) -> PermitOver | None:
    """The error of a call about a permit that is over, or that has another token; None: it is live."""
    if (error := token_error(permit, token)) is not None or permit.ending is None:
        return error
    return PermitOver(f"the permit is over: {permit.ending.value}", reason=permit.ending.value)


def token_error(permit: Permit, token: str) -> PermitOver | None:
    """The error of a call that has another token than the permit."""
    return None if permit.token == token else PermitOver("the permit has another token", reason="superseded")


def refund(model: Model, tokens: int, at: datetime) -> dict[Dimension, Meter]:
    """The meters of a model after a call that was charged to them was not made."""
    refunds = {Dimension.REQUESTS: -1, Dimension.TOKENS: -tokens}
    return {dimension: correct(meter, refunds[dimension]) for dimension, meter in meters(model, at).items()}


class _SettlementBatch:
    """Settlements of one transaction, with their models and permits locked."""

    def __init__(self, models: dict[str, Model], load: PermitLoad, policy: ConcurrencyPolicy) -> None:
        self._models = models
        self._at = load.at
        self._total_limit = load.total_limit
        self._policy = policy
        self._in_use = defaultdict(int, {name: count.permits for name, count in load.permit_counts.items()})
        self._meters: dict[str, dict[Dimension, Meter]] = {}
        self._endings: list[tuple[UUID, Ending, bytes | None]] = []
        self._calls: list[FinishedCall] = []
        self._answers: dict[bytes, tuple[str, NewAnswer]] = {}

    def settle(self, settlement: Settlement, permit: Permit | None) -> SettlementResult | PermitNotFound | PermitOver:
        """Settle one permit, in memory."""
        if permit is None:
            return PermitNotFound()
        if (error := token_error(permit, settlement.token)) is not None:
            return error
        # The call was made even where its permit ended first, and the service has charged for it: so it counts, late.
        late = permit.ending in (Ending.EXPIRED, Ending.LOST)
        if permit.digest == settlement.digest:
            return self._result(permit, late=late)
        if permit.digest is not None:
            return PermitOver("the permit was settled with another body", reason=Ending.SETTLED.value)
        if not late and (error := permit_error(permit, settlement.token)) is not None:
            return error
        self._update_model(permit, settlement.report, late=late)
        self._add_call(permit, settlement.report)
        ending = permit.ending if late and permit.ending else Ending.SETTLED
        self._endings.append((permit.id, ending, settlement.digest))
        if settlement.answer is not None and settlement.report.outcome is Outcome.SUCCESS:
            # Of two answers under one key the later stays; `write` takes their locks in the order of keys.
            self._answers[settlement.answer.key] = (permit.request.model, settlement.answer)
        # A late one was not counted as live any more.
        self._in_use[permit.request.model] -= not late
        return self._result(permit, late=late)

    async def write(self, connection: AsyncConnection) -> None:
        """Store all settlements, in the lock order of store/permits."""
        if not self._endings:
            return
        await permits.end(connection, self._at, self._endings)
        for name, by_dimension in sorted(self._meters.items()):
            tats = {dimension: meter.tat for dimension, meter in by_dimension.items()}
            await models.write_state(connection, replace(self._models[name], tats=tats))
        await usage.add(connection, self._calls, self._at)
        for _, (model, answer) in sorted(self._answers.items(), key=itemgetter(0)):
            await cache.write(connection, model, answer)

    def _result(self, permit: Permit, *, late: bool) -> SettlementResult:
        model = self._models[permit.request.model]
        return SettlementResult(
            limit=model.concurrency.allowed_calls(concurrency_ceiling(model, self._total_limit)),
            in_use=self._in_use[model.name],
            cooldown_seconds=model.concurrency.cooldown_seconds(self._at),
            late=late,
        )

    def _update_model(self, permit: Permit, report: CallReport, *, late: bool) -> None:
        model = self._models[permit.request.model]
        self._models[model.name] = replace(
            model,
            concurrency=concurrency.record_call(
                model.concurrency,
                report,
                in_use=self._in_use[model.name],
                ceiling=concurrency_ceiling(model, self._total_limit),
                now=self._at,
                policy=self._policy,
            ),
            # Once its permit is over, another call is the probe.
            breaker=circuit_breaker.record_call(
                model.breaker,
                report.outcome,
                is_probe=permit.is_probe and not late,
                now=self._at,
                policy=BreakerPolicy(),
            ),
        )
        by_dimension = self._meters.setdefault(model.name, meters(model, self._at))
        if report.tokens is not None and Dimension.TOKENS in by_dimension:
            by_dimension[Dimension.TOKENS] = correct(
                by_dimension[Dimension.TOKENS], report.tokens - permit.request.tokens
            )

    def _add_call(self, permit: Permit, report: CallReport) -> None:
        prompt, completion = report.prompt_tokens, report.completion_tokens
        limits = self._models[permit.request.model].limits
        self._calls.append(
            FinishedCall(
                model=permit.request.model,
                agent_type=permit.request.agent_type,
                goal_id=permit.request.goal_id,
                of_task=permit.request.task_id is not None,
                outcome=report.outcome,
                prompt_tokens=prompt or 0,
                completion_tokens=completion or 0,
                cost_usd=call_cost(limits, prompt, completion) if report.cost_usd is None else report.cost_usd,
                held_seconds=((permit.ended_at or self._at) - permit.granted_at).total_seconds(),
                latency_seconds=report.latency_seconds,
            )
        )
