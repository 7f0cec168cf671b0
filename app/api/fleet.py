"""How the managed pool recovers."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.api.access import requires
from app.api.connections import Reading
from app.api.fields import Limit, Moment
from app.domain.access import Scope
from app.store import fleet

router = APIRouter(tags=["workers"])


class ReplacementOut(BaseModel):
    """From the loss of a worker to its replacement's first lease."""

    id: int
    lost_worker_id: UUID
    worker_id: UUID | None
    worker_name: str
    cause: str
    detected_at: Moment
    requested_at: Moment | None
    started_at: Moment | None
    registered_at: Moment | None
    first_lease_at: Moment | None


class ReplacementPage(BaseModel):
    """Newest first."""

    items: list[ReplacementOut]
    next: str | None


@router.get("/replacements", summary="List replacements of lost workers", dependencies=[requires(Scope.READ)])
async def replacements(
    connection: Reading, after: Annotated[int | None, Query(ge=0)] = None, limit: Limit = 50
) -> ReplacementPage:
    """How long each step took, newest first."""
    rows = await fleet.replacements(connection, before=after, limit=limit + 1)
    following = str(rows[limit - 1]["id"]) if len(rows) > limit else None
    return ReplacementPage(items=[ReplacementOut.model_validate(row) for row in rows[:limit]], next=following)
