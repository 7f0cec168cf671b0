"""Keys of people, supervisors and pools, and tokens with which workers of other hosts enrol."""

from typing import Annotated

from fastapi import Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.admin.errors import KeyRefused
from app.admin.rules.keys import MAX_ENROLMENT_SECONDS, MAX_LIFETIME_SECONDS, MAX_OVERLAP_SECONDS
from app.admin.service import access as service
from app.admin.service.access import WorkerEvictor
from app.admin.store import keys as store
from app.admin.store.keys import CreatedKey, NewKey
from app.http.fields import Body, Limit, Moment, Reason, ReasonQuery, Word
from app.http.guard import UNCACHED, Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import InBatches, Reading, Writing
from app.kernel.access import Role, Scope
from app.kernel.errors import KeyNotFound

router = Router(prefix="/keys", tags=["keys"], dependencies=[requires(Scope.KEYS)])
Lifetime = Annotated[int | None, Field(ge=1, le=MAX_LIFETIME_SECONDS, description="null: it does not expire")]


class ApiKeyIn(Body):
    """What the key is for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "role": "reader",
                    "label": "dashboard",
                    "expires_in_seconds": 2_592_000,
                    "reason": "a screen in the lab",
                }
            ]
        }
    )

    role: Role
    label: Word
    withheld: frozenset[Scope] = Field(
        default=frozenset(),
        max_length=len(Scope),
        fail_fast=True,
        description="scopes of the role that it is not to have",
    )
    namespace: Word | None = Field(None, description="of a supervisor or reader; `default` where it is not given")
    all_namespaces: bool = Field(False, description="for a reader, instead of a namespace")
    expires_in_seconds: Lifetime = None
    reason: Reason = ""


class EnrolmentIn(Body):
    """Which workers the token is for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"label": "lab-7", "uses": 4, "expires_in_seconds": 900, "reason": "a new host"}]
        }
    )

    label: Word
    uses: int = Field(1, ge=1, le=1000, description="workers that it may register")
    expires_in_seconds: int = Field(900, ge=1, le=MAX_ENROLMENT_SECONDS)
    reason: Reason = ""


class RotationIn(Body):
    """How long the former secret is good."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 3600, "reason": "every quarter"}]})

    overlap_seconds: int = Field(3600, ge=0, le=MAX_OVERLAP_SECONDS)
    expires_in_seconds: Lifetime = Field(None, description="from now on; null: as before")
    reason: Reason = ""


class _ApiKey(BaseModel):
    id: str
    role: Role
    label: str
    namespace: str | None = Field(description="null: of the whole service")
    withheld: list[Scope]
    uses_left: int | None = Field(description="workers that it may still register; null: any number")


class ApiKeyCreated(_ApiKey):
    """The only time that the key is shown."""

    expires_at: Moment | None
    key: str


class ApiKeyOut(_ApiKey):
    """A key without its secret, which nobody keeps."""

    created_at: Moment
    rotated_at: Moment | None
    expires_at: Moment | None
    last_used_at: Moment | None = Field(description="right within two minutes")
    revoked_at: Moment | None


class ApiKeyPage(BaseModel):
    """By id."""

    items: list[ApiKeyOut]
    next: str | None


class RevokedOut(BaseModel):
    """What became of the workers of a key."""

    evicted_workers: int


@router.post(
    "",
    operation_id="create_key",
    summary="Create a key",
    status_code=201,
    dependencies=[UNCACHED],
    responses=responses_for(KeyRefused),
)
async def create(key: ApiKeyIn, connection: Writing, caller: Caller) -> ApiKeyCreated:
    """The answer holds the key; only its SHA-256 is kept.

    Workers get their keys when they register: what they register with is a `pool` key. A key that was made without a
    scope makes and rotates no key that has it.
    """
    new_key = NewKey(
        is_of_all=key.all_namespaces,
        **{name: getattr(key, name) for name in ApiKeyIn.model_fields if name not in ("all_namespaces", "reason")},
    )
    return _created(
        await service.issue_key(connection, new_key, caller.key_id, key.reason, maker_withheld=caller.withheld)
    )


@router.post(
    "/enrolments",
    operation_id="create_enrolment",
    summary="Make a token for new workers",
    status_code=201,
    dependencies=[UNCACHED],
)
async def enrol(enrolment: EnrolmentIn, connection: Writing, caller: Caller) -> ApiKeyCreated:
    """A worker of another host registers with it as with a pool's key, for a short time and once, or as often as it
    says. A worker that has to register anew, as after a long silence, needs another.
    """
    new_key = NewKey(
        role=Role.POOL,
        label=enrolment.label,
        uses_left=enrolment.uses,
        expires_in_seconds=enrolment.expires_in_seconds,
    )
    return _created(await service.issue_key(connection, new_key, caller.key_id, enrolment.reason))


@router.get("", operation_id="list_keys", summary="List keys")
async def page(connection: Reading, after: Annotated[str, Query(max_length=64)] = "", limit: Limit = 100) -> ApiKeyPage:
    """Those of workers are left out; they come and go with them."""
    rows = await store.page(connection, after=after, limit=limit)
    items = [ApiKeyOut.model_validate(row) for row in rows.items]
    return ApiKeyPage(items=items, next=rows.next(lambda row: str(row["id"])))


@router.post(
    "/{key_id}/rotate",
    operation_id="rotate_key",
    summary="Give a key another secret",
    dependencies=[UNCACHED],
    responses=responses_for(KeyNotFound),
)
async def rotate(
    key_id: Annotated[str, Path(max_length=64)], rotation: RotationIn, connection: Writing, caller: Caller
) -> ApiKeyCreated:
    """The answer holds the new one. The former is good for `overlap_seconds` more, 0 ends it at once.

    A rotation within the overlap of another ends the secret before the former one.
    """
    rotated = await service.rotate_key(
        connection,
        key_id,
        overlap_seconds=rotation.overlap_seconds,
        expires_in_seconds=rotation.expires_in_seconds,
        by=caller.key_id,
        reason=rotation.reason,
        maker_withheld=caller.withheld,
    )
    return _created(rotated)


@router.delete(
    "/{key_id}",
    operation_id="revoke_key",
    summary="Revoke a key",
    status_code=204,
    response_model=None,
    responses={200: {"model": RevokedOut, "description": "with `evict_workers`"}, **responses_for(KeyNotFound)},
)
async def revoke(
    key_id: Annotated[str, Path(max_length=64)],
    database: InBatches,
    services: ServicesDep,
    caller: Caller,
    response: Response,
    evict_workers: Annotated[bool, Query(description="also evict the live workers that registered with it")] = False,
    reason: ReasonQuery = "",
) -> RevokedOut | None:
    """It stops working within 1 s everywhere, and registers no worker any more. Safe to repeat.

    A worker is evicted with its own key.
    """
    evictor = services[WorkerEvictor]
    async with database.transaction() as connection:
        await service.revoke_key(connection, key_id, caller.key_id, reason, evictor=evictor)
    if not evict_workers:
        return None
    response.status_code = 200
    return RevokedOut(evicted_workers=await evictor.evict_registered_by(database, key_id, caller.key_id))


def _created(key: CreatedKey) -> ApiKeyCreated:
    return ApiKeyCreated.model_validate({**key.description(), "expires_at": key.expires_at, "key": key.text})
