"""The deployment configuration: read, changed under a condition, rolled back."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Body, Depends, Path, Query, Response
from pydantic import Field

from app.admin.api.config_schemas import (
    ChangedOut,
    ConfigHistoryPage,
    ConfigOut,
    DocumentIn,
    ModeIn,
    RollbackIn,
    apply_patch,
    changed_out,
    config_out,
    document_from,
    history_item,
)
from app.admin.errors import ConfigRefused, ConfigVersionNotFound
from app.admin.rules.config import ConfigAction
from app.admin.service import config as service
from app.admin.service.config import ChangeRequest, ChangeResult, CurrentConfig
from app.admin.store import config as store
from app.http.etags import IfMatch, IfNoneMatch, etag, expected_version, is_known
from app.http.fields import NEWEST, Below, Limit, MergePatch, Sentence, StrictModel
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope
from app.kernel.modes import Mode

router = Router(prefix="/config", tags=["config"])
_READ = [requires(Scope.READ)]
_WRITE = [requires(Scope.CONFIGURE)]
_WRITING = responses_for(errors.PreconditionRequired, errors.VersionStale, ConfigRefused)
_FINDING = responses_for(ConfigVersionNotFound)


class Trial(StrictModel):
    """Query options of every change. Unknown names are refused: a misspelt `dry_run` must not change anything."""

    dry_run: bool = Field(False, description="change nothing, only show what would change")


class Reasoned(Trial):
    """Query options of a change whose body is the document itself and has no place for the reason."""

    reason: Sentence = Field("", description="why; it is kept with the change")


@dataclass
class ChangeCall:
    """Parameters that the routes of changes share; the version is read late, so that the body is validated first."""

    connection: Writing
    services: ServicesDep
    caller: Caller
    response: Response
    if_match: IfMatch = None

    @property
    def initial(self) -> Mode:
        """The mode that a new system starts with."""
        return self.services[CurrentConfig].initial

    def request(self, reason: str, options: Trial) -> ChangeRequest:
        """The requested change. Raises PreconditionRequired, RequestValidationError."""
        version = expected_version(self.if_match)
        return ChangeRequest(expected_version=version, by=self.caller.key_id, reason=reason, dry_run=options.dry_run)

    def answer(self, result: ChangeResult, request: ChangeRequest) -> ChangedOut:
        """The response to the change, with the new version as its ETag."""
        self.response.headers["ETag"] = etag(result.version.version)
        return changed_out(result, dry_run=request.dry_run)


ChangeCallDep = Annotated[ChangeCall, Depends()]


@router.get(
    "",
    operation_id="get_config",
    summary="Read the configuration",
    dependencies=_READ,
    responses={304: {"description": "it is still at the version of If-None-Match"}},
    response_model=ConfigOut,
)
async def read(
    connection: Reading,
    services: ServicesDep,
    response: Response,
    if_none_match: IfNoneMatch = None,
) -> ConfigOut | Response:
    """What is in force. Its ETag is its version, for If-Match of the change that follows.

    `effective_weights` are what the weights come to: no agent has less than 0.02, and `notes` say where one was raised.
    They are where the weights in force begin; `GET /weights` shows what those have become.
    """
    version = await service.current(connection, services[CurrentConfig].initial)
    if is_known(version.version, if_none_match):
        return Response(status_code=304, headers={"ETag": etag(version.version)})
    response.headers["ETag"] = etag(version.version)
    return config_out(version)


@router.put(
    "", operation_id="replace_config", summary="Replace the configuration", dependencies=_WRITE, responses=_WRITING
)
async def put(
    document: DocumentIn,
    call: ChangeCallDep,
    options: Annotated[Reasoned, Query()],
) -> ChangedOut:
    """All four sections, with every value. Weights are scaled to sum 1; a weight of 0 is raised to 0.02 in effect.

    Safe to repeat: the same body sent again with the same If-Match is accepted again.
    """
    request = call.request(options.reason, options)
    result = await service.change(call.connection, call.initial, request, ConfigAction.SET, document_from(document))
    return call.answer(result, request)


@router.patch(
    "",
    operation_id="change_config",
    summary="Change some of the configuration",
    dependencies=_WRITE,
    responses=_WRITING,
)
async def patch(
    merge: Annotated[MergePatch, Body(media_type="application/merge-patch+json")],
    call: ChangeCallDep,
    options: Annotated[Reasoned, Query()],
) -> ChangedOut:
    """A JSON merge patch (RFC 7396), like `{"worker_pool": {"max_workers": 20}}`.

    A weight that is named gets just that share, and the others make up the rest in their proportions. Safe to repeat.
    """
    request = call.request(options.reason, options)
    base = await service.base(call.connection, call.initial, request.expected_version)
    # Applied to the version of If-Match, even if it is outdated: a repetition must give the same document again.
    document = apply_patch(base.document, merge)
    result = await service.change(call.connection, call.initial, request, ConfigAction.PATCH, document)
    return call.answer(result, request)


@router.get("/history", operation_id="list_config_versions", summary="Read who changed what", dependencies=_READ)
async def history(
    connection: Reading,
    services: ServicesDep,
    after: Below = NEWEST,
    limit: Limit = 50,
) -> ConfigHistoryPage:
    """All versions, newest first, each with what it changed; nothing is ever forgotten."""
    # In a new database this writes the first version, so that the history is never empty.
    await service.current(connection, services[CurrentConfig].initial)
    versions = await store.history(connection, below=after, limit=limit)
    following = versions.next(lambda version: version.version)
    # The last one shown is compared with the one before it.
    former = await store.read(connection, following - 1) if following else None
    pairs = zip(versions.items, [*versions.items[1:], former], strict=False)
    return ConfigHistoryPage(items=[history_item(version, previous) for version, previous in pairs], next=following)


@router.get(
    "/versions/{version}",
    operation_id="get_config_version",
    summary="Read a former version",
    dependencies=_READ,
    responses=_FINDING,
)
async def read_version(
    version: Annotated[int, Path(ge=1, le=NEWEST)], connection: Reading, services: ServicesDep
) -> ConfigOut:
    """The configuration as it was, and what its weights meant."""
    await service.current(connection, services[CurrentConfig].initial)
    former = await service.version(connection, version)
    return config_out(former)


@router.post(
    "/rollback",
    operation_id="roll_back_config",
    summary="Return to a former version",
    dependencies=_WRITE,
    responses={**_WRITING, **_FINDING},
)
async def roll_back(
    body: RollbackIn,
    call: ChangeCallDep,
    options: Annotated[Trial, Query()],
) -> ChangedOut:
    """A new version with the mode and all values of that one. Safe to repeat."""
    request = call.request(body.reason, options)
    result = await service.roll_back(call.connection, call.initial, request, body.version)
    return call.answer(result, request)


@router.post("/mode", operation_id="switch_mode", summary="Change the mode", dependencies=_WRITE, responses=_WRITING)
async def switch(
    body: ModeIn,
    call: ChangeCallDep,
    options: Annotated[Trial, Query()],
) -> ChangedOut:
    """The pool becomes the mode's: 2 to 5 workers in development, 10 to 1000 in production, 5 to 50 for trusted
    testers; all else stays as it is. Asking for the mode that is on changes nothing. Safe to repeat."""
    request = call.request(body.reason, options)
    result = await service.switch(call.connection, call.initial, request, body.mode)
    return call.answer(result, request)
