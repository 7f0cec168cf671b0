"""Context Memory: versioned entries of a namespace."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from app.http.etags import etag, is_known
from app.http.fields import Limit, Moment, Word
from app.http.guard import Caller, requires
from app.http.json import check_size as limit_size
from app.http.json import object_text
from app.http.problems import responses_for
from app.http.services import PayloadLimit, ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel import errors
from app.kernel.access import Scope
from app.memory.errors import ContextNotFound
from app.memory.service import context as service
from app.memory.store import context as store
from app.memory.store.context import Name, Version, Write

router = APIRouter(prefix="/context", tags=["context"])
_WRITING = responses_for(errors.VersionStale, errors.PreconditionRequired, errors.PayloadTooLarge)
_FOUND = responses_for(ContextNotFound)
_NEWEST = 2**63 - 1


def _json_text(value: Any) -> str:
    """The text of any JSON value, which an object holds while it is checked."""
    if isinstance(value, bytes):
        # The framework reads no body that does not call itself JSON.
        raise ValueError("must be JSON, sent with Content-Type: application/json")
    text = object_text({"value": value}) or ""
    return text.removeprefix('{"value":').removesuffix("}")


Part = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@~+-]{0,199}$")]
JsonValue = Annotated[str, BeforeValidator(_json_text), WithJsonSchema({}), Body(description="any JSON value")]
IfMatch = Annotated[str | None, Header(description='the version that this builds on, like `"7"`')]
IfNoneMatch = Annotated[str | None, Header(description="`*`: only where there is no entry")]
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


class ContextKeyPage(BaseModel):
    """By key. A page may be short and not the last: go on until `next` is null."""

    items: list[ContextKeyWithValue | ContextKeyOut]
    next: str | None


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


@router.get("/{namespace}", summary="List the entries of a namespace", dependencies=[requires(Scope.READ)])
async def page(
    namespace: Part,
    connection: Reading,
    after: Annotated[str, Query(max_length=200, description="`next` of the page before")] = "",
    limit: Limit = 100,
    values: Annotated[bool, Query(description="with their values, in as many pages as it takes")] = False,
) -> ContextKeyPage:
    """Keys and versions; values only when they are asked for."""
    found, following = await store.page(connection, namespace, after=after, limit=limit, values=values)
    kind = ContextKeyWithValue if values else ContextKeyOut
    return ContextKeyPage(items=[kind.model_validate(_plain(namespace, version)) for version in found], next=following)


@router.get(
    "/{namespace}/{key}",
    summary="Read an entry",
    dependencies=[requires(Scope.READ)],
    responses={304: {"description": "it is still at the version of If-None-Match"}, **_FOUND},
    response_model=ContextEntryOut,
)
async def read(
    namespace: Part,
    key: Part,
    connection: Reading,
    response: Response,
    version: Annotated[int | None, Query(ge=1, le=_NEWEST, description="a former one, which may be a deletion")] = None,
    if_none_match: Annotated[str | None, Header(description="versions that you know")] = None,
) -> ContextEntryOut | Response:
    """Its ETag is its version, for If-Match of the write that follows."""
    found = await service.read(connection, _name(namespace, key), version)
    tag = etag(found.version)
    if is_known(found.version, if_none_match):
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return ContextEntryOut.model_validate(_plain(namespace, found))


@router.get("/{namespace}/{key}/history", summary="Read former versions", dependencies=[requires(Scope.READ)])
async def history(
    namespace: Part,
    key: Part,
    connection: Reading,
    after: Annotated[int, Query(ge=1, le=_NEWEST, description="`next` of the page before")] = _NEWEST,
    limit: Limit = 50,
) -> ContextHistoryPage:
    """Who wrote what and when, deletions too; old versions are pruned."""
    found, following = await store.history(connection, _name(namespace, key), before=after, limit=limit)
    if not found and after == _NEWEST:
        raise ContextNotFound
    return ContextHistoryPage(
        items=[ContextEntryOut.model_validate(_plain(namespace, version)) for version in found], next=following
    )


@router.put(
    "/{namespace}/{key}",
    summary="Write an entry",
    dependencies=[requires(Scope.SUBMIT)],
    responses={201: {"model": WrittenOut, "description": "there was no such entry before"}, **_WRITING},
)
async def put(
    namespace: Part,
    key: Part,
    value: JsonValue,
    services: ServicesDep,
    connection: Writing,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    idempotency_key: RequestKey = None,
) -> WrittenOut:
    """Compare-and-set: `If-Match: "<version>"` to change, `If-None-Match: *` to create; one of them is required.

    Safe to repeat: the same value sent again with the same condition and key is accepted again.
    """
    limit_size(value, services[PayloadLimit].max_bytes, "value")
    change = Write(value=value, written_by=caller.key_id, request_id=idempotency_key)
    expected = _condition(if_match, if_none_match)
    name = _name(namespace, key)
    if expected is None:
        written = await service.create(connection, name, change)
    else:
        written = await service.replace(connection, name, expected, change)
    response.status_code = 201 if written.created else 200
    return _written(namespace, written.version, response)


@router.delete(
    "/{namespace}/{key}",
    summary="Delete an entry",
    dependencies=[requires(Scope.SUBMIT)],
    responses={**_FOUND, **_WRITING},
)
async def delete(
    namespace: Part,
    key: Part,
    connection: Writing,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: RequestKey = None,
) -> WrittenOut:
    """Compare-and-set with If-Match. The deletion is a version; a later write goes on counting from it."""
    expected = _condition(if_match, None)
    assert expected is not None
    change = Write(value=None, written_by=caller.key_id, request_id=idempotency_key)
    return _written(namespace, await service.delete(connection, _name(namespace, key), expected, change), response)


def _condition(if_match: str | None, if_none_match: str | None) -> int | None:
    """The version that must be the last one; None where there must be no entry. Raises PreconditionRequired."""
    if if_match is not None and if_none_match is not None:
        raise _refused("if-match", "send If-Match or If-None-Match, not both")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise _refused("if-none-match", "must be *")
        return None
    if if_match is None:
        raise errors.PreconditionRequired('send `If-Match: "<version>"`; `If-None-Match: *` creates a new entry')
    match = re.fullmatch(r'\s*"([1-9]\d{0,17})"\s*', if_match)
    if match is None:
        raise _refused("if-match", 'must be one version in quotation marks, like "7"')
    return int(match[1])


def _refused(header: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "condition", "loc": ("header", header), "msg": message}])


def _name(namespace: str, key: str) -> Name:
    return Name(namespace=namespace, key=key)


def _plain(namespace: str, version: Version) -> dict[str, Any]:
    return {"namespace": namespace, **{name: getattr(version, name) for name in Version.__dataclass_fields__}}


def _written(namespace: str, version: Version, response: Response) -> WrittenOut:
    response.headers["ETag"] = etag(version.version)
    return WrittenOut.model_validate(_plain(namespace, version))
