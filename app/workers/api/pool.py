"""Routes of the pool as a whole: its state, and the replacements of lost workers."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.admin.service import config
from app.admin.service.config import CurrentConfig
from app.http.fields import Limit, Moment
from app.http.guard import requires
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.workers.service import pool as service
from app.workers.store import pool as records

router = Router(tags=["workers"])
_READ = [requires(Scope.READ)]
_SHARES = (0.5, 0.99)


class ByState(BaseModel):
    """Live workers."""

    starting: int = 0
    ready: int = 0
    busy: int = 0
    draining: int = 0


class RestingOut(BaseModel):
    """A place in the pool that gets no worker for now, because its workers keep dying young."""

    host: str
    slot: int
    deaths: int = Field(description="in a row, each within a minute of its start")
    until: Moment


class MemberWaitOut(BaseModel):
    """Members of an engine's pool that do not come, for one reason."""

    reason: str
    members: int
    is_failure: bool = Field(description="they will not come by themselves")


class HostOut(BaseModel):
    """A machine that starts workers, or the pool of an engine that does."""

    provisioner: str
    host: str
    size: int = Field(description="workers that it is to keep running")
    max_size: int | None = Field(description="that the pool of an engine may have; null: a machine, which is measured")
    member_waits: list[MemberWaitOut] = Field(description="why members of an engine's pool do not come")


class FleetOut(BaseModel):
    """The pool as a whole."""

    min_workers: int
    max_workers: int
    hosts: list[HostOut] = Field(description="those that have reported lately")
    workers: ByState
    total: int
    reduced_capacity: bool = Field(description="lost workers are not replaced, as the health report says")
    reduced_reason: str | None
    resting: list[RestingOut] = Field(description="the first to be tried again first")


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
    closed_at: Moment | None = Field(description="when it was given up")
    closed_reason: str | None


class ReplacementPage(BaseModel):
    """Newest first."""

    items: list[ReplacementOut]
    next: str | None


class ReplacementStepOut(BaseModel):
    """Seconds since the loss was detected."""

    p50: float
    p99: float


class ReplacementTimesOut(BaseModel):
    """How fast the newest replacements were, up to 1,000 of them."""

    replacements: int
    working: int = Field(description="those of them whose worker has received its first lease")
    since: Moment | None = Field(description="when the first of them was detected")
    requested: ReplacementStepOut | None
    started: ReplacementStepOut | None
    registered: ReplacementStepOut | None
    first_lease: ReplacementStepOut | None = Field(description="a worker for whom there is no work is in no hurry here")


@router.get(
    "/fleet", operation_id="get_fleet", summary="See the pool as a whole", dependencies=[requires(Scope.MONITOR)]
)
async def status(connection: Reading, services: ServicesDep) -> FleetOut:
    """Its bounds, hosts with the size of each, workers by state, and the places that rest because of crash loops."""
    pool = (await config.current(connection, services[CurrentConfig].initial)).document.worker_pool
    state = await service.status(connection)
    return FleetOut(
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        hosts=[HostOut.model_validate(host, from_attributes=True) for host in state.hosts],
        workers=ByState(**state.states),
        total=sum(state.states.values()),
        reduced_capacity=state.recovery.is_reduced,
        reduced_reason=state.recovery.reason or None,
        resting=[RestingOut.model_validate(slot, from_attributes=True) for slot in state.resting],
    )


@router.get(
    "/replacements", operation_id="list_replacements", summary="List replacements of lost workers", dependencies=_READ
)
async def replacements(
    connection: Reading, after: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None, limit: Limit = 50
) -> ReplacementPage:
    """How long each step took, newest first."""
    rows = await records.replacements(connection, below=after, limit=limit)
    items = [ReplacementOut.model_validate(row) for row in rows.items]
    return ReplacementPage(items=items, next=rows.next(lambda row: str(row["id"])))


@router.get(
    "/replacements/times",
    operation_id="get_replacement_times",
    summary="See how fast lost workers are replaced",
    dependencies=_READ,
)
async def times(connection: Reading) -> ReplacementTimesOut:
    """Median and 99th percentile of each step, from the detection of the loss to the first lease."""
    times = await records.replacement_times(connection, _SHARES)
    steps = {step: _step(percentiles) for step, percentiles in times.steps.items()}
    return ReplacementTimesOut(replacements=times.replacements, working=times.working, since=times.since, **steps)


def _step(percentiles: Sequence[float] | None) -> ReplacementStepOut | None:
    return None if percentiles is None else ReplacementStepOut(p50=percentiles[0], p99=percentiles[1])
