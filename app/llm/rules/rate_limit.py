"""Rate limit of a model: the generic cell rate algorithm, which keeps one point in time per meter.

Source: ITU-T I.371, in its virtual scheduling form. A unit takes T = window / limit; a call of cost k is admitted when
`max(tat, now) + k T <= now + burst T`, and `tat`, the theoretical arrival time, then moves there. From any moment on,
the units admitted within t seconds are at most `burst + t / T`.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

_MAX_CHARGE_SECONDS = 86_400.0
# Of the rate that a worker's claims may take from the others.
_WORKER_SHARE = 0.5


class Dimension(StrEnum):
    """A quantity that is metered."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """`limit` units a window, `burst` of them at once; `tat` is the moment when all admitted units are paid for."""

    limit: int
    window_seconds: float
    burst: int
    tat: datetime

    def duration(self, units: int) -> timedelta:
        """Time that so many units take at the limit; at most a day, however large the estimate."""
        seconds = units * self.window_seconds / self.limit
        return timedelta(seconds=max(-_MAX_CHARGE_SECONDS, min(_MAX_CHARGE_SECONDS, seconds)))

    def owed_until(self, tat: datetime | None, now: datetime) -> datetime:
        """The stored point in time, or now where there is none, or one so far off that the clock was set back since."""
        # A call is charged a window at most, on top of the burst or of what `bounded` leaves.
        longest = timedelta(seconds=3 * self.window_seconds) + self.duration(self.burst)
        return now if tat is None or tat > now + longest else tat

    def bounded(self, now: datetime) -> "Meter":
        """The meter without what is owed beyond two windows: the service itself remembers no more than one."""
        return replace(self, tat=min(self.tat, now + timedelta(seconds=2 * self.window_seconds)))

    def chargeable(self, units: int) -> int:
        """The part of a call's units that is charged: at most a window's, so that no claim stops others for longer."""
        return min(units, self.limit)


def worker_key(dimension: Dimension, worker: str) -> str:
    """The name under which the point in time of a worker's meter is kept."""
    return f"{dimension.value}:{worker}"


def worker_meter(meter: Meter, tat: datetime | None, now: datetime) -> Meter:
    """The meter of one worker beside that of all: as much at once, and half as much after it."""
    own = replace(meter, window_seconds=meter.window_seconds / _WORKER_SHARE)
    return replace(own, tat=own.owed_until(tat, now))


def wait_time(meter: Meter, cost: int, now: datetime) -> timedelta:
    """Exact time until this cost is admitted; zero or less: now."""
    # A cost above the burst would never be admitted; it is as the whole burst, and its full charge delays what follows.
    return max(meter.tat, now) + meter.duration(min(cost, meter.burst)) - now - meter.duration(meter.burst)


def charge(meter: Meter, cost: int, now: datetime) -> Meter:
    """The meter after a call of this cost was admitted."""
    return replace(meter, tat=max(meter.tat, now) + meter.duration(cost))


def correct(meter: Meter, difference: int) -> Meter:
    """The meter after a call cost `difference` units more than it was charged; negative: less."""
    # A refund may move `tat` behind now, where the other rules ignore it: it never allows more than the burst.
    return replace(meter, tat=meter.tat + meter.duration(difference))
