"""The deployment configuration: read, changed under a condition, rolled back."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.api.config_schemas import (
    ChangedOut,
    ConfigHistoryPage,
    ConfigOut,
    DocumentIn,
    ModeIn,
    RollbackIn,
    changed,
    history_item,
    patched,
    plain_document,
    shown,
)
from app.admin.errors import ConfigRefused, ConfigVersionNotFound
from app.admin.rules.config import ConfigAction
from app.admin.service import config as service
from app.admin.service.config import CurrentConfig, Order, Outcome
from app.admin.store import config as store
from app.http.etags import IfMatch, IfNoneMatch, etag, expected, is_known
from app.http.fields import Given, Limit, Sentence
from app.http.guard import Caller, requires
from app.http.problems import documented
from app.http.services import ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Principal, Scope

router = APIRouter(prefix="/config", tags=["config"])
_NEWEST = 2**63 - 1
_READ = [requires(Scope.READ)]
_WRITE = [requires(Scope.CONFIGURE)]
_WRITING = documented(errors.PreconditionRequired, errors.VersionStale, ConfigRefused)
_FINDING = documented(ConfigVersionNotFound)


class Trial(Given):
    """Whether the change is only tried. Unknown names are refused: a misspelt `dry_run` must not change anything."""

    dry_run: bool = Field(False, description="change nothing, only show what would change")


class Reasoned(Trial):
    """Why, for changes whose body is the document itself."""

    reason: Sentence = Field("", description="why; it is kept with the change")


@router.get(
    "",
    summary="Read the configuration",
    dependencies=_READ,
    responses={304: {"description": "it is still at the version of If-None-Match"}},
    response_model=ConfigOut,
)
async def read(
    connection: Reading,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    if_none_match: IfNoneMatch = None,
) -> ConfigOut | Response:
    """What is in force. Its ETag is its version, for If-Match of the change that follows.

    `effective_weights` are what the weights come to: no agent has less than 0.02, and `notes` say where one was raised.
    They are where the weights in force begin; `GET /weights` shows what those have become.
    """
    found = await service.current(connection, services[CurrentConfig].initial)
    await _noted(connection, services, caller, "config.read")
    if is_known(found.version, if_none_match):
        return Response(status_code=304, headers={"ETag": etag(found.version)})
    response.headers["ETag"] = etag(found.version)
    return shown(found)


@router.put("", summary="Replace the configuration", dependencies=_WRITE, responses=_WRITING)
async def put(
    document: DocumentIn,
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    asked: Annotated[Reasoned, Query()],
    if_match: IfMatch = None,
) -> ChangedOut:
    """All four sections, with every value. Weights are scaled to sum 1; a weight of 0 is raised to 0.02 in effect.

    Safe to repeat: the same body sent again with the same If-Match is accepted again.
    """
    order = Order(expected=expected(if_match), by=caller.key_id, reason=asked.reason, dry_run=asked.dry_run)
    outcome = await service.change(
        connection, services[CurrentConfig].initial, order, ConfigAction.SET, plain_document(document)
    )
    return _answer(outcome, order, response)


@router.patch("", summary="Change some of the configuration", dependencies=_WRITE, responses=_WRITING)
async def patch(
    merge: Annotated[dict[str, Any], Body(media_type="application/merge-patch+json")],
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    asked: Annotated[Reasoned, Query()],
    if_match: IfMatch = None,
) -> ChangedOut:
    """A JSON merge patch (RFC 7396), like `{"worker_pool": {"max_workers": 20}}`.

    A weight that is named gets just that share, and the others make up the rest in their proportions. Safe to repeat.
    """
    order = Order(expected=expected(if_match), by=caller.key_id, reason=asked.reason, dry_run=asked.dry_run)
    base = await service.base(connection, services[CurrentConfig].initial, order.expected)
    document = patched(base.document, merge)
    outcome = await service.change(connection, services[CurrentConfig].initial, order, ConfigAction.PATCH, document)
    return _answer(outcome, order, response)


@router.get("/history", summary="Read who changed what", dependencies=_READ)
async def history(
    connection: Reading,
    services: ServicesDep,
    caller: Caller,
    after: Annotated[int, Query(ge=1, le=_NEWEST, description="`next` of the page before")] = _NEWEST,
    limit: Limit = 50,
) -> ConfigHistoryPage:
    """All versions, newest first, each with what it changed; nothing is ever forgotten."""
    await service.current(connection, services[CurrentConfig].initial)
    found = await store.history(connection, before=after, limit=limit + 1)
    await _noted(connection, services, caller, "config.history")
    pairs = zip(found[:limit], [*found[1:], None], strict=False)
    following = found[limit - 1].version if len(found) > limit else None
    return ConfigHistoryPage(items=[history_item(version, before) for version, before in pairs], next=following)


@router.get("/versions/{version}", summary="Read a former version", dependencies=_READ, responses=_FINDING)
async def read_version(
    version: Annotated[int, Path(ge=1, le=_NEWEST)], connection: Reading, services: ServicesDep, caller: Caller
) -> ConfigOut:
    """The configuration as it was, and what its weights meant."""
    await service.current(connection, services[CurrentConfig].initial)
    found = await service.version(connection, version)
    await _noted(connection, services, caller, "config.version")
    return shown(found)


@router.post("/rollback", summary="Return to a former version", dependencies=_WRITE, responses={**_WRITING, **_FINDING})
async def roll_back(
    wanted: RollbackIn,
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    asked: Annotated[Trial, Query()],
    if_match: IfMatch = None,
) -> ChangedOut:
    """A new version with the mode and all values of that one. Safe to repeat."""
    order = Order(expected=expected(if_match), by=caller.key_id, reason=wanted.reason, dry_run=asked.dry_run)
    outcome = await service.roll_back(connection, services[CurrentConfig].initial, order, wanted.version)
    return _answer(outcome, order, response)


@router.post("/mode", summary="Change the mode", dependencies=_WRITE, responses=_WRITING)
async def switch(
    wanted: ModeIn,
    connection: Writing,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    asked: Annotated[Trial, Query()],
    if_match: IfMatch = None,
) -> ChangedOut:
    """The pool becomes the mode's: 2 to 5 workers in development, 10 to 1000 in production, 5 to 50 for trusted
    testers; all else stays as it is. Asking for the mode that is on changes nothing. Safe to repeat."""
    order = Order(expected=expected(if_match), by=caller.key_id, reason=wanted.reason, dry_run=asked.dry_run)
    outcome = await service.switch(connection, services[CurrentConfig].initial, order, wanted.mode)
    return _answer(outcome, order, response)


def _answer(outcome: Outcome, order: Order, response: Response) -> ChangedOut:
    response.headers["ETag"] = etag(outcome.version.version)
    return changed(outcome, dry_run=order.dry_run)


async def _noted(connection: AsyncConnection, services: ServicesDep, caller: Principal, what: str) -> None:
    await service.note_read(connection, services[CurrentConfig].initial, caller.key_id, what)
