"""Metrics that workers and agents push, and their points minute by minute."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.db.database import now
from app.health.errors import MetricNotFound, SamplesRefused, TooManySeries
from app.health.rules.series import MetricKind, PushedSample, Series, SeriesPolicy, WorkerLabels
from app.health.service import series as service
from app.health.service.series import SampleBatch
from app.health.store import series as store
from app.health.store.series import PointFilter, StoredPoint
from app.http.bodies import LISTS_BYTES, body_limit
from app.http.fields import AgentName, Body, Bound, Moment, Word
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope, vouching_key
from app.queue.errors import IdempotencyMismatch
from app.queue.store import lease_ledger
from app.workers.service import workers

router = Router(prefix="/metrics", tags=["health"])
_POLICY = SeriesPolicy()
_HOUR = timedelta(hours=1)
# Far beyond what anybody measures, and still exact to a thousandth in a double.
_MAX_VALUE = 1e12
_EXAMPLE: dict[str, Any] = {
    "batch_id": "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c",
    "samples": [
        {"name": "hypotheses_written", "kind": "counter", "value": 3, "agent": "generation", "goal": "kepler"},
        {"name": "gpu_memory_percent", "kind": "gauge", "value": 61.5, "worker": "lab-1"},
    ],
}
_PUSHING = responses_for(SamplesRefused, TooManySeries, IdempotencyMismatch)
Name = Annotated[
    str, Field(max_length=100, pattern="^[a-z][a-z0-9_]{0,99}$", description="lower case, digits and underscores")
]


Value = Annotated[float, Field(strict=True, ge=-_MAX_VALUE, le=_MAX_VALUE)]


class SampleIn(Body):
    """One measurement."""

    name: Name
    kind: MetricKind = Field(description="gauge: a value of the moment; counter: what has come since the last sample")
    value: Value
    at: Moment | None = Field(None, description="when it was; by default when it arrives. Up to an hour ago")
    agent: AgentName | None = None
    worker: Word | None = None
    goal: Word | None = None

    @property
    def sample(self) -> PushedSample:
        """The sample as the operation takes it."""
        labels = {"agent": self.agent or "", "worker": self.worker or "", "goal": self.goal or ""}
        return PushedSample(series=Series(name=self.name, **labels), kind=self.kind, value=self.value, at=self.at)


class SamplesIn(Body):
    """A batch; all of it is taken, or nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    batch_id: UUID = Field(description="repeat it when the answer was lost: nothing is counted twice")
    samples: Annotated[list[SampleIn], Field(min_length=1, max_length=1000, fail_fast=True)]


class PushedOut(BaseModel):
    """How many samples were taken; `repeated` when that was before."""

    accepted: int
    repeated: bool


class PointOut(BaseModel):
    """The samples of a series within a minute: of a counter, `sum` is what came, and `per_second` how fast."""

    minute: Moment
    agent: str | None
    worker: str | None
    goal: str | None
    samples: int
    sum: float
    min: float
    mean: float
    max: float
    last: float
    per_second: float | None = Field(description="of a counter; null for a gauge")


class SeriesPage(BaseModel):
    """Series by series, each from its oldest minute on; pass `next` as `after` for what follows."""

    name: str
    kind: MetricKind
    since: Moment
    until: Moment
    items: list[PointOut]
    next: str | None


class NameOut(BaseModel):
    """A name, how many series bear it, and about when the last sample came."""

    name: str
    kind: MetricKind
    series: int
    last_at: Moment


class NamesOut(BaseModel):
    """Everything that was pushed within the last week."""

    items: list[NameOut]


