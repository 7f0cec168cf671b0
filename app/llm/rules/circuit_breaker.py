"""The circuit breaker of a model: a service that fails repeatedly gets no calls for a while, then one as a probe.

Source: Nygard, "Release It!" (2007). The state is not stored: it follows from `open_until` and the time, so no job has
to turn an open breaker half-open.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from app.llm.rules.outcomes import Outcome
from app.llm.rules.pauses import remaining_seconds


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none do. Half-open: one does, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """Consecutive failures that open a breaker, and seconds for which it stays open."""

    failure_threshold: int = 3
    open_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Consecutive failures, and the end of the open time; None: closed.

    `cause` is the condition that opened it (`app/llm/rules/conditions.py`), None for failures; `until` its known end.
    """

    failures: int = 0
    open_until: datetime | None = None
    cause: str | None = None
    until: datetime | None = None

    def state(self, now: datetime) -> BreakerState:
        """The state at this moment."""
        if self.open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self.remaining_seconds(now) else BreakerState.HALF_OPEN

    def remaining_seconds(self, now: datetime) -> float:
        """Seconds until a probe is allowed; 0 unless open."""
        return remaining_seconds(self.open_until, now)


def record_call(breaker: Breaker, outcome: Outcome, *, is_probe: bool, now: datetime, policy: BreakerPolicy) -> Breaker:
    """The breaker after a call has ended with this outcome."""
    # Calls that began before it opened end while it is open or half-open. They tell of the service as it was, so only
    # the probe decides: their successes must not close it, nor their failures postpone the next probe.
    if breaker.open_until is not None and not is_probe:
        return breaker
    match outcome:
        case Outcome.SUCCESS | Outcome.CLIENT_ERROR:
            return Breaker()
        case Outcome.RATE_LIMITED:
            # The service answers, which is all that a probe asks; the cool-down keeps callers away as long as it wants.
            return Breaker() if is_probe else breaker
        case Outcome.SERVER_ERROR | Outcome.TIMEOUT:
            return _record_failure(breaker, is_probe, now, policy)
        case Outcome.CANCELLED:
            # Says nothing of the service. After a cancelled probe it stays half-open, and the next call is the probe.
            return breaker
        case _:
            assert_never(outcome)


def _record_failure(breaker: Breaker, is_probe: bool, now: datetime, policy: BreakerPolicy) -> Breaker:
    failures = breaker.failures + 1
    if not is_probe and failures < policy.failure_threshold:
        return replace(breaker, failures=failures)
    return Breaker(failures=failures, open_until=now + timedelta(seconds=policy.open_seconds))
