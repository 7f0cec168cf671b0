"""Keys of people, supervisors and pools."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from app.admin.errors import KeyRefused
from app.admin.rules.keys import namespace_of
from app.admin.service import access as service
from app.admin.store import keys as store
from app.http.fields import Body, Limit, Moment, Word
from app.http.guard import UNCACHED, requires
from app.http.problems import responses_for
from app.http.transactions import Reading, Writing
from app.kernel.access import Role, Scope
from app.kernel.errors import KeyNotFound

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[requires(Scope.KEYS)])


class ApiKeyIn(Body):
    """What the key is for."""

    role: Role
    label: Word
    withheld: frozenset[Scope] = Field(default=frozenset(), description="scopes of the role that it is not to have")
    namespace: Word | None = Field(None, description="of a supervisor or reader; `default` where it is not given")
    all_namespaces: bool = Field(False, description="for a reader, instead of a namespace")


class ApiKeyCreated(BaseModel):
    """The only time that the key is shown."""

    id: str
    role: Role
    label: str
    namespace: str | None = Field(description="null: of the whole service")
    withheld: list[Scope]
    key: str


class ApiKeyOut(BaseModel):
    """A key without its secret, which nobody keeps."""

    id: str
    role: Role
    label: str
    namespace: str | None = Field(description="null: of the whole service")
    withheld: list[Scope]
    created_at: Moment
    revoked_at: Moment | None


class ApiKeyPage(BaseModel):
    """By id."""

    items: list[ApiKeyOut]
    next: str | None


@router.post("", summary="Create a key", status_code=201, dependencies=[UNCACHED], responses=responses_for(KeyRefused))
async def create(key: ApiKeyIn, connection: Writing) -> ApiKeyCreated:
    """The answer holds the key; only its SHA-256 is kept.

    Workers get their keys when they register: what they register with is a `pool` key.
    """
    owner: dict[str, Any] = {"namespace": key.namespace, "is_of_all": key.all_namespaces}
    key_id, text = await service.create_key(connection, key.role, key.label, key.withheld, **owner)
    namespace = namespace_of(key.role, **owner)
    same = {"role": key.role, "label": key.label, "withheld": sorted(key.withheld)}
    return ApiKeyCreated(id=key_id, namespace=namespace, key=text, **same)


@router.get("", summary="List keys")
async def page(connection: Reading, after: Annotated[str, Query(max_length=64)] = "", limit: Limit = 100) -> ApiKeyPage:
    """Those of workers are left out; they come and go with them."""
    rows = await store.page(connection, after=after, limit=limit + 1)
    following = rows[limit - 1]["id"] if len(rows) > limit else None
    return ApiKeyPage(items=[ApiKeyOut.model_validate(row) for row in rows[:limit]], next=following)


@router.delete("/{key_id}", summary="Revoke a key", status_code=204, responses=responses_for(KeyNotFound))
async def revoke(key_id: str, connection: Writing) -> None:
    """It stops working within 5 s everywhere."""
    await service.revoke_key(connection, key_id)
