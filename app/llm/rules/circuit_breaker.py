"""The circuit breaker of a model: a service that fails again and again is left alone, then tried with one call.

Source: Nygard, "Release It!". Which of the three states it is in follows from two facts and the time.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from app.llm.rules.outcomes import Outcome


class BreakerState(StrEnum):
    """Closed: calls go through. Open: none do. Half-open: one does, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """The numbers of the contract (L4)."""

    failures: int = 3
    open_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Consecutive failures, and until when it is open; None: it is closed."""

    failures: int = 0
    open_until: datetime | None = None

    def state(self, now: datetime) -> BreakerState:
        """Where it stands."""
        if self.open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.open_until else BreakerState.HALF_OPEN

    def open_for(self, now: datetime) -> float:
        """Seconds until it may be tried."""
        return max(0.0, (self.open_until - now).total_seconds()) if self.open_until else 0.0


def after(breaker: Breaker, outcome: Outcome, *, is_probe: bool, now: datetime, policy: BreakerPolicy) -> Breaker:
    """The breaker after a call. While it is not closed only its probe counts: what others began is old news."""
    if breaker.open_until is not None and not is_probe:
        return breaker
    match outcome:
        case Outcome.SUCCESS | Outcome.CLIENT_ERROR:
            return Breaker()
        case Outcome.RATE_LIMITED:
            # The service lives and answers; what it asks for is patience, which the cool-down gives.
            return Breaker() if is_probe else breaker
        case Outcome.SERVER_ERROR | Outcome.TIMEOUT:
            return _failed(breaker, is_probe, now, policy)
        case Outcome.CANCELLED:
            return breaker
        case _:
            assert_never(outcome)


def _failed(breaker: Breaker, is_probe: bool, now: datetime, policy: BreakerPolicy) -> Breaker:
    failures = breaker.failures + 1
    if not is_probe and failures < policy.failures:
        return replace(breaker, failures=failures)
    return Breaker(failures=failures, open_until=now + timedelta(seconds=policy.open_seconds))
