"""How many calls a model's service bears at once: additive increase, multiplicative decrease, after a slow start.

Sources: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance" (1989), and the slow
start of RFC 5681. Latency is no signal here: a long answer is not a slow service.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import floor

from app.llm.rules.outcomes import LOSSES, Outcome, Report, asked_to_wait

# Four round trips from 64, and few enough to try a service with.
FIRST_LIMIT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PressurePolicy:
    """`shrink` multiplies the limit on a loss, at most once per cool-down, which is the mean latency.

    `alpha` is the weight of the newest latency, as for service times. Services may ask for a day; nobody believes more
    than an hour.
    """

    shrink: float = 0.9
    alpha: float = 0.05
    usual_latency_seconds: float = 1.0
    longest_wait_seconds: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What is known of the service: the calls that it bears, and until when it wants to be left alone."""

    limit: float = FIRST_LIMIT
    ramping: bool = True
    shrunk_at: datetime | None = None
    latency_seconds: float | None = None
    cooldown_until: datetime | None = None

    def allowed(self, ceiling: int) -> int:
        """Calls at once, never above what people allow; never none, or nobody would find out that it got better."""
        return max(1, min(ceiling, floor(self.limit)))

    def cooldown_seconds(self, now: datetime) -> float:
        """For how long nobody may call."""
        return max(0.0, (self.cooldown_until - now).total_seconds()) if self.cooldown_until else 0.0

    def latency(self, policy: PressurePolicy) -> float:
        """Seconds that a call takes, as far as known."""
        return policy.usual_latency_seconds if self.latency_seconds is None else self.latency_seconds


def after(
    pressure: Pressure, report: Report, *, in_use: int, ceiling: int, now: datetime, policy: PressurePolicy
) -> Pressure:
    """What is known after a call; `in_use` counts that call too, `ceiling` is the most that people allow."""
    changed = _cooled(pressure, report, now, policy)
    if report.outcome in LOSSES:
        return _shrunk(changed, now, policy)
    if report.outcome is not Outcome.SUCCESS:
        return changed
    return _timed(_grown(changed, in_use, ceiling), report, policy)


def _grown(pressure: Pressure, in_use: int, ceiling: int) -> Pressure:
    """A limit that nobody comes near is not shown to be bearable by a success."""
    if in_use < pressure.limit / 2:
        return pressure
    step = 1.0 if pressure.ramping else 1.0 / pressure.limit
    return replace(pressure, limit=max(1.0, min(float(ceiling), pressure.limit + step)))


def _shrunk(pressure: Pressure, now: datetime, policy: PressurePolicy) -> Pressure:
    cool_down = timedelta(seconds=pressure.latency(policy))
    if pressure.shrunk_at is not None and now - pressure.shrunk_at < cool_down:
        return replace(pressure, ramping=False)
    return replace(pressure, limit=max(1.0, pressure.limit * policy.shrink), ramping=False, shrunk_at=now)


def _cooled(pressure: Pressure, report: Report, now: datetime, policy: PressurePolicy) -> Pressure:
    seconds = asked_to_wait(report)
    if seconds is None:
        return pressure
    until = now + timedelta(seconds=min(seconds, policy.longest_wait_seconds))
    return replace(pressure, cooldown_until=max(until, pressure.cooldown_until or until))


def _timed(pressure: Pressure, report: Report, policy: PressurePolicy) -> Pressure:
    if report.latency_seconds is None:
        return pressure
    before = pressure.latency_seconds
    mean = report.latency_seconds if before is None else before + policy.alpha * (report.latency_seconds - before)
    return replace(pressure, latency_seconds=mean)
