"""The specification's system health report."""

import asyncio
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from app.admin.rules.config import weight_name
from app.health.rules.finding import Finding, Overall
from app.health.rules.report import Report
from app.health.service.snapshot_cache import SnapshotCache
from app.http.fields import Moment
from app.http.guard import admit_to_route, requires
from app.http.json import JsonAnswer
from app.http.routing import Router
from app.http.services import ServicesDep
from app.kernel.access import Scope
from app.kernel.errors import DatabaseUnavailable, Forbidden

router = Router(tags=["health"])
_RETRY_AFTER = {"Retry-After": "1"}
# The report is promised within a second, also where the key has to be looked up in a database that does not answer.
_KEY_SECONDS = 0.8
_FIGURES = {"worker_pool_health", "queue_health", "resource_utilization"}
_EXAMPLE: dict[str, Any] = {
    "timestamp": "2026-01-31T12:00:00+00:00",
    "overall_health": "degraded",
    "worker_pool_health": {"total_workers": 12, "healthy_workers": 11, "utilization_percentage": 83.3},
    "queue_health": {
        "total_pending_tasks": 240,
        "oldest_task_age_seconds": 31,
        "bottleneck_agent": "generation_agent",
    },
    "resource_utilization": {"cpu_percentage": 86.2, "memory_percentage": 41.0, "llm_api_usage_percentage": 25.0},
    "reasons": [
        {
            "code": "cpu_short",
            "level": "degraded",
            "message": "the processors of host:lab-1 are 86 % in use, on the mean of the last minutes",
            "advice": "add hosts, lower worker_pool.max_workers, or submit less",
        }
    ],
}


class ReasonOut(BaseModel):
    """A finding. A `note` leaves the report as it is: it tells, for one, which figure nobody has measured."""

    code: str = Field(description="stable")
    level: Literal["note", "degraded", "critical"]
    message: str | None
    advice: str | None = Field(description="what to do, with commands between backticks; null: nothing")


class PoolHealthOut(BaseModel):
    """Live workers; `healthy` ones have passed their first health report and have not fallen silent."""

    total_workers: int
    healthy_workers: int
    utilization_percentage: float = Field(description="of the workers that may be leased to, how many hold a task")


class QueueHealthOut(BaseModel):
    """What waits: pending, delayed, held and blocked tasks. The oldest is that of those that may run."""

    total_pending_tasks: int
    oldest_task_age_seconds: int
    bottleneck_agent: str | None = Field(description="most outstanding work per worker; null while nothing waits")


class ResourcesOut(BaseModel):
    """Of the host that has the least left, among those where the API or the loops run; language-model permits."""

    cpu_percentage: float
    memory_percentage: float
    llm_api_usage_percentage: float


class HealthReportOut(BaseModel):
    """The system as a whole. Figures and messages are null for callers without a key that may read the status."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    timestamp: Moment
    overall_health: Overall
    worker_pool_health: PoolHealthOut | None
    queue_health: QueueHealthOut | None
    resource_utilization: ResourcesOut | None
    reasons: list[ReasonOut]


@router.get(
    "/health/report",
    operation_id="get_health_report",
    summary="Is the system well?",
    dependencies=[requires(Scope.PUBLIC)],
    response_model=HealthReportOut,
    responses={503: {"model": HealthReportOut, "description": "the database is away or too slow; figures are old"}},
)
async def health_report(request: Request, services: ServicesDep) -> Response:
    """Healthy, degraded or critical, with the figures of the specification and every reason.

    Answers within a second, also when the database does not: then with 503, `critical`, and the figures that were
    known last. At any other time with 200, whatever the verdict. It needs no key, because keys cannot be checked
    without the database; whoever shows none with `status:read` for the whole service gets the verdict and the codes
    alone. Costs the same however many tasks there are, and is made at most once a second.
    """
    (report, is_current), is_whole = await asyncio.gather(services[SnapshotCache].report(), _may_read(request))
    shown_report = report_out(report) if is_whole else _without_figures(report_out(report))
    response = JsonAnswer(shown_report.model_dump_json().encode(), 200 if is_current else 503)
    response.headers.update({} if is_current else _RETRY_AFTER)
    return response


async def _may_read(request: Request) -> bool:
    """Whether a key lets the caller see the figures; not one that cannot be checked now. Raises Unauthenticated."""
    if "authorization" not in request.headers:
        return False
    try:
        async with asyncio.timeout(_KEY_SECONDS):
            await admit_to_route(request, Scope.MONITOR)
    except (Forbidden, DatabaseUnavailable, TimeoutError):
        return False
    return True


def _without_figures(report: HealthReportOut) -> HealthReportOut:
    reasons = [reason.model_copy(update={"message": None, "advice": None}) for reason in report.reasons]
    return report.model_copy(update={**dict.fromkeys(_FIGURES), "reasons": reasons})


def report_out(report: Report) -> HealthReportOut:
    """The report in the shape of the specification."""
    return HealthReportOut(
        timestamp=report.at,
        overall_health=report.overall,
        worker_pool_health=PoolHealthOut.model_validate(report, from_attributes=True),
        queue_health=QueueHealthOut(
            total_pending_tasks=report.pending_tasks,
            oldest_task_age_seconds=report.oldest_task_age_seconds,
            bottleneck_agent=weight_name(report.bottleneck) if report.bottleneck else None,
        ),
        resource_utilization=ResourcesOut.model_validate(report, from_attributes=True),
        reasons=[reason_out(reason) for reason in report.reasons],
    )


def reason_out(finding: Finding) -> ReasonOut:
    """A finding in the shape of the answer."""
    level = finding.level.value
    return ReasonOut(code=finding.code, level=level, message=finding.message, advice=finding.advice or None)
