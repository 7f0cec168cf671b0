"""Research goals: how they share the queue."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from app.api.access import requires
from app.api.connections import Reading, Writing
from app.api.fields import Body, Word
from app.domain.access import Scope
from app.operations import goals as operations
from app.store import goals as store

router = APIRouter(prefix="/goals", tags=["goals"])
Weight = Annotated[float, Field(ge=0.01, le=100, description="2 gets twice the share of 1 wherever both wait")]
GoalId = Annotated[Word, Path()]


class WeightIn(Body):
    """A goal's share of each lane in which its tasks wait, against other goals; 1 where nobody has said otherwise."""

    weight: Weight


class WeightOut(BaseModel):
    """A goal and its weight."""

    goal_id: str
    weight: float


@router.put("/{goal_id}/weight", summary="Give a goal its weight", dependencies=[requires(Scope.SUBMIT)])
async def weigh(goal_id: GoalId, weight: WeightIn, connection: Writing) -> WeightOut:
    """For the tasks that are submitted from now on; within a second in all processes. The goal may have none yet."""
    await operations.weigh(connection, goal_id, weight.weight)
    return WeightOut(goal_id=goal_id, weight=weight.weight)


@router.get("/{goal_id}/weight", summary="Read the weight of a goal", dependencies=[requires(Scope.READ)])
async def read(goal_id: GoalId, connection: Reading) -> WeightOut:
    """1 for a goal that nobody has weighed."""
    return WeightOut(goal_id=goal_id, weight=await store.weight(connection, goal_id))
