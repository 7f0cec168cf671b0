"""The step of degradation in force with its reason, and the hold by which operators overrule it."""

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from app.http.fields import NEWEST, Below, Body, Limit, Moment, Reason
from app.http.guard import Caller, requires
from app.http.routing import Router
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.queue.api.advice import AdviceOut
from app.queue.rules import degradation as rules
from app.queue.rules.degradation import MEANINGS, TOP_STEP, DegradationStep, LadderMove
from app.queue.service import degradation as service
from app.queue.store import degradation as store
from app.queue.store.degradation import LadderState, RecordedMove
from app.workers.service import pool as pool_service

router = Router(prefix="/degradation", tags=["degradation"])


class HoldOut(BaseModel):
    """An operator keeps the step."""

    until: Moment
    by: str = Field(description="id of the key that was shown")


class ReducedOut(BaseModel):
    """Whether lost workers cannot be replaced, and what that costs."""

    is_reduced: bool
    reason: str | None
    lost_share: float = Field(description="of the pool, from 0 to 1")


class DegradationOut(BaseModel):
    """Where the ladder stands, and what that means for whoever works or submits."""

    step: int = Field(description="0: everything runs as usual; each step includes those below it")
    meaning: str
    since: Moment
    expires_at: Moment | None = Field(description="when the step is over unless it is renewed")
    reason: str | None
    hold: HoldOut | None = Field(description="null: it moves by itself")
    advice: AdviceOut | None
    suspended_agents: list[AgentType] = Field(description="those that have the least share")
    looked_at: Moment | None = Field(description="when the loops last looked at the resources; null: never")
    strain: dict[str, Any] = Field(description="what was seen at the last look; null: not measured")
    reduced_capacity: ReducedOut


class MoveOut(BaseModel):
    """The ladder moved, or an operator held it or let it go."""

    id: int
    at: Moment
    move: LadderMove
    before: int
    after: int
    reason: str
    by: str | None = Field(description="id of the key that was shown; null: the rule")
    until: Moment | None = Field(description="when the step is over unless it is renewed")


class MovePage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[MoveOut]
    next: int | None


class HoldIn(Body):
    """A step to keep for some minutes, or null for the rule."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"step": 2, "minutes": 30, "reason": "host upgrade"}]})

    step: int | None = Field(
        ge=0, le=TOP_STEP, strict=True, description="0: as usual, whatever happens; null: by the rule"
    )
    minutes: float = Field(30, gt=0, le=1440, description="how long; then the rule takes over, step by step")
    reason: Reason = ""


@router.get("", operation_id="get_degradation", summary="Is anything given up?", dependencies=[requires(Scope.READ)])
async def read(connection: Reading) -> DegradationOut:
    """The step in force with its reason and time box. Cheap enough to be asked every second.

    Lease and heartbeat answers and `GET /queues` carry the advice too, and answers to submits the header
    `Convener-Degradation`, as long as there is any. Every move is an event `degradation.moved`.
    """
    return await _degradation_out(connection, await store.read(connection))


@router.put(
    "",
    operation_id="hold_degradation",
    summary="Hold a step, or let the rule decide",
    dependencies=[requires(Scope.OPERATE)],
)
async def put(body: HoldIn, connection: Writing, caller: Caller) -> DegradationOut:
    """Audited. An operator may skip steps, which the rule never does; sending it again holds it from now on."""
    if body.step is None:
        state = await service.release(connection, by=caller.key_id, reason=body.reason)
    else:
        length = timedelta(minutes=body.minutes)
        step, by = DegradationStep(body.step), caller.key_id
        state = await service.hold(connection, step, length, by=by, reason=body.reason)
    return await _degradation_out(connection, state)


@router.get(
    "/history",
    operation_id="list_degradation_moves",
    summary="How the ladder moved",
    dependencies=[requires(Scope.READ)],
)
async def history(
    connection: Reading,
    after: Below = NEWEST,
    limit: Limit = 100,
) -> MovePage:
    """Every move with its reason, newest first."""
    moves = await store.history(connection, below_id=after, limit=limit)
    return MovePage(items=[_move_out(move) for move in moves.items], next=moves.next(lambda move: move.id))


def _move_out(move: RecordedMove) -> MoveOut:
    plain = {name: getattr(move, name) for name in ("id", "at", "move", "reason", "by", "until")}
    return MoveOut(before=move.old_step.value, after=move.new_step.value, **plain)


async def _degradation_out(connection: AsyncConnection, state: LadderState) -> DegradationOut:
    ladder, step = state.ladder, rules.effective_step(state.ladder, state.at)
    advice = service.CurrentStep(step=step).advice
    recovery = await pool_service.recovery(connection)
    return DegradationOut(
        step=step.value,
        meaning=MEANINGS[step],
        since=ladder.since,
        expires_at=ladder.expires_at if step else None,
        reason=ladder.reason or None,
        hold=HoldOut(until=ladder.hold.until, by=ladder.hold.by) if ladder.hold else None,
        advice=AdviceOut(**advice) if advice else None,
        suspended_agents=sorted(rules.suspended_agents(step)),
        looked_at=ladder.looked_at,
        strain=dict(state.strain),
        reduced_capacity=ReducedOut(
            is_reduced=recovery.is_reduced, reason=recovery.reason or None, lost_share=recovery.lost_share
        ),
    )
