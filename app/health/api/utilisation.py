"""Utilisation of hosts, workers and the pool over time."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.db.database import now
from app.health.rules.utilisation import Measure, Step, UtilisationPolicy, step_starts
from app.health.store import utilisation as store
from app.http import computing
from app.http.fields import Bound, Moment, Word
from app.http.guard import requires
from app.http.json import JsonAnswer
from app.http.routing import Router
from app.http.services import ServicesDep
from app.kernel.access import Scope

router = Router(prefix="/metrics", tags=["health"])
_MAX_POINTS = UtilisationPolicy().max_points
# Of one host, the workers and the pool there are seven a step.
_MAX_FIGURES = 12_000
_MINUTE = 60
_DIGITS = 2


class SpreadOut(BaseModel):
    """Of all samples within a step; `workers` have the lowest and highest of any worker."""

    min: float
    mean: float
    max: float


class UtilisationStepOut(BaseModel):
    """What was measured within a step; null where nothing was, which is not zero."""

    at: Moment
    cpu_percentage: SpreadOut | None
    memory_percentage: SpreadOut | None
    busy_percentage: SpreadOut | None = Field(description="of `pool`: workers that hold a task")
    cores: SpreadOut | None = Field(description="of `workers`: processor cores that all of them use")
    memory_gb: SpreadOut | None = Field(description="of `workers`: memory that all of them use")


class UtilisationOut(BaseModel):
    """The steps of each subject, all of the same length and without gaps."""

    since: Moment
    until: Moment
    step_seconds: int
    subjects: dict[str, list[UtilisationStepOut]] = Field(
        description="`pool`, `workers`, and `host:<name>` of each host"
    )


@router.get(
    "/utilisation",
    operation_id="get_utilisation",
    summary="Read how busy all were",
    dependencies=[requires(Scope.MONITOR, costly=True)],
    response_model=UtilisationOut,
)
async def utilisation(
    services: ServicesDep,
    since: Annotated[Bound | None, Query(description="by default an hour before `until`")] = None,
    until: Annotated[Bound | None, Query(description="by default now")] = None,
    step: Annotated[int, Query(ge=_MINUTE, le=86_400, multiple_of=_MINUTE, description="seconds")] = _MINUTE,
    subject: Annotated[Word | None, Query(description="only this one")] = None,
) -> Response:
    """Hosts, workers and the pool over time, sampled every 5 s and kept by the minute as long as history is.

    Up to 1,500 steps at once, and 12,000 figures of all subjects together.

    Steps are counted from 1970, so the same step is the same whenever it is asked for.
    """
    async with services.database.reading() as connection:
        end = until or await now(connection)
        begin, length = since or end - timedelta(hours=1), timedelta(seconds=step)
        _check(begin, end, step)
        # Minutes are stored whole, so the first one counts also where `since` cuts it.
        figures = await store.read_steps(
            connection,
            since=begin.replace(second=0, microsecond=0),
            until=end,
            step=length,
            subject=subject,
            limit=_MAX_FIGURES + 1,
        )
    if len(figures) > _MAX_FIGURES:
        raise _refusal(f"there would be over {_MAX_FIGURES:,} figures; take a longer step, or `subject` for one of all")
    return JsonAnswer(await computing.run(_render, figures, begin, end, length))


def _render(figures: Sequence[Step], begin: datetime, end: datetime, step: timedelta) -> bytes:
    places = {(figure.subject, figure.measure, figure.start): figure for figure in figures}
    subjects = sorted({figure.subject for figure in figures})
    steps = step_starts(begin, end, step)
    page = UtilisationOut(
        since=begin,
        until=end,
        step_seconds=int(step.total_seconds()),
        subjects={name: [_step(places, name, start) for start in steps] for name in subjects},
    )
    return page.model_dump_json().encode()


def _check(since: datetime, until: datetime, step: int) -> None:
    seconds = (until - since).total_seconds()
    if seconds / step > _MAX_POINTS:
        smallest_step = -(-int(seconds) // (_MAX_POINTS * _MINUTE)) * _MINUTE
        message = f"there would be {seconds / step:,.0f} steps; take a step of {smallest_step:,} s, or a shorter time"
        raise _refusal(message)


def _refusal(message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "steps", "loc": ("query", "step"), "msg": message}])


def _step(places: dict[tuple[str, Measure, datetime], Step], subject: str, start: datetime) -> UtilisationStepOut:
    def spread(measure: Measure) -> SpreadOut | None:
        step = places.get((subject, measure, start))
        if step is None:
            return None
        return SpreadOut(min=round(step.low, _DIGITS), mean=round(step.mean, _DIGITS), max=round(step.high, _DIGITS))

    return UtilisationStepOut(
        at=start,
        cpu_percentage=spread(Measure.CPU),
        memory_percentage=spread(Measure.MEMORY),
        busy_percentage=spread(Measure.BUSY),
        cores=spread(Measure.CORES),
        memory_gb=spread(Measure.GIGABYTES),
    )
