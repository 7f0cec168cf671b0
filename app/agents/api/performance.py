"""Route of the ratings that the Supervisor gives results once it has compared them."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from app.agents.service import performance as service
from app.agents.service.performance import RatingInput
from app.http.bodies import LISTS_BYTES, body_limit
from app.http.fields import AgentName, Body, Word
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Writing
from app.kernel.access import Scope
from app.kernel.errors import Forbidden
from app.queue.errors import IdempotencyMismatch, TaskNotCompleted, TaskNotFound

router = Router(prefix="/metrics", tags=["agents"])
_REFUSALS = responses_for(TaskNotFound, TaskNotCompleted, IdempotencyMismatch)
_ID = "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"
_EXAMPLE: JsonDict = {
    "request_id": _ID,
    "items": [
        {"task_id": _ID, "quality": 0.81, "basis": "elo"},
        {"agent_type": "ranking", "quality": 0.6},
    ],
}


class JudgementIn(Body):
    """How good the result of one task is, or the work of an agent as such."""

    task_id: UUID | None = Field(None, description="a completed task; a later judgement of it replaces this one")
    agent_type: AgentName | None = Field(None, description="instead of a task: one more result of this agent")
    quality: float = Field(ge=0, le=1, description="for example the probability to win a match")
    basis: Word | None = Field(None, description="how it was judged")

    @model_validator(mode="after")
    def _name_one(self) -> Self:
        if (self.task_id is None) == (self.agent_type is None):
            raise ValueError("name either a task_id or an agent_type")
        return self


class JudgementsIn(Body):
    """A batch; all of it is taken, or nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    request_id: UUID = Field(description="repeat it when the answer was lost: nothing is counted twice")
    items: Annotated[list[JudgementIn], Field(min_length=1, max_length=500, fail_fast=True)]


class JudgedOut(BaseModel):
    """How many were taken."""

    accepted: int


@router.post(
    "/performance",
    operation_id="judge_results",
    summary="Judge results",
    openapi_extra=body_limit(LISTS_BYTES),
    dependencies=[requires(Scope.SUBMIT)],
    responses=_REFUSALS,
    status_code=202,
)
async def judge(batch: JudgementsIn, connection: Writing, caller: Caller, namespace: Within) -> JudgedOut:
    """What became known of results after they were handed in, as Elo ratings do after ranking.

    It counts with the agents within a few seconds, and moves their weights like a quality told with the result. Keys of
    one namespace judge results only: an agent as such is of the whole service.
    """
    if namespace is not None and any(item.task_id is None for item in batch.items):
        raise Forbidden("an agent is of the whole service; judge the results of tasks")
    ratings = [RatingInput(**item.model_dump()) for item in batch.items]
    count = await service.record_ratings(connection, batch.request_id, caller.key_id, ratings, namespace)
    return JudgedOut(accepted=count)
