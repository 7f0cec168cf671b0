"""The specification's runtime metrics, and other measurements of the present."""

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.health.api.report import ReasonOut, reason_out
from app.health.rules import runtime as rules
from app.health.rules import utilisation
from app.health.rules.snapshot import Snapshot
from app.health.rules.utilisation import PERCENTAGES, Measure, UtilisationPolicy
from app.health.service.snapshot_cache import SnapshotCache
from app.http.fields import Moment
from app.http.guard import requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable
from app.queue.rules.status import QueueSnapshot

router = Router(tags=["health"])
_MINUTE = timedelta(minutes=1)
_EXAMPLE: dict[str, Any] = {
    "queue_depth": {f"{agent}_tasks": 10 for agent in AgentType},
    "worker_status": {"active_workers": 8, "idle_workers": 2, "failed_workers": 0},
    "performance_metrics": {
        "avg_task_completion_time_ms": 4210.5,
        "tasks_per_second": 1.9,
        "llm_call_latency_ms": 830.0,
    },
    "at": "2026-01-31T12:00:00+00:00",
    "starting_workers": 1,
    "target_workers": 11,
    "arrivals_per_second": {agent.value: 0.3 for agent in AgentType},
    "service_times": {
        agent.value: {"tasks": 100, "mean_ms": 4210.5, "p50_ms": 3900.0, "p95_ms": 8800.0} for agent in AgentType
    },
    "utilisation": {"host:lab-1": {"cpu_percentage": 62.5, "memory_percentage": 41.0, "busy_percentage": None}},
    "reasons": [],
}


class QueueDepthOut(BaseModel):
    """Tasks that are queued: pending, delayed, held or blocked."""

    generation_tasks: int
    reflection_tasks: int
    ranking_tasks: int
    evolution_tasks: int
    proximity_tasks: int
    meta_review_tasks: int


class WorkerStatusOut(BaseModel):
    """Active workers hold a task or finish their last one; those that start are in none of the three."""

    active_workers: int
    idle_workers: int
    failed_workers: int = Field(description="lost, or never up, within the last five minutes")


class PerformanceOut(BaseModel):
    """Of the last five minutes; the rate of the last one. 0 where `reasons` say that nothing was measured."""

    avg_task_completion_time_ms: float = Field(description="of completed tasks, from being leased to being completed")
    tasks_per_second: float = Field(description="completed")
    llm_call_latency_ms: float


class ServiceTimeOut(BaseModel):
    """Of the tasks completed in the last five minutes, from being leased on; null without any."""

    tasks: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None


class UsedOut(BaseModel):
    """Percent of what there is; null where nobody has measured it in the last minute."""

    cpu_percentage: float | None
    memory_percentage: float | None
    busy_percentage: float | None


class RuntimeOut(BaseModel):
    """The specification's metrics, then ours."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    queue_depth: QueueDepthOut
    worker_status: WorkerStatusOut
    performance_metrics: PerformanceOut
    at: Moment
    starting_workers: int
    target_workers: int | None = Field(description="of the last scaling decision; null before the first")
    arrivals_per_second: dict[AgentType, float] = Field(description="over the last five minutes")
    service_times: dict[AgentType, ServiceTimeOut]
    utilisation: dict[str, UsedOut] = Field(description="`pool`, `workers`, and `host:<name>` of each host")
    reasons: list[ReasonOut] = Field(description="which of the figures nobody has measured, and why")


@router.get(
    "/metrics/runtime",
    operation_id="get_runtime_metrics",
    summary="Read the runtime metrics",
    dependencies=[requires(Scope.MONITOR)],
    responses=responses_for(DatabaseUnavailable),
)
async def runtime(services: ServicesDep) -> RuntimeOut:
    """What waits, who works, and how fast, at most a second old.

    Costs the same however many tasks there are. A figure of the specification that nobody has measured is 0, and
    `reasons` say so; ours are null then.
    """
    snapshot = await services[SnapshotCache].read()
    queue, pool = snapshot.queue, snapshot.pool
    return RuntimeOut(
        queue_depth=QueueDepthOut(**{f"{agent}_tasks": queue.count(agent=agent) for agent in AgentType}),
        worker_status=WorkerStatusOut(
            active_workers=pool.busy + pool.draining, idle_workers=pool.idle, failed_workers=pool.failed
        ),
        performance_metrics=PerformanceOut(
            avg_task_completion_time_ms=_ms(rules.completion_seconds(queue)) or 0.0,
            tasks_per_second=round(queue.per_second("completed", _MINUTE), 3),
            llm_call_latency_ms=round(snapshot.language_model.latency_ms or 0.0, 1),
        ),
        at=snapshot.at,
        starting_workers=pool.starting,
        target_workers=snapshot.target_workers,
        arrivals_per_second={a: round(rules.arrivals_per_second(queue, a), 3) for a in AgentType},
        service_times={agent: _service(queue, agent) for agent in AgentType},
        utilisation=utilisation_out(snapshot, services[SnapshotCache].settings.report.utilisation),
        reasons=[reason_out(reason) for reason in rules.unmeasured_metrics(queue, snapshot.language_model)],
    )


def utilisation_out(snapshot: Snapshot, policy: UtilisationPolicy) -> dict[str, UsedOut]:
    """The last samples of each subject that was measured within a minute."""
    spans_by_measure = {
        measure: utilisation.latest_spans(snapshot.spans, measure, snapshot.at, policy) for measure in PERCENTAGES
    }
    subjects = sorted({subject for spans in spans_by_measure.values() for subject in spans})

    def last(subject: str, measure: Measure) -> float | None:
        span = spans_by_measure[measure].get(subject)
        return None if span is None else round(span.last, 2)

    return {
        subject: UsedOut(**{f"{measure.value}_percentage": last(subject, measure) for measure in PERCENTAGES})
        for subject in subjects
    }


def _service(queue: QueueSnapshot, agent: AgentType) -> ServiceTimeOut:
    durations = queue.service_times(agent)
    return ServiceTimeOut(
        tasks=durations.count,
        mean_ms=_ms(durations.mean),
        p50_ms=_ms(durations.percentile(0.5)),
        p95_ms=_ms(durations.percentile(0.95)),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000.0 * seconds, 1)
