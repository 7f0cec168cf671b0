"""Routes of scaling decisions: read, explain, replay, try under another configuration, recommend a size."""

from typing import Annotated

from fastapi import Path, Query

from app.admin.api.config_schemas import apply_patch
from app.admin.errors import ConfigRefused
from app.admin.service.config import CurrentConfig
from app.db.database import Database
from app.http import computing
from app.http.fields import NEWEST, Below, Limit
from app.http.guard import requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.changes import changes
from app.scaling.api.schemas import (
    RecommendationOut,
    ReplayManyIn,
    ReplayManyOut,
    ScalingDecisionOut,
    ScalingDecisionPage,
    ScalingReplayOut,
    WhatIfIn,
    WhatIfOut,
    brief,
    hypothetical,
    whole,
)
from app.scaling.errors import DecisionNotFound
from app.scaling.service import history as service
from app.scaling.service.history import Variation
from app.scaling.store import decisions as store
from app.scaling.store.decisions import StoredDecision

router = Router(prefix="/scaling", tags=["scaling"])
_READ = [requires(Scope.READ)]
_COSTLY = [requires(Scope.READ, costly=True)]
_MONITOR = [requires(Scope.MONITOR)]
_FINDING = responses_for(DecisionNotFound)
DecisionId = Annotated[int, Path(ge=1, le=NEWEST)]


@router.get("/decisions", operation_id="list_decisions", summary="List decisions", dependencies=_MONITOR)
async def page(
    connection: Reading,
    changes_only: Annotated[bool, Query(alias="changes", description="only those that changed something")] = False,
    after: Below = NEWEST,
    limit: Limit = 50,
) -> ScalingDecisionPage:
    """What was decided, newest first; each without its workers and its inputs, which can be many.

    Decisions that changed nothing are kept for a day, the others as long as the history of tasks.
    """
    decisions = await store.page(connection, below=after, limit=limit, changes=changes_only)
    items = [brief(decision) for decision in decisions.items]
    return ScalingDecisionPage(items=items, next=decisions.next(lambda decision: decision.id))


@router.get(
    "/decisions/{decision_id}",
    operation_id="get_decision",
    summary="Read a decision",
    dependencies=_MONITOR,
    responses=_FINDING,
)
async def read(
    decision_id: DecisionId,
    services: ServicesDep,
    inputs: Annotated[bool, Query(description="also all that it depends on")] = False,
) -> ScalingDecisionOut:
    """A decision in the specification's shape, and in plain words: what drove it, each limit, what was rejected."""
    decision = await _read(services.database, decision_id)
    return await computing.run(whole, decision, inputs=inputs)


@router.post(
    "/decisions/{decision_id}/replay",
    operation_id="replay_decision",
    summary="Replay a decision",
    dependencies=_READ,
    responses=_FINDING,
)
async def replay(decision_id: DecisionId, services: ServicesDep) -> ScalingReplayOut:
    """Decide again from the same inputs, by the rules of today, and compare the texts of both outcomes."""
    decision = await _read(services.database, decision_id)
    result = await computing.run(service.replay, decision)
    return ScalingReplayOut.model_validate(result, from_attributes=True)


@router.post(
    "/decisions/replay", operation_id="replay_decisions", summary="Replay many decisions", dependencies=_COSTLY
)
async def replay_many(call: ReplayManyIn, services: ServicesDep) -> ReplayManyOut:
    """The same for the next so many decisions above an id; returns those that come out differently."""
    async with services.database.reading() as connection:
        decisions = await store.onward(connection, above=call.after, limit=call.limit)
    # Away from the loop, since each takes milliseconds; and no connection is held meanwhile.
    results = [await computing.run(service.replay, decision) for decision in decisions]
    different = [result for result in results if not result.identical]
    following = decisions[-1].id if len(decisions) == call.limit else None
    answer = {"replayed": len(decisions), "different": different, "next": following}
    return ReplayManyOut.model_validate(answer, from_attributes=True)


@router.post(
    "/what-if",
    operation_id="try_what_if",
    summary="Decide under another configuration",
    dependencies=_READ,
    responses=responses_for(DecisionNotFound, ConfigRefused),
)
async def what_if(call: WhatIfIn, services: ServicesDep) -> WhatIfOut:
    """What would have been decided then, had the configuration been another. Changes nothing."""
    # Whatever takes milliseconds is away from the loop, and no connection is held meanwhile.
    actual = await _read(services.database, call.decision_id)
    document = None
    if call.config is not None or call.mode is not None:
        inputs = await computing.run(service.inputs_of, actual)
        async with services.database.reading() as connection:
            base = await service.base_document(connection, inputs, call.mode)
        document = apply_patch(base, call.config or {})
    variation = Variation(
        document=document,
        mode=call.mode,
        weights_changed="agent_weights" in (call.config or {}),
        wait_target_seconds=call.wait_target_seconds,
    )
    outcome = await computing.run(service.what_if, actual, variation)
    actual_out, hypothetical_out = brief(actual), hypothetical(outcome)
    actual_json = actual_out.model_dump(mode="json", exclude={"id"})
    hypothetical_json = hypothetical_out.model_dump(mode="json", include=set(actual_json))
    differences = changes(actual_json, hypothetical_json)
    answer = {"decided": actual_out, "supposed": hypothetical_out, "differences": differences}
    return WhatIfOut.model_validate(answer, from_attributes=True)


@router.get(
    "/recommendation",
    operation_id="get_recommendation",
    summary="Read how many workers there should be",
    dependencies=_MONITOR,
)
async def recommendation(connection: Reading, services: ServicesDep) -> RecommendationOut:
    """In flat numbers, for autoscalers like KEDA's metrics-api scaler (`valueLocation: target_workers`).

    Read from one row, so it may be asked as often as one likes.
    """
    recommended_size = await service.recommendation(connection, services[CurrentConfig].initial)
    return RecommendationOut.model_validate(recommended_size, from_attributes=True)


async def _read(database: Database, decision_id: int | None) -> StoredDecision:
    async with database.reading() as connection:
        return await service.read(connection, decision_id)
