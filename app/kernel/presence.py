"""Whether callers could reach the API lately; where they could not, their silence says nothing about them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiProcess:
    """A process of the API as its own notes show it.

    Its last note is `silent_seconds` old, and the first one since its last absence `present_seconds`. `is_connected`:
    its connection to the database is still there, so that it may be paused rather than over.
    """

    silent_seconds: float
    present_seconds: float
    was_away: bool
    is_connected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PresencePolicy:
    """Seconds without a note until a process counts as away, between two heartbeats, and of the longest absence of one
    process that is waited for while others are there.
    """

    away_after_seconds: float = 5.0
    interval_seconds: float = 5.0
    give_up_after_seconds: float = 60.0

    @property
    def grace_seconds(self) -> float:
        """Seconds in which every caller reports again: an interval, and one more for its repetition."""
        return self.interval_seconds + 1.0


def absence_reason(processes: Sequence[ApiProcess], policy: PresencePolicy) -> str | None:
    """Why callers may have been unable to reach the API; None where they could, and where no process was ever noted.

    Callers have their grace after its return. A process that was killed is not waited for while others are there, but
    a paused one is: it may hold the connections of callers.
    """
    if not processes:
        return None
    there = [each for each in processes if each.silent_seconds <= policy.away_after_seconds]
    if not there:
        return f"the API has been away for {min(each.silent_seconds for each in processes):.0f} s"
    present_seconds = max(each.present_seconds for each in there)
    if present_seconds < policy.grace_seconds:
        return f"the API has been back for {present_seconds:.0f} s only"
    if any(each.was_away and each.present_seconds < policy.grace_seconds for each in there):
        return "a process of the API was away until a moment ago"
    paused = [
        each.silent_seconds
        for each in processes
        if each.is_connected and policy.away_after_seconds < each.silent_seconds <= policy.give_up_after_seconds
    ]
    return f"a process of the API has been away for {min(paused):.0f} s" if paused else None
