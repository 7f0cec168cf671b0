"""The health report of the specification: healthy, degraded or critical, with figures and reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from app.health.rules.finding import Level, Reason, critical, note
from app.health.rules.findings import findings, oldest_seconds, resource
from app.health.rules.runtime import narrowest
from app.health.rules.snapshot import ReportPolicy, Snapshot
from app.health.rules.utilisation import Measure
from app.kernel.agents import AgentType
from app.queue.rules.admission import CapacityPolicy

DATABASE_AWAY = "database_away"
DATABASE_SLOW = "database_slow"


class Overall(StrEnum):
    """What the specification calls overall health."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The specification's figures; percentages from 0 to 100. `at` is when they were taken."""

    at: datetime
    overall: Overall
    total_workers: int = 0
    healthy_workers: int = 0
    utilization_percentage: float = 0.0
    pending_tasks: int = 0
    oldest_task_age_seconds: int = 0
    bottleneck: AgentType | None = None
    cpu_percentage: float = 0.0
    memory_percentage: float = 0.0
    llm_api_usage_percentage: float = 0.0
    reasons: Sequence[Reason] = ()


def report(snapshot: Snapshot, policy: ReportPolicy, capacity: CapacityPolicy) -> Report:
    """The report on a snapshot. A figure that nobody has measured is 0, and a note among the reasons says so."""
    found = findings(snapshot, policy, capacity)
    return Report(
        at=snapshot.at,
        overall=overall(found),
        total_workers=snapshot.pool.total,
        healthy_workers=snapshot.pool.healthy,
        utilization_percentage=100.0 * (snapshot.pool.busy_share or 0.0),
        pending_tasks=snapshot.queue.count(),
        oldest_task_age_seconds=int(oldest_seconds(snapshot.queue) or 0),
        bottleneck=narrowest(snapshot.queue, snapshot.pool, policy.service),
        cpu_percentage=resource(snapshot, Measure.CPU, policy) or 0.0,
        memory_percentage=resource(snapshot, Measure.MEMORY, policy) or 0.0,
        llm_api_usage_percentage=100.0 * (snapshot.language_model.usage or 0.0),
        reasons=found,
    )


def blind(last: Report | None, at: datetime, code: str, why: str) -> Report:
    """The report while the database does not answer: critical, with the figures that were known last.

    What was found wrong then is told no more, as nobody knows whether it still is.
    """
    if last is None:
        never = "nothing has been read from the database yet: all figures are 0 for want of any"
        return Report(at=at, overall=Overall.CRITICAL, reasons=[critical(code, why), note("not_measured", never)])
    ago = max(0, int((at - last.at).total_seconds()))
    old = note("out_of_date", f"all figures are those of {ago:,} s ago")
    return replace(last, at=at, overall=Overall.CRITICAL, reasons=[critical(code, why), old])


def overall(reasons: Sequence[Reason]) -> Overall:
    """As bad as the worst finding; notes do not count."""
    levels = {reason.level for reason in reasons}
    if Level.CRITICAL in levels:
        return Overall.CRITICAL
    return Overall.DEGRADED if Level.DEGRADED in levels else Overall.HEALTHY
