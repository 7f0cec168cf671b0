"""The state of a model's service as single callers report it: each report binds its own caller alone.

A caller is a worker, or the key of somebody who is none. What binds all of them needs another caller's confirmation
(`app/llm/rules/reports.py`), so nobody can keep others from a model by a false report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.llm.rules.circuit_breaker import Breaker


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationPolicy:
    """Callers whose reports agree before all are bound, and seconds for which a loss can confirm another's."""

    callers: int = 2
    window_seconds: float = 60.0
    # Reports are forgotten after so long; of many callers only the latest are kept, as those of two bind all.
    keep_seconds: float = 600.0
    max_callers: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerState:
    """One caller's last loss, failures in a row with the breaker that they open, cool-down, and limit of calls at once.

    `failures` are those since the service last answered somebody else; `is_refuted` says that it has answered somebody
    else since this caller reported its cool-down; `counted_at` is when a loss last made the limit of all smaller.
    """

    reported_at: datetime
    failures_in_row: int = 0
    open_until: datetime | None = None
    failures: int = 0
    cooldown_until: datetime | None = None
    is_refuted: bool = False
    limit: float | None = None
    shrunk_at: datetime | None = None
    counted_at: datetime | None = None

    @property
    def breaker(self) -> Breaker:
        """The caller's own breaker."""
        return Breaker(failures=self.failures_in_row, open_until=self.open_until)

    def with_breaker(self, breaker: Breaker) -> "CallerState":
        """The state with another breaker of the caller's own."""
        return replace(self, failures_in_row=breaker.failures, open_until=breaker.open_until)

    def cooldown_seconds(self, now: datetime) -> float:
        """Seconds for which this caller may not call; 0 outside a cool-down."""
        return max(0.0, (self.cooldown_until - now).total_seconds()) if self.cooldown_until else 0.0

    def is_blocked(self, now: datetime) -> bool:
        """Whether a cool-down or an open breaker of its own keeps the caller away."""
        return bool(self.cooldown_seconds(now) or self.breaker.remaining_seconds(now))


def refuted(callers: Mapping[str, CallerState], granted_at: datetime) -> dict[str, CallerState]:
    """The callers after the service answered somebody else, in a call that began at `granted_at`."""
    return {
        name: replace(caller, failures=0, is_refuted=True) if caller.reported_at < granted_at else caller
        for name, caller in callers.items()
    }


def confirmed_cooldown(
    callers: Mapping[str, CallerState], now: datetime, policy: ConfirmationPolicy
) -> datetime | None:
    """The end of the cool-down that enough callers agree on; None without one."""
    ends = sorted(
        (
            caller.cooldown_until
            for caller in callers.values()
            if not caller.is_refuted and caller.cooldown_until is not None and caller.cooldown_until > now
        ),
        reverse=True,
    )
    return ends[policy.callers - 1] if len(ends) >= policy.callers else None


def is_confirmed_loss(callers: Mapping[str, CallerState], name: str, now: datetime, policy: ConfirmationPolicy) -> bool:
    """Whether another caller has had a loss too, lately and since this one's last that counted for all."""
    since = max(filter(None, (callers[name].counted_at, now - timedelta(seconds=policy.window_seconds))))
    return any(caller.reported_at > since for other, caller in callers.items() if other != name)


def remembered(callers: Mapping[str, CallerState], now: datetime, policy: ConfirmationPolicy) -> dict[str, CallerState]:
    """The callers without those whose reports are too old to matter."""
    oldest = now - timedelta(seconds=policy.keep_seconds)
    fresh = {name: caller for name, caller in callers.items() if caller.reported_at > oldest or caller.is_blocked(now)}
    if len(fresh) <= policy.max_callers:
        return fresh
    latest = sorted(fresh, key=lambda name: fresh[name].reported_at)[-policy.max_callers :]
    return {name: fresh[name] for name in latest}
