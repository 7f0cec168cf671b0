"""Starting workers by hand."""

from typing import Any
from uuid import UUID, uuid4

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import Caller, requires
from app.api.connections import Writing
from app.api.fields import Body, Sentence
from app.api.problems import documented
from app.api.services import ServicesDep
from app.domain import errors
from app.domain.access import Scope
from app.operations import starting as operations
from app.operations.starting import StartOrder

router = APIRouter(tags=["workers"])
_EXAMPLE: dict[str, Any] = {
    "count": 2,
    "reason": "a long run tonight",
    "request_id": "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c",
}


class WorkersStartIn(Body):
    """How many workers more, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    count: int = Field(1, ge=1, le=1000)
    reason: Sentence = "asked by an operator"
    request_id: UUID | None = Field(None, description="repeat it when the answer was lost: nobody else is started")


class StartingOut(BaseModel):
    """A worker that is asked for."""

    worker_id: UUID
    name: str


class StartedOut(BaseModel):
    """What a call of `POST /workers/start` has done."""

    started: int
    workers: list[StartingOut] = Field(description="they register within seconds; read one by its id")


@router.post(
    "/workers/start",
    summary="Start workers",
    status_code=201,
    dependencies=[requires(Scope.OPERATE)],
    responses=documented(errors.StartRefused),
)
async def start(wanted: WorkersStartIn, caller: Caller, connection: Writing, services: ServicesDep) -> StartedOut:
    """On the hosts that start workers, the next where most room is left; within the maximum of the configuration and
    what the hosts suffice for, all or none.

    They stay until the scaling loop finds that they idle, or where the size of the pool is fixed until the loops of
    their host end. Safe to repeat with the same `request_id`.
    """
    order = StartOrder(
        request_id=wanted.request_id or uuid4(), count=wanted.count, by=caller.key_id, reason=wanted.reason
    )
    started = await operations.start(connection, services.config.initial, order)
    return StartedOut(
        started=len(started), workers=[StartingOut.model_validate(one, from_attributes=True) for one in started]
    )
