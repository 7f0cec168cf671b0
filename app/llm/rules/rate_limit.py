"""How much a model may be asked for in a window: the generic cell rate algorithm, one point in time per meter.

Source: ITU-T I.371, in its virtual scheduling form. A unit takes T = window / limit; a call of cost k is admitted when
`max(tat, now) + k T <= now + burst T`, and `tat` then moves there. From any moment on, what is admitted within t
seconds is at most `burst + t / T`.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

_LONGEST_SECONDS = 86_400.0


class Dimension(StrEnum):
    """What is metered."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """`limit` units a window, `burst` of them at once; `tat` is when all that was admitted will have been paid for."""

    limit: int
    window_seconds: float
    burst: int
    tat: datetime

    def time(self, units: int) -> timedelta:
        """How long so many units take; nobody pays for longer than a day, whatever was estimated."""
        seconds = units * self.window_seconds / self.limit
        return timedelta(seconds=max(-_LONGEST_SECONDS, min(_LONGEST_SECONDS, seconds)))


def wait(meter: Meter, cost: int, now: datetime) -> timedelta:
    """How long until this cost is admitted, exactly; zero or less: now.

    What costs more than the burst is admitted like the whole burst, and paid for afterwards: it could never run else.
    """
    return max(meter.tat, now) + meter.time(min(cost, meter.burst)) - now - meter.time(meter.burst)


def charged(meter: Meter, cost: int, now: datetime) -> Meter:
    """The meter after this cost was admitted."""
    return replace(meter, tat=max(meter.tat, now) + meter.time(cost))


def corrected(meter: Meter, difference: int) -> Meter:
    """The meter after a call turned out to cost so much more than it was charged; negative: less."""
    return replace(meter, tat=meter.tat + meter.time(difference))
