"""Routes of the Context Memory: versioned entries of a namespace."""

import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Body, Depends, Header, Path, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from app.http.bodies import CONTENT_BYTES, body_limit
from app.http.etags import IfMatch, etag, is_known
from app.http.fields import NEWEST, Below, Limit, Moment, Word
from app.http.guard import Caller, requires
from app.http.json import check_size as limit_size
from app.http.json import object_text
from app.http.namespaces import Into
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import PayloadLimit, ServicesDep
from app.http.shares import Shares
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope
from app.kernel.namespaces import stored_name
from app.memory.errors import ContextNotFound
from app.memory.service import context as service
from app.memory.store import context as store
from app.memory.store.context import EntryKey, Version, Write

router = Router(prefix="/context", tags=["context"])
_CONTENT = [requires(Scope.READ, Scope.CONTENT)]
_WRITING = responses_for(errors.VersionStale, errors.PreconditionRequired, errors.PayloadTooLarge)
_FOUND = responses_for(ContextNotFound)


def _json_text(value: Any) -> str:
    """The text of any JSON value; the limits on JSON are checked on an object that holds it."""
    if isinstance(value, bytes):
        # FastAPI hands a body over as bytes when its content type is not JSON.
        raise ValueError("must be JSON, sent with Content-Type: application/json")
    text = object_text({"value": value}) or ""
    return text.removeprefix('{"value":').removesuffix("}")


