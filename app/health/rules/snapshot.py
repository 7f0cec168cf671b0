"""What a judgement of the whole goes by: what is looked at, what is still well, and what a finding is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.health.rules.alerts import Standing
from app.health.rules.finding import Level
from app.health.rules.observations import DatabaseCondition, Running, WorkerCounts
from app.health.rules.runtime import LanguageModel, Pool
from app.health.rules.series import Current
from app.health.rules.symptoms import SymptomPolicy
from app.health.rules.utilisation import Span, UtilisationPolicy
from app.kernel.agents import AgentType
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.status import QueueSnapshot
from app.scaling.rules.estimates import ServicePolicy
from app.workers.rules.recovery import Recovery

_SYMPTOMS = SymptomPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """From where on a figure is degraded, and from where on critical."""

    degraded: float
    critical: float

    def level(self, figure: float) -> Level | None:
        """How bad the figure is, None when it is not."""
        if figure >= self.critical:
            return Level.CRITICAL
        return Level.DEGRADED if figure >= self.degraded else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPolicy:
    """What is still well. Percentages, seconds, and numbers of rows."""

    # 80 % is the specification's own threshold of resources. Busy processors make all slow and end nothing, but when
    # memory is used up, processes are killed.
    processors: Bounds = field(default_factory=lambda: Bounds(degraded=80.0, critical=math.inf))
    memory: Bounds = field(default_factory=lambda: Bounds(degraded=80.0, critical=95.0))
    # A minute of samples: what comes and goes within one is ordinary.
    least_samples: int = 12
    # What is worth an alert is worth a finding: queue and database are judged by the same figures.
    oldest_task: Bounds = field(
        default_factory=lambda: Bounds(degraded=_SYMPTOMS.oldest_seconds, critical=_SYMPTOMS.oldest_critical_seconds)
    )
    oldest_snapshot: Bounds = field(
        default_factory=lambda: Bounds(
            degraded=_SYMPTOMS.snapshot_seconds, critical=_SYMPTOMS.snapshot_critical_seconds
        )
    )
    dead_rows: int = _SYMPTOMS.dead_rows
    # Percent of the pool. One of three lost is worth a look; half of it at once is the specification's mass failure.
    lost: Bounds = field(default_factory=lambda: Bounds(degraded=10.0, critical=50.0))
    # The fastest duties run every second, so 30 s without any means that no loop runs.
    loops_silent_seconds: float = 30.0
    # A duty may miss turns, to a long transaction for one; three in a row, and half a minute, it may not.
    missed_turns: float = 3.0
    connections: Bounds = field(default_factory=lambda: Bounds(degraded=80.0, critical=95.0))
    utilisation: UtilisationPolicy = field(default_factory=UtilisationPolicy)
    service: ServicePolicy = field(default_factory=ServicePolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyTurn:
    """A background duty: seconds since its last turn, and between two turns (None: it has no fixed pace)."""

    duty: str
    seconds_ago: float
    every_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What may be going wrong: long and overdue tasks, idle workers, failing replacements, breakers, degradation."""

    running: Mapping[AgentType, Running] = field(default_factory=dict)
    crew: WorkerCounts = field(default_factory=lambda: WorkerCounts(alive=0))
    recovery: Recovery = field(default_factory=Recovery)
    breakers: Mapping[str, bool] = field(default_factory=dict)
    step: DegradationStep = DegradationStep.NONE
    alerts: Sequence[Standing] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a report depends on; `target_workers` is that of the last scaling decision, None before the first."""

    at: datetime
    queue: QueueSnapshot
    pool: Pool
    min_workers: int
    target_workers: int | None = None
    spans: Sequence[Span] = ()
    database: DatabaseCondition
    turns: Sequence[DutyTurn] = ()
    language_model: LanguageModel = field(default_factory=LanguageModel)
    pushed: Sequence[Current] = ()
    trouble: Trouble = field(default_factory=Trouble)
