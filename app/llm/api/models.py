"""Routes of language models: limits, the state of their services, and usage."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Path, Query, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.http.etags import IfMatch, IfNoneMatch, etag, expected_version, is_known
from app.http.fields import Limit, Moment, ReasonQuery
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope
from app.kernel.namespaces import shown_name
from app.llm.api.model_schemas import HeldBackOut, LimitsIn, ModelName, ModelOut, ModelPage, UsageOut, UsagePage
from app.llm.errors import ModelNotAllowed
from app.llm.rules.callers import CallerState
from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.conditions import service_state
from app.llm.rules.models import ModelLimits, concurrency_ceiling
from app.llm.service import models as service
from app.llm.store import gate, models
from app.llm.store import usage as usage_store
from app.llm.store.models import ModelStatus
from app.llm.store.usage import Grouping, UsageSum

router = Router(prefix="/llm", tags=["language models"])
_READ = [requires(Scope.READ)]
# Prices have longer names in bodies.
_LIMITS = LimitsIn.model_fields.keys() & ModelLimits.__dataclass_fields__.keys()
_SINCE = "an hour ago by default; by the minute, more than two hours ago by the hour, whose beginning is answered"
_UNLISTED = responses_for(ModelNotAllowed)
_CHANGING = responses_for(errors.PreconditionRequired, errors.VersionStale)
ModelPath = Annotated[ModelName, Path(description="as callers name it; slashes and colons are part of it")]


@router.get("/models", operation_id="list_models", summary="List language models", dependencies=_READ)
async def page(
    connection: Reading,
    after: Annotated[str, Query(max_length=200, description="`next` of the page before")] = "",
    limit: Limit = 100,
) -> ModelPage:
    """Those that permits are granted for."""
    statuses = await models.status_page(connection, after_name=after, limit=limit)
    total_limit = (await gate.read_load(connection)).total_limit
    items = [_model_out(status, total_limit) for status in statuses.items]
    return ModelPage(items=items, next=statuses.next(lambda status: status.model.name))


@router.get(
    "/models/{model:path}",
    operation_id="get_model",
    summary="Read a language model",
    dependencies=_READ,
    responses={304: {"description": "its limits are still at the version of If-None-Match"}},
    response_model=ModelOut,
)
async def read(
    model: ModelPath, connection: Reading, response: Response, if_none_match: IfNoneMatch = None
) -> ModelOut | Response:
    """Its limits, with their version as the ETag, and how its service stands. Unlisted ones are at version 0."""
    model_out = await _read_model(connection, model)
    if is_known(model_out.version, if_none_match):
        return Response(status_code=304, headers={"ETag": etag(model_out.version)})
    response.headers["ETag"] = etag(model_out.version)
    return model_out


@router.put(
    "/models/{model:path}",
    operation_id="set_model_limits",
    summary="Set the limits of a language model",
    dependencies=[requires(Scope.CONFIGURE)],
    responses=_CHANGING,
)
async def put(
    model: ModelPath,
    body: LimitsIn,
    connection: Writing,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    reason: ReasonQuery = "",
) -> ModelOut:
    """All of them at once; what is left out is not limited. In force from the next permit on. Lists the model, where it
    was not listed. Safe to repeat.
    """
    await service.set_limits(
        connection, model, expected_version(if_match), _limits(body), by=caller.key_id, reason=reason
    )
    model_out = await _read_model(connection, model)
    response.headers["ETag"] = etag(model_out.version)
    return model_out


@router.delete(
    "/models/{model:path}",
    operation_id="remove_model",
    summary="Take a language model from the list",
    status_code=204,
    dependencies=[requires(Scope.CONFIGURE)],
    responses=_UNLISTED,
)
async def remove(model: ModelPath, connection: Writing, caller: Caller, reason: ReasonQuery = "") -> None:
    """No permits are granted for it any more, and its limits are forgotten. Calls that are under way go on."""
    await service.remove(connection, model, by=caller.key_id, reason=reason)


@router.post(
    "/models/{model:path}/reset",
    operation_id="reset_model",
    summary="Reset a language model",
    dependencies=[requires(Scope.OPERATE)],
    responses=_UNLISTED,
)
async def reset(model: ModelPath, connection: Writing, caller: Caller, reason: ReasonQuery = "") -> ModelOut:
    """Its cool-down is lifted, its breaker closed, and what callers have reported and been charged is forgotten: it
    starts as a new one. Safe to repeat.
    """
    await service.reset(connection, model, by=caller.key_id, reason=reason)
    return await _read_model(connection, model)


@router.get(
    "/usage",
    operation_id="get_llm_usage",
    summary="What calls of language models came to",
    dependencies=[requires(Scope.READ, costly=True)],
)
async def usage(
    connection: Reading,
    namespace: Within,
    since: Annotated[Moment | None, Query(description=_SINCE)] = None,
    by: Annotated[Grouping, Query()] = "model",
    limit: Limit = 100,
) -> UsagePage:
    """Calls by outcome, tokens, costs and latencies of each model, agent type, goal, or key of somebody who is no
    worker, those with most calls first.
    """
    moment = await now(connection)
    start = since or moment - timedelta(hours=1)
    if start < moment - timedelta(hours=usage_store.WHOLE_HOURS_AFTER):
        start = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    sums = await usage_store.sums(connection, by, start, limit, namespace)
    if by == "goal" and namespace is not None:
        sums = [replace(item, name=shown_name(item.name)) for item in sums]
    return UsagePage(by=by, since=start, items=[_usage_out(item) for item in sums])


async def _read_model(connection: AsyncConnection, name: str) -> ModelOut:
    return _model_out(await models.read_status(connection, name), (await gate.read_load(connection)).total_limit)


def _limits(body: LimitsIn) -> ModelLimits:
    limits = {name: getattr(body, name) for name in _LIMITS}
    return ModelLimits(
        **limits, input_price=body.input_price_per_million_tokens, output_price=body.output_price_per_million_tokens
    )


def _model_out(status: ModelStatus, total_limit: int) -> ModelOut:
    model, at = status.model, status.at
    breaker, (state, until) = model.breaker.state(at), service_state(model, at)
    limits: dict[str, Any] = {name: getattr(model.limits, name) for name in _LIMITS}
    latency = model.concurrency.latency_seconds
    return ModelOut(
        **limits,
        model=model.name,
        state=state,
        state_until=until,
        key_expires_at=model.key_expires_at,
        version=model.version,
        input_price_per_million_tokens=model.limits.input_price,
        output_price_per_million_tokens=model.limits.output_price,
        limit=model.concurrency.allowed_calls(concurrency_ceiling(model, total_limit)),
        in_use=status.permits,
        breaker=breaker,
        breaker_open_seconds=model.breaker.remaining_seconds(at) if breaker is BreakerState.OPEN else 0.0,
        consecutive_failures=model.breaker.failures,
        cooldown_seconds=model.concurrency.cooldown_seconds(at),
        mean_latency_ms=None if latency is None else latency * 1000,
        is_listed=status.is_listed,
        used_at=status.used_at,
        held_back=[_held_back(name, caller, at) for name, caller in model.callers.items() if caller.is_blocked(at)],
    )


def _held_back(name: str, caller: CallerState, at: datetime) -> HeldBackOut:
    seconds = caller.cooldown_seconds(at), caller.breaker.remaining_seconds(at)
    return HeldBackOut(caller=name, cooldown_seconds=seconds[0], breaker_open_seconds=seconds[1])


def _usage_out(usage_sum: UsageSum) -> UsageOut:
    latency = usage_sum.latency
    seconds_by_name = {"mean": latency.mean, "p50": latency.percentile(0.5), "p95": latency.percentile(0.95)}
    return UsageOut(
        name=usage_sum.name,
        calls=sum(usage_sum.outcomes.values()),
        outcomes={outcome.value: count for outcome, count in usage_sum.outcomes.items()},
        prompt_tokens=usage_sum.prompt_tokens,
        completion_tokens=usage_sum.completion_tokens,
        cost_usd=usage_sum.cost_usd,
        held_seconds=usage_sum.held_seconds,
        latency_ms={name: None if seconds is None else seconds * 1000 for name, seconds in seconds_by_name.items()},
    )
