"""Route of why a task waits."""

from datetime import timedelta
from uuid import UUID

from fastapi import Depends
from pydantic import BaseModel, Field

from app.db.database import hold_moment
from app.diagnosis.rules.causes import Cause, Code
from app.diagnosis.service.diagnosis import Diagnosis, diagnose
from app.http.fields import Moment
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.states import TaskState
from app.queue.errors import TaskNotFound
from app.queue.rules.tasks import LeasePolicy

router = Router(prefix="/tasks", tags=["tasks"])


class MendOut(BaseModel):
    """A way to change it, by a command or a call where there is one."""

    text: str
    command: str | None = Field(description="for a terminal; words in capitals are yours to choose")
    call: str | None = Field(description="method and path of this API")


class CauseOut(BaseModel):
    """A cause, and what would change it."""

    code: Code
    text: str = Field(description="one sentence for people, which may change; programs go by the code")
    since: Moment | None
    until: Moment | None = Field(description="when it is over by itself, where that is known")
    mends: list[MendOut]


class PlaceOut(BaseModel):
    """Tasks of the same agent type that are leased before it, those of all namespaces."""

    ahead: int
    higher_priority: int = Field(description="those of them in lanes of higher priority")
    exact: bool = Field(description="false: there are thousands, and they are estimated")


class StartOut(BaseModel):
    """When it will start, by its place, the workers, their target and how long such tasks take."""

    p50: Moment = Field(description="half of such tasks have started by then")
    p90: Moment = Field(description="nine of ten have")


class BlockerOut(BaseModel):
    """A task that must complete before, and what it waits for itself."""

    task_id: UUID
    state: TaskState
    cause: CauseOut


class WhyOut(BaseModel):
    """The one cause for which a task is where it is."""

    task_id: UUID
    state: TaskState
    at: Moment
    cause: CauseOut = Field(description="the first that has to be over")
    then: list[CauseOut] = Field(description="what keeps it back after that, as things stand")
    blocker: BlockerOut | None = Field(description="of a blocked task: the first that it depends on")
    place: PlaceOut | None = Field(description="null unless it waits for nothing but a worker")
    start: StartOut | None = Field(description="null unless it is in line for workers that are there")


async def _one_moment(connection: Reading) -> None:
    # A task that is leased between two statements would be told of as neither waiting nor running.
    await hold_moment(connection)


@router.get(
    "/{task_id}/why",
    operation_id="explain_task",
    summary="See why a task waits",
    dependencies=[requires(Scope.READ, Scope.CONTENT), Depends(_one_moment)],
    responses=responses_for(TaskNotFound),
)
async def read(task_id: UUID, services: ServicesDep, connection: Reading, caller: Caller, namespace: Within) -> WhyOut:
    """The one cause, what would change it, and what comes after it; of a blocked task also why its blocker waits.

    All of one moment. Assignments of workers are no cause: they prefer, and exclude nothing.
    """
    diagnosis = await diagnose(
        connection,
        task_id,
        namespace,
        policy=services[LeasePolicy],
        is_confined=caller.is_confined,
    )
    return why_out(diagnosis)


def why_out(diagnosis: Diagnosis) -> WhyOut:
    """The diagnosis as it is shown."""
    first, *others = diagnosis.causes
    place, start, behind = diagnosis.place, diagnosis.start, diagnosis.behind
    moments = [diagnosis.at + timedelta(seconds=s) for s in (start.p50_seconds, start.p90_seconds)] if start else None
    return WhyOut(
        task_id=diagnosis.task_id,
        state=diagnosis.state,
        at=diagnosis.at,
        cause=_cause(first),
        then=[_cause(cause) for cause in others],
        blocker=BlockerOut(task_id=behind.task_id, state=behind.state, cause=_cause(behind.causes[0]))
        if behind
        else None,
        place=PlaceOut(ahead=place.ahead, higher_priority=place.higher, exact=place.is_exact) if place else None,
        start=StartOut(p50=moments[0], p90=moments[1]) if moments else None,
    )


def _cause(cause: Cause) -> CauseOut:
    mends = [MendOut(text=mend.text, command=mend.command, call=mend.call) for mend in cause.mends]
    return CauseOut(code=cause.code, text=cause.text, since=cause.since, until=cause.until, mends=mends)
