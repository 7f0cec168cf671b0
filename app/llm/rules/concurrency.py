"""Adaptive concurrency of a model: additive increase, multiplicative decrease (AIMD), after a slow start.

Sources: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks"
(1989), and the slow start of RFC 5681. Latency is no signal here: a long answer is not a slow service.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import floor

from app.llm.rules.outcomes import CallReport, requested_wait
from app.llm.rules.pauses import remaining_seconds

# Four round trips from 64, and few enough to try a service with.
INITIAL_LIMIT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyPolicy:
    """Factors and seconds; `latency_alpha` is the weight of the newest call in the decayed mean latency."""

    decrease_factor: float = 0.9
    latency_alpha: float = 0.05
    default_latency_seconds: float = 1.0
    # Losses are one signal for no longer, or calls that take long, or are said to, would keep the limit from shrinking.
    max_round_trip_seconds: float = 60.0
    # Services may ask for a day. After this long somebody tries, and is told anew.
    max_cooldown_seconds: float = 300.0


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
        return remaining_seconds(self.cooldown_until, now)

    def mean_latency(self, policy: ConcurrencyPolicy) -> float:
        """Seconds that a call takes, or the policy's default before the first."""
        return policy.default_latency_seconds if self.latency_seconds is None else self.latency_seconds

    def round_trip(self, policy: ConcurrencyPolicy) -> timedelta:
        """The time within which losses are those of one overload."""
        return timedelta(seconds=min(self.mean_latency(policy), policy.max_round_trip_seconds))


def record_success(
    state: ConcurrencyState, latency_seconds: float | None, *, in_use: int, ceiling: int, policy: ConcurrencyPolicy
) -> ConcurrencyState:
    """The state after a success; `in_use` includes that call, and `ceiling` is the most calls that people allow."""
    state, mean = _increase(state, in_use, ceiling), state.latency_seconds
    if latency_seconds is None:
        return state
    step = policy.latency_alpha * (latency_seconds - mean) if mean is not None else 0.0
    return replace(state, latency_seconds=latency_seconds if mean is None else mean + step)


def _increase(state: ConcurrencyState, in_use: int, ceiling: int) -> ConcurrencyState:
    # A success at low load does not show that the service would bear the limit, let alone a higher one.
    if in_use < state.limit / 2:
        return state
    # One for each call doubles the limit in a round trip (slow start); 1/limit for each adds one in a round trip.
    increase = 1.0 if state.ramping else 1.0 / state.limit
    return replace(state, limit=max(1.0, min(float(ceiling), state.limit + increase)))


def record_loss(state: ConcurrencyState, now: datetime, policy: ConcurrencyPolicy) -> ConcurrencyState:
    """The state after a call that an overloaded service has refused or failed."""
    # The losses of one overload arrive together, up to a latency apart; they are one signal and cost one decrease.
    if is_same_overload(state.shrunk_at, now, state.round_trip(policy)):
        return replace(state, ramping=False)
    return replace(state, limit=max(1.0, state.limit * policy.decrease_factor), ramping=False, shrunk_at=now)


def is_same_overload(shrunk_at: datetime | None, now: datetime, round_trip: timedelta) -> bool:
    """Whether a limit has become smaller for the overload that a loss tells of."""
    # A time far ahead is of before the clock was set back, and no loss counted until the clock had come there again.
    return shrunk_at is not None and abs(now - shrunk_at) < round_trip


def requested_cooldown(report: CallReport, now: datetime, policy: ConcurrencyPolicy) -> datetime | None:
    """The end of the cool-down that the service asks for in its answer; None: it does not ask."""
    seconds = requested_wait(report)
    return None if seconds is None else now + timedelta(seconds=min(seconds, policy.max_cooldown_seconds))
