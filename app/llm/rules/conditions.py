"""Conditions of a model's service that no retry mends: a refused key, a used-up quota, maintenance, loading."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.outcomes import CallReport, Outcome

if TYPE_CHECKING:
    from app.llm.rules.models import Model

# So long after a report somebody tries again; with the handler's start that is well within 5 s of the mend.
TRY_SECONDS = 1.5
# A report that nobody has contradicted or repeated says nothing any more.
KEEP = timedelta(minutes=10)
# Failures in a row of a single caller, like those that open its breaker.
_FAILING = 3
_PARK_SECONDS, _MAX_PARK_SECONDS = 60.0, 3600.0


class Condition(StrEnum):
    """A condition that lasts until somebody acts, or until its time has come."""

    KEY_EXPIRED = "key_expired"
    QUOTA_EXHAUSTED = "quota_exhausted"
    MAINTENANCE = "maintenance"
    LOADING = "loading"


_CONDITIONS = frozenset(condition.value for condition in Condition)


class ServiceState(StrEnum):
    """The state of a model's service as everybody sees it; `limited`: it cools down, `failing`: its breaker is open."""

    OK = "ok"
    LIMITED = "limited"
    FAILING = "failing"
    KEY_EXPIRED = Condition.KEY_EXPIRED.value
    QUOTA_EXHAUSTED = Condition.QUOTA_EXHAUSTED.value
    MAINTENANCE = Condition.MAINTENANCE.value
    LOADING = Condition.LOADING.value


_BY_STATUS = {401: Condition.KEY_EXPIRED, 402: Condition.QUOTA_EXHAUSTED, 403: Condition.KEY_EXPIRED}
# Words of providers and gateways, in the code or type of the error.
_BY_CODE = (
    (re.compile(r"maintenance"), Condition.MAINTENANCE),
    (
        re.compile(r"insufficient_(quota|balance|credit|funds)|billing|payment"),
        Condition.QUOTA_EXHAUSTED,
    ),
    (
        re.compile(r"(invalid|expired)_(api_)?(key|token)|token_expired|unauthori[sz]ed|authentication"),
        Condition.KEY_EXPIRED,
    ),
    (re.compile(r"loading|cold_start|not_ready|starting"), Condition.LOADING),
)
# A 403 about what was asked, not about who asks.
_ABOUT_CONTENT = re.compile(r"moderat|content|flagged|safety|policy")
_ENDED = frozenset({Outcome.SUCCESS, Outcome.CANCELLED, Outcome.TIMEOUT})


def condition_of(report: CallReport) -> Condition | None:
    """The condition that a refusal tells of, by its status and its error code; None for any other end of a call."""
    code = (report.error_code or "").lower()
    if report.outcome in _ENDED or (report.status in (400, 403) and _ABOUT_CONTENT.search(code)):
        return None
    if code in _CONDITIONS:
        return Condition(code)
    by_code = next((condition for pattern, condition in _BY_CODE if pattern.search(code)), None)
    return by_code or _BY_STATUS.get(report.status or 0)


def condition_end(report: CallReport, now: datetime) -> datetime | None:
    """The time that the service names for the end of a condition; None: it names none."""
    seconds = report.retry_after_seconds
    return now + timedelta(seconds=min(seconds, 7 * 86_400.0)) if seconds and seconds > 0 else None


def service_state(model: "Model", now: datetime) -> tuple[ServiceState, datetime | None]:
    """The state of a model's service, and when it ends where that is known.

    A condition that callers report is shown while nobody else has been answered since, even if it does not bind all.
    """
    open_until = model.breaker.open_until
    # Whatever was true of it, nobody has called it since.
    if open_until is not None and open_until < now - KEEP:
        return ServiceState.OK, None
    breaker = model.breaker.state(now)
    if breaker is not BreakerState.CLOSED and model.breaker.cause is not None:
        return ServiceState(model.breaker.cause), model.breaker.until
    if breaker is not BreakerState.CLOSED:
        return ServiceState.FAILING, model.breaker.open_until
    reported = [
        caller
        for caller in model.callers.values()
        if (caller.condition or caller.failures >= _FAILING)
        and not caller.is_refuted
        and max(caller.reported_at, caller.open_until or caller.reported_at) > now - KEEP
    ]
    if reported:
        latest = max(reported, key=lambda caller: caller.reported_at)
        state = ServiceState(latest.condition) if latest.condition else ServiceState.FAILING
        return state, _latest(caller.condition_until for caller in reported)
    if model.concurrency.cooldown_seconds(now):
        return ServiceState.LIMITED, model.concurrency.cooldown_until
    return ServiceState.OK, None


def park_seconds(model: "Model", reason: str, retry_after: timedelta, now: datetime) -> float:
    """Seconds for which a task may be set aside that was refused for this reason; whoever waits so is woken earlier.

    A condition that has been contradicted holds back this caller alone, so another worker may have the task soon.
    """
    state, until = service_state(model, now)
    if reason not in _CONDITIONS or state.value not in _CONDITIONS:
        return retry_after.total_seconds()
    seconds = _PARK_SECONDS if until is None else (until - now).total_seconds()
    return max(retry_after.total_seconds(), min(seconds, _MAX_PARK_SECONDS))


def is_awaited(model: "Model", now: datetime) -> bool:
    """Whether the service is in a condition that tasks wait for."""
    return service_state(model, now)[0].value in _CONDITIONS


def may_try(model: "Model", now: datetime) -> bool:
    """Whether somebody may try a service in such a condition now."""
    if model.breaker.state(now) is BreakerState.OPEN:
        return False
    blocked = [c.open_until for c in model.callers.values() if c.condition and not c.is_refuted and c.open_until]
    return not blocked or min(blocked) <= now


def _latest(moments: Iterable[datetime | None]) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)
