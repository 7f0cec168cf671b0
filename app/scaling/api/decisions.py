"""Decisions on the pool: what was decided and why, replayed, supposed, and in short for autoscalers."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.admin.api.config_schemas import apply_patch
from app.admin.errors import ConfigRefused
from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.http.fields import Limit
from app.http.guard import requires
from app.http.problems import responses_for
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.changes import changes
from app.scaling.api.schemas import (
    DifferenceOut,
    RecommendationOut,
    ReplayManyIn,
    ReplayManyOut,
    ScalingDecisionOut,
    ScalingDecisionPage,
    ScalingReplayOut,
    WhatIfIn,
    WhatIfOut,
    brief,
    recommended,
    replayed,
    supposed,
    whole,
)
from app.scaling.errors import DecisionNotFound
from app.scaling.service import history as service
from app.scaling.service.history import Variation
from app.scaling.store import decisions as store
from app.scaling.store.decisions import Kept

router = APIRouter(prefix="/scaling", tags=["scaling"])
_READ = [requires(Scope.READ)]
_NEWEST = 2**63 - 1
_FINDING = responses_for(DecisionNotFound)
DecisionId = Annotated[int, Path(ge=1, le=_NEWEST)]


@router.get("/decisions", summary="List decisions", dependencies=_READ)
async def page(
    connection: Reading,
    changes_only: Annotated[bool, Query(alias="changes", description="only those that changed something")] = False,
    after: Annotated[int, Query(ge=1, le=_NEWEST, description="`next` of the page before")] = _NEWEST,
    limit: Limit = 50,
) -> ScalingDecisionPage:
    """What was decided, newest first; each without its workers and its inputs, which can be many.

    Decisions that changed nothing are kept for a day, the others as long as the history of tasks.
    """
    found = await store.page(connection, before=after, limit=limit + 1, changes=changes_only)
    following = found[limit - 1].id if len(found) > limit else None
    return ScalingDecisionPage(items=[brief(kept) for kept in found[:limit]], next=following)


@router.get("/decisions/{decision_id}", summary="Read a decision", dependencies=_READ, responses=_FINDING)
async def read(
    decision_id: DecisionId,
    services: ServicesDep,
    inputs: Annotated[bool, Query(description="also all that it depends on")] = False,
) -> ScalingDecisionOut:
    """A decision in the specification's shape, and in plain words: what drove it, each limit, what was rejected."""
    kept = await _read(services.database, decision_id)
    return await asyncio.to_thread(whole, kept, inputs=inputs)


@router.post("/decisions/{decision_id}/replay", summary="Replay a decision", dependencies=_READ, responses=_FINDING)
async def replay(decision_id: DecisionId, services: ServicesDep) -> ScalingReplayOut:
    """Decide again from the same inputs, by the rules of today, and compare the texts of both outcomes."""
    kept = await _read(services.database, decision_id)
    return replayed(await asyncio.to_thread(service.replay, kept))


@router.post("/decisions/replay", summary="Replay many decisions", dependencies=_READ)
async def replay_many(asked: ReplayManyIn, services: ServicesDep) -> ReplayManyOut:
    """The same for the next so many decisions above an id; returns those that come out differently."""
    async with services.database.transaction() as connection:
        found = await store.onward(connection, after=asked.after, limit=asked.limit)
    # Away from the loop, since each takes milliseconds; and no connection is held meanwhile.
    results = [await asyncio.to_thread(service.replay, kept) for kept in found]
    different = [replayed(result) for result in results if not result.identical]
    following = found[-1].id if len(found) == asked.limit else None
    return ReplayManyOut(replayed=len(found), different=different, next=following)


@router.post(
    "/what-if",
    summary="Decide under another configuration",
    dependencies=_READ,
    responses=responses_for(DecisionNotFound, ConfigRefused),
)
async def what_if(asked: WhatIfIn, services: ServicesDep) -> WhatIfOut:
    """What would have been decided then, had the configuration been another. Changes nothing."""
    # Whatever takes milliseconds is away from the loop, and no connection is held meanwhile.
    kept = await _read(services.database, asked.decision_id)
    document = None
    if asked.config is not None or asked.mode is not None:
        inputs = await asyncio.to_thread(service.inputs_of, kept)
        async with services.database.transaction() as connection:
            base = await service.base_document(connection, inputs, asked.mode)
        document = apply_patch(base, asked.config or {})
    variation = Variation(
        document=document,
        mode=asked.mode,
        weights_changed="agent_weights" in (asked.config or {}),
        wait_target_seconds=asked.wait_target_seconds,
    )
    told = await asyncio.to_thread(service.what_if, kept, variation)
    decided, other = brief(kept), supposed(told)
    before = decided.model_dump(mode="json", exclude={"id"})
    after = other.model_dump(mode="json", include=set(before))
    differences = [DifferenceOut.model_validate(one, from_attributes=True) for one in changes(before, after)]
    return WhatIfOut(decided=decided, supposed=other, differences=differences)


@router.get("/recommendation", summary="Read how many workers there should be", dependencies=_READ)
async def recommendation(connection: Reading, services: ServicesDep) -> RecommendationOut:
    """In flat numbers, for autoscalers like KEDA's metrics-api scaler (`valueLocation: target_workers`).

    Read from one row, so it may be asked as often as one likes.
    """
    return recommended(await service.recommendation(connection, services[CurrentConfig].initial))


async def _read(database: Database, decision_id: int | None) -> Kept:
    async with database.transaction() as connection:
        return await service.read(connection, decision_id)
