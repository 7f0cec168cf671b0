"""What becomes more urgent while it waits, so that nothing waits for ever."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.kernel.lanes import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingStep:
    """Tasks of `priority` that have waited for `after` go one priority up."""

    priority: Priority
    after: timedelta


STEPS: Sequence[AgingStep] = (
    AgingStep(priority=Priority.MEDIUM, after=timedelta(minutes=20)),
    AgingStep(priority=Priority.LOW, after=timedelta(minutes=10)),
)
URGENT_WITHIN = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingPolicy:
    """The steps, and how near a deadline makes a task critical."""

    steps: Sequence[AgingStep] = field(default_factory=lambda: STEPS)
    urgent_within: timedelta = URGENT_WITHIN


def is_urgent(deadline: datetime | None, now: datetime, within: timedelta = URGENT_WITHIN) -> bool:
    """Whether the deadline is so near, or past, that the task goes ahead of everything."""
    return deadline is not None and deadline - now < within
