"""Settling permits: a finished call is counted, charged by its real tokens, and changes the state of its model."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.events import SystemEvent
from app.kernel.namespaces import split_name
from app.llm.errors import CacheKeyMismatch, PermitNotFound, PermitOver
from app.llm.rules import reports
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.conditions import service_state
from app.llm.rules.key_reports import earliest_report
from app.llm.rules.models import Model, ModelLimits, call_cost, changed_tats, concurrency_ceiling, meters
from app.llm.rules.outcomes import CallReport, Outcome
from app.llm.rules.permits import Ending, PermitRequest
from app.llm.rules.rate_limit import Dimension, Meter, charge, correct, wait_time, worker_key, worker_meter
from app.llm.rules.reports import FinishedTurn, ReportPolicy
from app.llm.rules.spending import MAX_CALL_TOKENS, estimated_amount, max_call_usd
from app.llm.store import cache, gate, models, permits, usage
from app.llm.store.cache import NewAnswer
from app.llm.store.gate import PermitLoad
from app.llm.store.permits import Permit
from app.llm.store.usage import FinishedCall
from app.queue.store import events


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The report on the call of a permit, and an answer to cache; `digest` is the SHA-256 of the body.

    `worker_id` is the worker whose credential was shown; None for any other key. The answer's key is its question's.
    """

    permit_id: UUID
    token: str
    worker_id: UUID | None = None
    namespace: str | None = None
    report: CallReport
    digest: bytes
    answer: NewAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementResult:
    """The model as the caller finds it now. `late`: the permit was over before; everything was counted all the same."""

    limit: int
    in_use: int
    cooldown_seconds: float
    late: bool


SettleOutcome = SettlementResult | PermitNotFound | PermitOver | CacheKeyMismatch


async def settle_all(
    connection: AsyncConnection, settlements: Sequence[Settlement], policy: ConcurrencyPolicy
) -> list[SettleOutcome]:
    """Settle permits one after another. A repeated settlement is answered again and changes nothing."""
    names = await permits.model_names(connection, [settlement.permit_id for settlement in settlements])
    # Without the gate, so that settling does not wait for granting. A decision under way may count a permit that ends
    # here as live, which errs on the safe side.
    locked_models = {name: Model(name=name) for name in names.values()}
    if names:
        locked_models |= await models.lock(connection, names.values())
    locked_permits = await permits.lock(connection, names)
    batch = _SettlementBatch(locked_models, await gate.read_load(connection), policy)
    results = [batch.settle(settlement, locked_permits.get(settlement.permit_id)) for settlement in settlements]
    await batch.write(connection)
    return results


def permit_error(permit: Permit, token: str, worker_id: UUID | None) -> PermitOver | None:
    """The error of a call about a permit that is over, or not the caller's; None: it is live."""
    if (error := token_error(permit, token, worker_id)) is not None or permit.ending is None:
        return error
    return PermitOver(f"the permit is over: {permit.ending.value}", reason=permit.ending.value)


def token_error(permit: Permit, token: str, worker_id: UUID | None) -> PermitOver | None:
    """The error of a call with another token than the permit, or of another worker than the one that holds it."""
    if permit.token != token:
        return PermitOver("the permit has another token", reason="superseded")
    if permit.request.worker_id not in (None, worker_id):
        return PermitOver("the permit is that of a worker; show that worker's key", reason="superseded")
    return None


def refund(model: Model, request: PermitRequest, at: datetime) -> tuple[dict[Dimension, Meter], Mapping[str, datetime]]:
    """The meters of a model, and the points in time of workers' own, after a call that was charged was not made."""
    units, by_dimension = {Dimension.REQUESTS: 1, Dimension.TOKENS: request.tokens}, meters(model, at)
    refunded = {
        dimension: correct(meter, -meter.chargeable(units[dimension])) for dimension, meter in by_dimension.items()
    }
    tats: dict[str, datetime] = {}
    for dimension, meter in by_dimension.items():
        name = worker_key(dimension, request.holder)
        # Nobody but a worker has any, and one whose time has passed is paid for.
        if (tat := model.worker_tats.get(name)) is not None:
            own = worker_meter(meter, tat, at)
            tats[name] = correct(own, -own.chargeable(units[dimension])).tat
    return refunded, changed_tats(model, tats, at)


