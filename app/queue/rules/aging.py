"""Aging: waiting tasks rise in priority, so that a flood of urgent work cannot keep the rest waiting for ever."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from app.admin.rules.config import AgingConfig
from app.kernel.lanes import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingStep:
    """A rise by one priority for tasks of `priority` that have waited for `wait`."""

    priority: Priority
    wait: timedelta


# The last step leads to CRITICAL: below it a task would wait for ever while critical work keeps coming. The higher step
# comes first, so that no task rises twice in one turn.
STEPS: Sequence[AgingStep] = (
    AgingStep(priority=Priority.HIGH, wait=timedelta(minutes=30)),
    AgingStep(priority=Priority.MEDIUM, wait=timedelta(minutes=20)),
    AgingStep(priority=Priority.LOW, wait=timedelta(minutes=10)),
)
URGENT_WITHIN = timedelta(minutes=2)
# A look at all deadlines that took less is repeated at every turn, others after so many seconds.
_SHORT_LOOK_SECONDS = 0.25
_LOOKS_AT_ALL_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineLook:
    """The last look at all deadlines: the seconds that it took, and those since it.

    `is_cut` where more were near than a turn raises. Such a look meets also what came back from a worker, or was given
    a near deadline, as others do not. But it passes over every task that was leased before its deadline, for as long as
    somebody keeps an old snapshot, and may take long.
    """

    seconds: float = 0.0
    seconds_ago: float = 0.0
    is_cut: bool = False

    @property
    def is_due(self) -> bool:
        """Whether to look at all deadlines again."""
        return self.is_cut or self.seconds < _SHORT_LOOK_SECONDS or self.seconds_ago >= _LOOKS_AT_ALL_EVERY_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingPolicy:
    """Steps, highest first, and the time before its deadline at which a task becomes critical."""

    steps: Sequence[AgingStep] = field(default_factory=lambda: STEPS)
    urgent_within: timedelta = URGENT_WITHIN


def aging_policy(config: AgingConfig) -> AgingPolicy:
    """The policy of the configuration."""
    names = {step.priority: f"{step.priority.name.lower()}_after_seconds" for step in STEPS}
    steps = [replace(step, wait=timedelta(seconds=getattr(config, names[step.priority]))) for step in STEPS]
    return AgingPolicy(steps=steps)


def is_urgent(deadline: datetime | None, now: datetime, within: timedelta = URGENT_WITHIN) -> bool:
    """Whether the deadline is near or past, so that the task becomes critical."""
    return deadline is not None and deadline - now < within
