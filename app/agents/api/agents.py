"""Routes of the agents: performance, weight, speed and trend."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, Field

from app.admin.service import config
from app.admin.service.config import CurrentConfig
from app.agents.service.agents import AgentReport, AgentReports
from app.agents.store import performance
from app.agents.store.performance import PerformanceSpan
from app.http.fields import AgentName, Moment
from app.http.guard import requires
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.agents import AgentType

router = Router(prefix="/agents", tags=["agents"])
_READ = [requires(Scope.READ)]


class Per(StrEnum):
    """How long each span of a trend is."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


_STEPS = {Per.MINUTE: timedelta(minutes=1), Per.HOUR: timedelta(hours=1), Per.DAY: timedelta(days=1)}


class EvidenceOut(BaseModel):
    """What the effectiveness rests on: the last results of the agent."""

    results: int = Field(description="remembered; older ones count for less than a hundredth")
    succeeded: int
    judged: int = Field(description="of those that succeeded")
    quality: float | None = Field(description="mean of those that were judged")
    decayed_results: float = Field(description="how many they count for, the older the less")


class AgentOut(BaseModel):
    """One agent."""

    agent_type: AgentType
    effectiveness: float | None = Field(
        description="lower bound of success times quality, as sure as of the least known agent; null: too few results"
    )
    evidence: EvidenceOut | None
    weight: float = Field(description="in force")
    configured_weight: float
    target_weight: float = Field(description="where it is headed")
    service_seconds: float | None = Field(description="mean of the last results that succeeded")
    tasks_per_second: float = Field(description="of all its workers, in the last ten minutes")
    quality_gain: float | None = Field(description="by each doubling of a task's time; null: not known")
    is_bottleneck: bool | None = Field(description="null: nobody has decided on the pool lately")


class SpanOut(BaseModel):
    """What came of an agent's tasks in one span of time."""

    start: Moment
    results: int
    successes: int
    judged: int = Field(description="qualities told in this span, also of earlier results")
    quality: float | None = Field(description="mean of these")
    mean_seconds: float | None


class TrendOut(AgentOut):
    """One agent, and how it has changed."""

    per: Per
    trend: list[SpanOut] = Field(description="oldest first; spans without a result are left out")


class AgentsOut(BaseModel):
    """All six."""

    items: list[AgentOut]


@router.get("", operation_id="list_agents", summary="List agents", dependencies=_READ)
async def listing(connection: Reading, services: ServicesDep) -> AgentsOut:
    """What each achieves, and what share of the leases follows from it. The cost does not grow with the history."""
    effective = config.effective(await config.current(connection, services[CurrentConfig].initial))
    reports = await services[AgentReports].read(connection, effective)
    return AgentsOut(items=[AgentOut(**_fields(report)) for report in reports])


@router.get("/{agent_type}", operation_id="get_agent", summary="Read an agent and its trend", dependencies=_READ)
async def read(
    agent_type: Annotated[AgentName, Path()],
    connection: Reading,
    services: ServicesDep,
    per: Per = Per.MINUTE,
    spans: Annotated[int, Query(ge=1, le=1440, description="how many at most")] = 60,
) -> TrendOut:
    """One agent, and its results by minute, hour or day."""
    effective = config.effective(await config.current(connection, services[CurrentConfig].initial))
    reports = await services[AgentReports].read(connection, effective)
    (report,) = [report for report in reports if report.agent_type is agent_type]
    step = _STEPS[per]
    trend = await performance.spans(connection, step * spans, step, [agent_type])
    return TrendOut(**_fields(report), per=per, trend=[_span(span) for span in trend])


def _fields(report: AgentReport) -> dict[str, Any]:
    summary = report.summary
    evidence = summary and EvidenceOut(
        results=summary.results,
        succeeded=summary.successes,
        judged=summary.rated_results,
        quality=summary.quality,
        decayed_results=summary.evidence.results,
    )
    fields = {name: getattr(report, name) for name in AgentOut.model_fields if hasattr(report, name)}
    return {
        **fields,
        "effectiveness": summary.effectiveness if summary else None,
        "service_seconds": summary.seconds if summary else None,
        "evidence": evidence,
    }


def _span(span: PerformanceSpan) -> SpanOut:
    return SpanOut(
        start=span.start,
        results=span.results,
        successes=span.successes,
        judged=span.rated_results,
        quality=span.quality / span.rated_results if span.rated_results else None,
        mean_seconds=span.seconds / span.results if span.results else None,
    )