def _plausible(report: CallReport, permit: Permit, limits: ModelLimits, at: datetime) -> CallReport:
    """The report within what is possible; a worker's call costs what the prices say."""
    # No call took longer than its permit was held, has more tokens than any call can have, or costs more: the limits
    # and budgets that a report moves are those of others too, whoever reports.
    prompt, completion, cost = report.prompt_tokens, report.completion_tokens, report.cost_usd
    # The clock of the database may have been set back since.
    held_seconds, latency = max(0.0, (at - permit.granted_at).total_seconds()), report.latency_seconds
    return replace(
        report,
        prompt_tokens=None if prompt is None else min(prompt, MAX_CALL_TOKENS),
        completion_tokens=None if completion is None else min(completion, max(0, MAX_CALL_TOKENS - (prompt or 0))),
        cost_usd=None if cost is None or permit.request.worker_id is not None else min(cost, max_call_usd(limits)),
        latency_seconds=None if latency is None else min(latency, held_seconds),
    )


class _SettlementBatch:
    """Settlements of one transaction, with their models and permits locked."""

    def __init__(self, models: dict[str, Model], load: PermitLoad, policy: ConcurrencyPolicy) -> None:
        self._models = models
        self._at = load.at
        self._total_limit = load.total_limit
        self._policy = ReportPolicy(concurrency=policy)
        self._principals = {name: count.principals for name, count in load.permit_counts.items()}
        self._in_use = defaultdict(int, {name: count.permits for name, count in load.permit_counts.items()})
        self._meters: dict[str, dict[Dimension, Meter]] = {}
        self._endings: list[tuple[UUID, Ending, bytes | None]] = []
        self._calls: list[FinishedCall] = []
        self._states = {name: service_state(model, load.at) for name, model in models.items()}
        self._answers: dict[bytes, tuple[PermitRequest, NewAnswer]] = {}

    def settle(self, settlement: Settlement, permit: Permit | None) -> SettleOutcome:
        """Settle one permit, in memory."""
        if permit is None or settlement.namespace not in (None, split_name(permit.request.goal_id)[0]):
            return PermitNotFound()
        if (error := token_error(permit, settlement.token, settlement.worker_id)) is not None:
            return error
        # The call was made even where its permit ended first, and the service has charged for it: so it counts, late.
        late = permit.ending in (Ending.EXPIRED, Ending.LOST)
        if permit.digest == settlement.digest:
            return self._result(permit, late=late)
        if permit.digest is not None:
            return PermitOver("the permit was settled with another body", reason=Ending.SETTLED.value)
        if not late and (error := permit_error(permit, settlement.token, settlement.worker_id)) is not None:
            return error
        answer = settlement.answer
        if answer is not None and permit.request.answer_key(answer.question) != permit.request.cache_key:
            return CacheKeyMismatch()
        report = _plausible(settlement.report, permit, self._models[permit.request.model].limits, self._at)
        self._update_model(permit, report, late=late)
        self._add_call(permit, report)
        ending = permit.ending if late and permit.ending else Ending.SETTLED
        self._endings.append((permit.id, ending, settlement.digest))
        if answer is not None and permit.request.cache_key is not None and report.outcome is Outcome.SUCCESS:
            # Of two answers under one key the first stays; `write` takes their locks in the order of keys.
            self._answers.setdefault(permit.request.cache_key, (permit.request, answer))
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
        await self._tell_states(connection)
        for key, (request, answer) in sorted(self._answers.items(), key=itemgetter(0)):
            await cache.write(connection, key, answer, model=request.model, written_by=request.holder)

    async def _tell_states(self, connection: AsyncConnection) -> None:
        """Write an event for each model whose service is in another state than before."""
        for name, (former, _) in sorted(self._states.items()):
            state, until = service_state(self._models[name], self._at)
            if state is not former:
                detail = {"model": name, "state": state.value, "former": former.value}
                until_text = None if until is None else until.isoformat()
                await events.append_system(connection, SystemEvent.MODEL_STATE.value, {**detail, "until": until_text})

    def _result(self, permit: Permit, *, late: bool) -> SettlementResult:
        model = self._models[permit.request.model]
        own = model.callers.get(permit.request.holder)
        own_seconds = 0.0 if own is None else own.cooldown_seconds(self._at)
        return SettlementResult(
            limit=model.concurrency.allowed_calls(concurrency_ceiling(model, self._total_limit)),
            in_use=self._in_use[model.name],
            cooldown_seconds=max(own_seconds, model.concurrency.cooldown_seconds(self._at)),
            late=late,
        )

    def _update_model(self, permit: Permit, report: CallReport, *, late: bool) -> None:
        model = self._models[permit.request.model]
        principal = permit.request.principal or permit.request.id.key_id
        turn = FinishedTurn(
            caller=permit.request.holder,
            principal=principal,
            has_rivals=bool(self._principals.get(model.name, frozenset()) - {principal}),
            report=report,
            granted_at=permit.granted_at,
            # Once its permit is over, another call is the probe.
            is_probe=permit.is_probe and not late,
            in_use=self._in_use[model.name],
        )
        ceiling = concurrency_ceiling(model, self._total_limit)
        model = reports.record_call(model, turn, ceiling=ceiling, now=self._at, policy=self._policy)
        has_answered = report.outcome is Outcome.SUCCESS
        key_report = earliest_report(
            model.key_report, turn.caller, report.key_expires_at, self._at, has_answered=has_answered
        )
        self._models[model.name] = replace(model, key_report=key_report)
        by_dimension = self._meters.setdefault(model.name, meters(model, self._at))
        if report.tokens is not None and (meter := by_dimension.get(Dimension.TOKENS)) is not None:
            difference = meter.chargeable(report.tokens) - meter.chargeable(permit.request.tokens)
            corrected = correct(meter, self._believed(permit, meter, difference))
            by_dimension[Dimension.TOKENS] = corrected.bounded(self._at)

    def _believed(self, permit: Permit, meter: Meter, tokens: int) -> int:
        """The part of tokens beyond the estimate that others are charged for: a worker's only within its own rate."""
        if permit.request.worker_id is None:
            return tokens
        model = self._models[permit.request.model]
        name = worker_key(Dimension.TOKENS, permit.request.holder)
        own = worker_meter(meter, model.worker_tats.get(name), self._at)
        is_believed = tokens <= 0 or wait_time(own, tokens, self._at) <= timedelta()
        own = charge(own, tokens, self._at) if tokens > 0 else correct(own, tokens)
        tats = changed_tats(model, {name: own.bounded(self._at).tat}, self._at)
        self._models[model.name] = replace(self._models[model.name], worker_tats=tats)
        return tokens if is_believed else 0

    def _add_call(self, permit: Permit, report: CallReport) -> None:
        prompt, completion = report.prompt_tokens, report.completion_tokens
        limits = self._models[permit.request.model].limits
        cost = call_cost(limits, prompt, completion) if report.cost_usd is None else report.cost_usd
        if report.outcome is Outcome.SUCCESS and report.tokens is None:
            # It was paid for all the same: uncounted, the calls of a service that tells no tokens have no budget.
            estimate = estimated_amount(limits, permit.request.tokens)
            prompt, cost = estimate.tokens, estimate.usd if report.cost_usd is None else cost
        self._calls.append(
            FinishedCall(
                model=permit.request.model,
                agent_type=permit.request.agent_type,
                goal_id=permit.request.goal_id,
                key_id=permit.request.id.key_id if permit.request.worker_id is None else None,
                paying_key=permit.request.paying_key,
                outcome=report.outcome,
                prompt_tokens=prompt or 0,
                completion_tokens=completion or 0,
                cost_usd=cost,
                held_seconds=((permit.ended_at or self._at) - permit.granted_at).total_seconds(),
                latency_seconds=report.latency_seconds,
            )
        )
