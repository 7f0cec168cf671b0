"""The state of a model's service as single callers report it: each report binds its own caller alone.

A caller is a worker, or the key of somebody who is none; its principal is who vouches for it: the key by which the
worker registered, the service for those that it launched, the namespace of a supervisor's key. What binds all of them
needs another principal's confirmation (`app/llm/rules/reports.py`), so nobody can keep others from a model by false
reports.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.pauses import remaining_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationPolicy:
    """Voices that agree before all are bound, and seconds for which a loss can confirm another's."""

    voices: int = 2
    window_seconds: float = 60.0
    # Reports are forgotten after so long; of many callers only the latest are kept, as those of a few bind all.
    keep_seconds: float = 600.0
    max_callers: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerState:
    """One caller's last loss, failures in a row with the breaker that they open, cool-down, and limit of calls at once.

    `failures` are those since the service last answered somebody else; `is_refuted` says that it has answered somebody
    else since this caller reported its cool-down; `counted_at` is when a loss last made the limit of all smaller.
    """

    reported_at: datetime
    principal: str = ""
    failures_in_row: int = 0
    open_until: datetime | None = None
    failures: int = 0
    cooldown_until: datetime | None = None
    is_refuted: bool = False
    limit: float | None = None
    shrunk_at: datetime | None = None
    counted_at: datetime | None = None
    # What it has reported of the service that no retry mends, and its end where that is known.
    condition: str = ""
    condition_until: datetime | None = None

    @property
    def breaker(self) -> Breaker:
        """The caller's own breaker."""
        return Breaker(failures=self.failures_in_row, open_until=self.open_until)

    def with_breaker(self, breaker: Breaker) -> "CallerState":
        """The state with another breaker of the caller's own."""
        return replace(self, failures_in_row=breaker.failures, open_until=breaker.open_until)

    def cooldown_seconds(self, now: datetime) -> float:
        """Seconds for which this caller may not call; 0 outside a cool-down."""
        return remaining_seconds(self.cooldown_until, now)

    def is_blocked(self, now: datetime) -> bool:
        """Whether a cool-down or an open breaker of its own keeps the caller away."""
        return bool(self.cooldown_seconds(now) or self.breaker.remaining_seconds(now))


def refuted(callers: Mapping[str, CallerState], granted_at: datetime) -> dict[str, CallerState]:
    """The callers after the service answered somebody else, in a call that began at `granted_at`."""
    return {
        name: replace(caller, failures=0, is_refuted=True) if caller.reported_at < granted_at else caller
        for name, caller in callers.items()
    }


def voices(callers: Mapping[str, CallerState], *, has_rivals: bool) -> int:
    """The independent confirmations in what these callers report: one of each principal.

    Where one principal alone calls the model, which is so without `has_rivals`, its callers count for one less than
    they are: a fleet of one key must be able to tell of an outage, and two callers of it must not.
    """
    principals = {caller.principal or name for name, caller in callers.items()}
    if len(principals) != 1 or has_rivals:
        return len(principals)
    return max(1, len(callers) - 1)


def confirmed_failures(callers: Mapping[str, CallerState], *, has_rivals: bool) -> int:
    """The failures that count for all: those of the loudest principal, or of the two loudest callers of one, are one.

    So no weight is lent to a single failure of somebody else.
    """
    by_principal = Counter[str]()
    for name, caller in callers.items():
        by_principal[caller.principal or name] += caller.failures
    if len(+by_principal) == 1 and not has_rivals:
        counts, loudest = sorted(caller.failures for caller in callers.values()), 2
    else:
        counts, loudest = sorted(by_principal.values()), 1
    return sum(counts[:-loudest]) + any(counts)


def confirmed_cooldown(
    callers: Mapping[str, CallerState], now: datetime, policy: ConfirmationPolicy, *, has_rivals: bool
) -> datetime | None:
    """The end of the cool-down that enough voices agree on; None without one."""
    agreeing: dict[str, CallerState] = {}
    ends = {
        name: caller.cooldown_until
        for name, caller in callers.items()
        if not caller.is_refuted and caller.cooldown_until is not None and caller.cooldown_until > now
    }
    for name in sorted(ends, key=lambda name: ends[name], reverse=True):
        agreeing[name] = callers[name]
        if voices(agreeing, has_rivals=has_rivals) >= policy.voices:
            return ends[name]
    return None


def is_confirmed_loss(
    callers: Mapping[str, CallerState], name: str, now: datetime, policy: ConfirmationPolicy, *, has_rivals: bool
) -> bool:
    """Whether others have had a loss too, lately and since this one's last that counted for all."""
    since = max(filter(None, (callers[name].counted_at, now - timedelta(seconds=policy.window_seconds))))
    losing = {other: caller for other, caller in callers.items() if other == name or caller.reported_at > since}
    return voices(losing, has_rivals=has_rivals) >= policy.voices


def remembered(callers: Mapping[str, CallerState], now: datetime, policy: ConfirmationPolicy) -> dict[str, CallerState]:
    """The callers without those whose reports are too old to matter."""
    oldest = now - timedelta(seconds=policy.keep_seconds)
    fresh = {name: caller for name, caller in callers.items() if caller.reported_at > oldest or caller.is_blocked(now)}
    if len(fresh) <= policy.max_callers:
        return fresh
    latest = sorted(fresh, key=lambda name: fresh[name].reported_at)[-policy.max_callers :]
    return {name: fresh[name] for name in latest}
