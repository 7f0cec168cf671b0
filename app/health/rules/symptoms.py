"""What can be wrong, in words and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class AlertRule(StrEnum):
    """What can be wrong."""

    OLDEST_TASK = "oldest_task"
    STUCK_EXECUTING = "stuck_executing"
    POOL_BELOW_MINIMUM = "pool_below_minimum"
    RESOURCE_PRESSURE = "resource_pressure"
    QUEUE_GROWTH = "queue_growth"
    WORKER_STARVATION = "worker_starvation"
    BREAKER_OPEN = "breaker_open"
    REPLACEMENT_FAILING = "replacement_failing"
    DATABASE_TROUBLE = "database_trouble"
    DEGRADED = "degraded"


class Severity(IntEnum):
    """Critical: something is failing now. Warning: something will."""

    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertKey:
    """What an alert is about: a rule, and of several things it watches, which; empty when there is only one."""

    rule: AlertRule
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """What is wrong, what to do about it, and the figures. A fading one is no more quite so bad."""

    matter: AlertKey
    severity: Severity
    summary: str
    advice: str
    facts: Mapping[str, float] = field(default_factory=dict)
    is_fading: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SymptomPolicy:
    """Thresholds; seconds, tasks a minute, shares of 1.

    80 %, 100 a minute and 30 s are the contract's. A low task is raised after 10 minutes and again after 20: one that
    waits for half an hour all the same is failed by the system. A thousand tasks a second leave a million dead rows in
    about five minutes, which is also how long a snapshot may be held. `fading` of a threshold is still near it.
    """

    oldest_seconds: float = 600.0
    oldest_critical_seconds: float = 1800.0
    # The sweep ends what is past its deadline within a second or two.
    overdue_grace_seconds: float = 30.0
    stuck_seconds: float = 900.0
    # Times the longest of those that ended lately.
    stuck_factor: float = 4.0
    pressure: float = 0.80
    pressure_critical: float = 0.95
    growth_per_minute: float = 100.0
    # Between two tasks a worker is idle for a moment; of very many workers some always are.
    starving_share: float = 0.05
    snapshot_seconds: float = 300.0
    snapshot_critical_seconds: float = 1800.0
    snapshot_transactions: int = 1_000_000
    dead_rows: int = 1_000_000
    fading: float = 0.9
