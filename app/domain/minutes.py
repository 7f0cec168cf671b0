"""What became of tasks, minute by minute, and how many that makes within a window that slides on between minutes."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.domain.histograms import Durations
from app.domain.lanes import Lane

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """The moves of one kind that tasks of a lane made in the minute that begins at `start`.

    The durations are how long the tasks had waited (`task.assigned`) or run (`task.completed`, `task.failed`).
    """

    start: datetime
    lane: Lane
    kind: str
    durations: Durations


def within(minutes: Iterable[Minute], kinds: Collection[str], now: datetime, length: timedelta) -> float:
    """About how many moves of these kinds were made within `length` before now.

    A minute that the window cuts counts by the part of it that lies inside: a sliding window counter.
    """
    opens = now - length
    return sum(_share(part.start, opens) * part.durations.count for part in minutes if part.kind in kinds)


def _share(start: datetime, opens: datetime) -> float:
    return max(0.0, min(1.0, (start + _MINUTE - opens) / _MINUTE))
