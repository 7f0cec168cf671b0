"""Routes of the weights: read, command, override and history."""

from dataclasses import replace

from fastapi import Response
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import config
from app.admin.service.config import CurrentConfig
from app.agents.api.schemas import (
    CommandIn,
    OverrideIn,
    WeightHistoryPage,
    WeightsOut,
    WeightVersionOut,
    version_fields,
    weights_out,
)
from app.agents.errors import WeightsRefused
from app.agents.rules.steering import policy_in
from app.agents.service import orders as service
from app.agents.service import weights
from app.agents.service.orders import Order
from app.agents.store import weights as store
from app.agents.store.weights import Version
from app.http.etags import IfMatch, etag, expected_version
from app.http.fields import NEWEST, Below, Limit, ReasonQuery
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope

router = Router(prefix="/weights", tags=["agents"])
_READ = [requires(Scope.READ)]
_COMMAND = [requires(Scope.WEIGH)]
_REFUSALS = responses_for(errors.VersionStale, WeightsRefused)


@router.get("", operation_id="get_weights", summary="Read the weights in force", dependencies=_READ)
async def read(connection: Reading, services: ServicesDep, response: Response) -> WeightsOut:
    """What leases are shared by, since when and why, and where it is headed. The ETag is the version."""
    return await _answer(connection, services, await store.last(connection), response)


@router.put("", operation_id="set_weights", summary="Command weights", dependencies=_COMMAND, responses=_REFUSALS)
async def command(
    body: CommandIn,
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
) -> WeightsOut:
    """The weights go there in steps of at most half of each, a minute apart; the first at once, if the last step was a
    minute ago. From there on, what agents achieve moves them, until the configured weights change.

    If-Match is optional here: steps change the version. Safe to repeat.
    """
    order = _order(caller.key_id, body.reason, if_match)
    version = await service.command(connection, services[CurrentConfig].initial, order, body.weights)
    return await _answer(connection, services, version, response)


@router.put(
    "/override",
    operation_id="override_weights",
    summary="Override the weights for a while",
    dependencies=_COMMAND,
    responses=_REFUSALS,
)
async def override(
    body: OverrideIn,
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
) -> WeightsOut:
    """As a command, and whatever the agents achieve meanwhile; when it expires, the automatic weights go on.

    It takes the place of an override before. Even here no weight changes by more than half at once.
    """
    order = _order(caller.key_id, body.reason, if_match)
    seconds = body.expires_in_seconds
    version = await service.override(connection, services[CurrentConfig].initial, order, body.weights, seconds)
    return await _answer(connection, services, version, response)


@router.delete(
    "/override",
    operation_id="end_weights_override",
    summary="End the override",
    dependencies=_COMMAND,
    responses=_REFUSALS,
)
async def release(
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    reason: ReasonQuery = "",
) -> WeightsOut:
    """The weights go back to what the agents have earned, in the same steps. Without an override, nothing happens."""
    order = _order(caller.key_id, reason, if_match)
    version = await service.release(connection, services[CurrentConfig].initial, order)
    return await _answer(connection, services, version, response)


@router.get("/history", operation_id="list_weight_changes", summary="Read how the weights changed", dependencies=_READ)
async def history(
    connection: Reading,
    after: Below = NEWEST,
    limit: Limit = 50,
) -> WeightHistoryPage:
    """Every step and every order, newest first, each with who, why, and what it changed."""
    versions = await store.history(connection, end_version=after, limit=limit)
    items = [WeightVersionOut(**version_fields(version)) for version in versions.items]
    return WeightHistoryPage(items=items, next=versions.next(lambda version: version.version))


async def _answer(
    connection: AsyncConnection, services: ServicesDep, version: Version | None, response: Response
) -> WeightsOut:
    response.headers["ETag"] = etag(version.version if version else 0)
    # An order between two steps changes no weight; the reasons of the weights are those of the last step.
    if version is not None and not version.adjustments:
        version = replace(version, adjustments=await store.adjustments(connection))
    effective = config.effective(await config.current(connection, services[CurrentConfig].initial))
    shares = (await weights.in_force(connection, effective)).shares
    return weights_out(version, shares, effective, policy_in(effective.mode))


def _order(by: str, reason: str, if_match: str | None) -> Order:
    return Order(by=by, reason=reason, expected_version=None if if_match is None else expected_version(if_match))