Part = Annotated[str, Path(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@~+-]{0,199}$")]
JsonValue = Annotated[
    str,
    BeforeValidator(_json_text),
    WithJsonSchema({"examples": [{"law": "the square of the period is the cube of the distance", "planets": 6}]}),
    Body(description="any JSON value"),
]
IfNoneMatch = Annotated[str | None, Header(max_length=200, description="`*`: only where there is no entry")]
RequestKey = Annotated[
    Word | None,
    Header(alias="Idempotency-Key", description="tells a repetition from an equal write of somebody with the same key"),
]


class ContextEntryOut(BaseModel):
    """An entry at one version."""

    namespace: str
    key: str
    version: int
    deleted: bool
    written_by: str = Field(description="id of the key that was shown")
    written_at: Moment
    value: Any = None


class ContextKeyOut(BaseModel):
    """An entry without its value."""

    key: str
    version: int
    written_by: str
    written_at: Moment


class ContextKeyWithValue(ContextKeyOut):
    """An entry with its value."""

    value: Any


class ContextSizeOut(BaseModel):
    """How much a namespace holds now, without former versions."""

    entries: int
    bytes: int = Field(description="of the values as JSON")


class ContextKeyPage(BaseModel):
    """By key. A page may be short and not the last: go on until `next` is null."""

    items: list[ContextKeyWithValue | ContextKeyOut]
    next: str | None
    size: ContextSizeOut | None = Field(None, description="of the whole namespace, where it was asked for")


class ContextHistoryPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[ContextEntryOut]
    next: int | None


class WrittenOut(BaseModel):
    """What a write has made."""

    namespace: str
    key: str
    version: int
    deleted: bool
    written_at: Moment


async def _address(namespace: Part, into: Into) -> str:
    """Where entries of this namespace of the context are stored: each namespace of the service has its own."""
    return stored_name(into, namespace) or namespace


async def _entry(key: Part, address: Annotated[str, Depends(_address)]) -> EntryKey:
    return EntryKey(namespace=address, key=key)


Entry = Annotated[EntryKey, Depends(_entry)]


async def _with_size(
    services: ServicesDep,
    caller: Caller,
    size: Annotated[
        bool, Query(description="with the number of all entries and their bytes, which reads them")
    ] = False,
) -> AsyncIterator[bool]:
    """Whether the size is asked for, within a share of what costs much, as it grows with the namespace."""
    async with services[Shares].of(caller.key_id, is_costly=True) if size else nullcontext():
        yield size


# Before any connection, which would wait with it.
WithSize = Annotated[bool, Depends(_with_size, scope="function")]


@router.get(
    "/{namespace}",
    operation_id="list_context_entries",
    summary="List the entries of a namespace",
    dependencies=_CONTENT,
)
async def page(
    namespace: Part,
    address: Annotated[str, Depends(_address)],
    size: WithSize,
    connection: Reading,
    after: Annotated[str, Query(max_length=200, description="`next` of the page before")] = "",
    limit: Limit = 100,
    values: Annotated[bool, Query(description="with their values, in as many pages as it takes")] = False,
) -> ContextKeyPage:
    """Keys and versions; values only when they are asked for."""
    versions, following = await store.page(connection, address, after_key=after, limit=limit, with_values=values)
    model = ContextKeyWithValue if values else ContextKeyOut
    items = [model.model_validate(_version_fields(namespace, version)) for version in versions]
    total = ContextSizeOut(**asdict(await store.size(connection, address))) if size else None
    return ContextKeyPage(items=items, next=following, size=total)


@router.get(
    "/{namespace}/{key}",
    operation_id="get_context_entry",
    summary="Read an entry",
    dependencies=_CONTENT,
    responses={304: {"description": "it is still at the version of If-None-Match"}, **_FOUND},
    response_model=ContextEntryOut,
)
async def read(
    namespace: Part,
    entry: Entry,
    connection: Reading,
    response: Response,
    version: Annotated[int | None, Query(ge=1, le=NEWEST, description="a former one, which may be a deletion")] = None,
    if_none_match: Annotated[str | None, Header(max_length=2000, description="versions that you know")] = None,
) -> ContextEntryOut | Response:
    """Its ETag is its version, for If-Match of the write that follows."""
    current = await service.read(connection, entry, version)
    tag = etag(current.version)
    if is_known(current.version, if_none_match):
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return ContextEntryOut.model_validate(_version_fields(namespace, current))


@router.get(
    "/{namespace}/{key}/history",
    operation_id="list_context_entry_versions",
    summary="Read former versions",
    dependencies=_CONTENT,
)
async def history(
    namespace: Part,
    entry: Entry,
    connection: Reading,
    after: Below = NEWEST,
    limit: Limit = 50,
) -> ContextHistoryPage:
    """Who wrote what and when, deletions too; old versions are pruned."""
    versions, following = await store.history(connection, entry, before_version=after, limit=limit)
    if not versions and after == NEWEST:
        raise ContextNotFound
    items = [ContextEntryOut.model_validate(_version_fields(namespace, version)) for version in versions]
    return ContextHistoryPage(items=items, next=following)


@router.put(
    "/{namespace}/{key}",
    operation_id="put_context_entry",
    summary="Write an entry",
    openapi_extra=body_limit(CONTENT_BYTES),
    dependencies=[requires(Scope.SUBMIT)],
    responses={201: {"model": WrittenOut, "description": "there was no such entry before"}, **_WRITING},
)
async def put(
    namespace: Part,
    entry: Entry,
    value: JsonValue,
    services: ServicesDep,
    connection: Writing,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    idempotency_key: RequestKey = None,
    overwrite: Annotated[
        bool, Query(description="whatever is there: the last writer wins, and no header is sent")
    ] = False,
) -> WrittenOut:
    """Compare-and-set: `If-Match: "<version>"` to change, `If-None-Match: *` to create; one of them is required, but
    for `overwrite`, which needs no reading first.

    Safe to repeat: the same value sent again with the same condition and key is accepted again.
    """
    limit_size(value, services[PayloadLimit].max_bytes, "value")
    change = Write(value=value, written_by=caller.key_id, request_id=idempotency_key)
    if overwrite:
        if if_match is not None or if_none_match is not None:
            raise _header_error("if-match", "send a condition or `overwrite`, not both")
        result = await service.overwrite(connection, entry, change)
    elif (expected_version := _expected_version(if_match, if_none_match)) is None:
        result = await service.create(connection, entry, change)
    else:
        result = await service.replace(connection, entry, expected_version, change)
    response.status_code = 201 if result.is_new else 200
    return _written_out(namespace, result.version, response)


@router.delete(
    "/{namespace}/{key}",
    operation_id="delete_context_entry",
    summary="Delete an entry",
    dependencies=[requires(Scope.SUBMIT)],
    responses={**_FOUND, **_WRITING},
)
async def delete(
    namespace: Part,
    entry: Entry,
    connection: Writing,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: RequestKey = None,
) -> WrittenOut:
    """Compare-and-set with If-Match. The deletion is a version; a later write goes on counting from it."""
    expected_version = _expected_version(if_match, None)
    assert expected_version is not None
    change = Write(value=None, written_by=caller.key_id, request_id=idempotency_key)
    version = await service.delete(connection, entry, expected_version, change)
    return _written_out(namespace, version, response)


def _expected_version(if_match: str | None, if_none_match: str | None) -> int | None:
    """The version that must be the current one; None where there must be no entry. Raises PreconditionRequired."""
    if if_match is not None and if_none_match is not None:
        raise _header_error("if-match", "send If-Match or If-None-Match, not both")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise _header_error("if-none-match", "must be *")
        return None
    if if_match is None:
        raise errors.PreconditionRequired('send `If-Match: "<version>"`; `If-None-Match: *` creates a new entry')
    match = re.fullmatch(r'\s*"([1-9]\d{0,17})"\s*', if_match)
    if match is None:
        raise _header_error("if-match", 'must be one version in quotation marks, like "7"')
    return int(match[1])


def _header_error(header: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "condition", "loc": ("header", header), "msg": message}])


def _version_fields(namespace: str, version: Version) -> dict[str, Any]:
    return {"namespace": namespace, **{name: getattr(version, name) for name in Version.__dataclass_fields__}}


def _written_out(namespace: str, version: Version, response: Response) -> WrittenOut:
    response.headers["ETag"] = etag(version.version)
    return WrittenOut.model_validate(_version_fields(namespace, version))
