"""Findings: what is wrong, or not measured, in the words of the health report and of the alerts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Level(StrEnum):
    """Weight of a finding in the health report; a note leaves the overall health as it is."""

    NOTE = "note"
    DEGRADED = "degraded"
    CRITICAL = "critical"


class Overall(StrEnum):
    """What the specification calls overall health."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    CRITICAL = "critical"


class AlertRule(StrEnum):
    """What can be wrong."""

    OLDEST_TASK = "oldest_task"
    STUCK_EXECUTING = "stuck_executing"
    POOL_BELOW_MINIMUM = "pool_below_minimum"
    RESOURCE_PRESSURE = "resource_pressure"
    QUEUE_GROWTH = "queue_growth"
    WORKER_STARVATION = "worker_starvation"
    BREAKER_OPEN = "breaker_open"
    KEY_EXPIRING = "key_expiring"
    GOAL_BUDGET = "goal_budget"
    LLM_BUDGET = "llm_budget"
    REPLACEMENT_FAILING = "replacement_failing"
    DATABASE_TROUBLE = "database_trouble"
    DUTY_LATE = "duty_late"
    DEGRADED = "degraded"
    REFUSED_REQUESTS = "refused_requests"
    RESULTS_DELAYED = "results_delayed"


class Severity(IntEnum):
    """Critical: something is failing now. Warning: something will."""

    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertKey:
    """Identity of an alert: its rule and, where the rule watches several things, which; else an empty subject."""

    rule: AlertRule
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that the health report tells: a stable code, its weight, a sentence, and what to do."""

    code: str
    level: Level
    message: str
    # Commands in it stand between backticks; empty where there is nothing to do.
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom(Finding):
    """A finding that alerts watch as well, with the figures behind it.

    A fading symptom is below its threshold and still near it: it keeps an open alert, opens none, and the report
    leaves it out.
    """

    key: AlertKey
    facts: Mapping[str, float] = field(default_factory=dict)
    is_fading: bool = False

    @property
    def severity(self) -> Severity:
        """The level in the words of alerts."""
        return Severity.CRITICAL if self.level is Level.CRITICAL else Severity.WARNING


def critical(code: str, message: str, advice: str = "") -> Finding:
    """A finding that makes the overall health critical."""
    return Finding(code=code, level=Level.CRITICAL, message=message, advice=advice)


def degraded(code: str, message: str, advice: str = "") -> Finding:
    """A finding that makes the overall health degraded."""
    return Finding(code=code, level=Level.DEGRADED, message=message, advice=advice)


def note(code: str, message: str, advice: str = "") -> Finding:
    """A finding that leaves the overall health as it is."""
    return Finding(code=code, level=Level.NOTE, message=message, advice=advice)


def not_measured(figure: str, why: str) -> Finding:
    """A note that a figure of the specification is 0 because the answer needs a number and none was measured."""
    return note("not_measured", f"{figure} is 0: {why}")