@router.post(
    "/samples",
    operation_id="push_metrics",
    summary="Push metrics",
    openapi_extra=body_limit(LISTS_BYTES),
    status_code=201,
    dependencies=[requires(Scope.MEASURE)],
    responses={200: {"model": PushedOut, "description": "the batch was taken before"}, **_PUSHING},
)
async def push(batch: SamplesIn, connection: Writing, caller: Caller, response: Response) -> PushedOut:
    """Gauges and counters of workers and agents. What is answered is on disk; the same `batch_id` counts once.

    There may be 2,000 series, a series being a name with its labels, of which a worker may begin 50 and any key, with
    the workers that have registered by it, 1,600; and 100 names, of a key 80. They are kept by the minute for a week,
    and Prometheus reads them by name and agent. A worker's labels are its own name, an agent that it can run and a goal
    whose task it holds or has held within the hour. A worker that is not ready, or is to leave and holds no task,
    pushes none.
    """
    principal, labels = caller.key_id, None
    if caller.worker_id is not None:
        worker = await workers.read_serving(connection, caller.worker_id)
        principal = vouching_key(worker["provisioner"], worker["registered_by"])
        has_goals = any(sample.goal for sample in batch.samples)
        labels = WorkerLabels(
            worker=worker["name"],
            agents=frozenset(caller.capabilities),
            goals=await lease_ledger.recent_goals(connection, caller.worker_id, _POLICY.behind_seconds)
            if has_goals
            else frozenset(),
        )
    is_new = await service.push(
        connection,
        SampleBatch(
            batch_id=batch.batch_id,
            sent_by=caller.key_id,
            principal=principal,
            labels=labels,
            # Of the parsed batch: spaces and the order of keys in the JSON make no other batch.
            digest=hashlib.sha256(batch.model_dump_json().encode()).digest(),
            samples=[sample.sample for sample in batch.samples],
        ),
        _POLICY,
    )
    response.status_code = 201 if is_new else 200
    return PushedOut(accepted=len(batch.samples), repeated=not is_new)


@router.get(
    "/names",
    operation_id="list_metric_names",
    summary="List the metrics that were pushed",
    dependencies=[requires(Scope.READ)],
)
async def names(connection: Reading) -> NamesOut:
    """Each name with its kind and the number of its series."""
    return NamesOut(items=[NameOut.model_validate(n, from_attributes=True) for n in await store.names(connection)])


@router.get(
    "/series",
    operation_id="get_metric_series",
    summary="Read a metric that was pushed",
    dependencies=[requires(Scope.READ)],
    responses=responses_for(MetricNotFound),
)
async def series(
    connection: Reading,
    name: Annotated[Name, Query()],
    since: Annotated[Bound | None, Query(description="by default an hour before `until`")] = None,
    until: Annotated[Bound | None, Query(description="by default now")] = None,
    agent: Annotated[AgentName | None, Query()] = None,
    worker: Annotated[Word | None, Query()] = None,
    goal: Annotated[Word | None, Query()] = None,
    after: Annotated[
        str | None, Query(max_length=28, pattern="^[0-9]{1,18}/[0-9]{1,9}$", description="`next` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1500)] = 500,
) -> SeriesPage:
    """A point for each series and minute in which a sample came; a minute without any has no point."""
    metric = await service.metric_name(connection, name)
    end = until or await now(connection)
    selection = PointFilter(name=name, since=since or end - _HOUR, until=end, agent=agent, worker=worker, goal=goal)
    points = await store.page(connection, selection, after_point=_position(after), limit=limit)
    items, following = [_point_out(point, metric.kind) for point in points.items], points.next(_cursor)
    return SeriesPage(
        name=name, kind=metric.kind, since=selection.since, until=selection.until, items=items, next=following
    )


def _point_out(point: StoredPoint, kind: MetricKind) -> PointOut:
    return PointOut(
        minute=point.minute,
        agent=point.series.agent or None,
        worker=point.series.worker or None,
        goal=point.series.goal or None,
        samples=point.samples,
        sum=point.total,
        min=point.low,
        mean=point.total / point.samples,
        max=point.high,
        last=point.last,
        per_second=point.total / 60 if kind is MetricKind.COUNTER else None,
    )


def _cursor(point: StoredPoint) -> str:
    return f"{point.series_id}/{int(point.minute.timestamp()) // 60}"


def _position(cursor: str | None) -> tuple[int, datetime] | None:
    """Series and minute that a cursor names, the minute by its number since 1970."""
    if cursor is None:
        return None
    series_id, minute = map(int, cursor.split("/"))
    return series_id, datetime.fromtimestamp(60 * minute, UTC)
