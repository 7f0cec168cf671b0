"""Adaptive concurrency of a model: additive increase, multiplicative decrease (AIMD), after a slow start.

Sources: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks"
(1989), and the slow start of RFC 5681. Latency is no signal here: a long answer is not a slow service.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import floor

from app.llm.rules.outcomes import LOSSES, CallReport, Outcome, requested_wait

# Four round trips from 64, and few enough to try a service with.
INITIAL_LIMIT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy:
    """Factors and seconds; `latency_alpha` is the weight of the newest call in the decayed mean latency."""

    decrease_factor: float = 0.9
    latency_alpha: float = 0.05
    default_latency_seconds: float = 1.0
    # Services may ask for a day; nobody believes more than an hour.
    max_cooldown_seconds: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyState:
    """Calls at once that a service was seen to bear (`ramping`: in slow start), its mean latency, end of its pause."""

    limit: float = INITIAL_LIMIT
    ramping: bool = True
    shrunk_at: datetime | None = None
    latency_seconds: float | None = None
    cooldown_until: datetime | None = None

    def allowed_calls(self, ceiling: int) -> int:
        """Calls allowed at once: the limit, at most `ceiling`, at least 1."""
        # With none at all no call could show that the service has recovered.
        return max(1, min(ceiling, floor(self.limit)))

    def cooldown_seconds(self, now: datetime) -> float:
        """Seconds for which nobody may call; 0 outside a cool-down."""
        return max(0.0, (self.cooldown_until - now).total_seconds()) if self.cooldown_until else 0.0

    def mean_latency(self, policy: ConcurrencyPolicy) -> float:
        """Seconds that a call takes, or the policy's default before the first."""
        return policy.default_latency_seconds if self.latency_seconds is None else self.latency_seconds


def record_call(
    state: ConcurrencyState, report: CallReport, *, in_use: int, ceiling: int, now: datetime, policy: ConcurrencyPolicy
) -> ConcurrencyState:
    """The state after a call; `in_use` includes that call, and `ceiling` is the most calls that people allow."""
    state = _start_cooldown(state, report, now, policy)
    if report.outcome in LOSSES:
        return _decrease(state, now, policy)
    if report.outcome is not Outcome.SUCCESS:
        return state
    return _update_latency(_increase(state, in_use, ceiling), report, policy)


def _increase(state: ConcurrencyState, in_use: int, ceiling: int) -> ConcurrencyState:
    # A success at low load does not show that the service would bear the limit, let alone a higher one.
    if in_use < state.limit / 2:
        return state
    # One for each call doubles the limit in a round trip (slow start); 1/limit for each adds one in a round trip.
    increase = 1.0 if state.ramping else 1.0 / state.limit
    return replace(state, limit=max(1.0, min(float(ceiling), state.limit + increase)))


def _decrease(state: ConcurrencyState, now: datetime, policy: ConcurrencyPolicy) -> ConcurrencyState:
    # The losses of one overload arrive together, up to a latency apart; they are one signal and cost one decrease.
    round_trip = timedelta(seconds=state.mean_latency(policy))
    if state.shrunk_at is not None and now - state.shrunk_at < round_trip:
        return replace(state, ramping=False)
    return replace(state, limit=max(1.0, state.limit * policy.decrease_factor), ramping=False, shrunk_at=now)


def _start_cooldown(
    state: ConcurrencyState, report: CallReport, now: datetime, policy: ConcurrencyPolicy
) -> ConcurrencyState:
    seconds = requested_wait(report)
    if seconds is None:
        return state
    until = now + timedelta(seconds=min(seconds, policy.max_cooldown_seconds))
    return replace(state, cooldown_until=max(until, state.cooldown_until or until))


def _update_latency(state: ConcurrencyState, report: CallReport, policy: ConcurrencyPolicy) -> ConcurrencyState:
    latency, mean = report.latency_seconds, state.latency_seconds
    if latency is None:
        return state
    return replace(state, latency_seconds=latency if mean is None else mean + policy.latency_alpha * (latency - mean))
