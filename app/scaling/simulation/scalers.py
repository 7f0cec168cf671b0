"""What the simulation asks for a decision: what it may see, and what it may answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from app.scaling.rules import target
from app.scaling.rules.estimates import ServiceTimes
from app.scaling.rules.idle import Spare, lowered, remembered
from app.scaling.rules.target import ScalingPlan, ScalingPolicy, ScalingSnapshot
from app.scaling.simulation.queue import Backlog

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The pool at one moment, in seconds since the start. `starting` holds the seconds until each is ready."""

    now: float
    idle: int
    busy: int
    starting: Sequence[float]
    draining: int
    backlog: Backlog
    service: ServiceTimes
    running_seconds: float

    @property
    def ready(self) -> int:
        """Workers that can hold a task."""
        return self.idle + self.busy

    @property
    def workers(self) -> int:
        """Those that are here or on their way in."""
        return self.ready + len(self.starting)

    @property
    def running_mean_seconds(self) -> float | None:
        """What a task at work is estimated to take in all; None when nobody works."""
        running = self.busy + self.draining
        return self.running_seconds / running if running else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The size that the pool should have, and when to ask again if not at the next tick.

    `cancel_starting`: those that are not yet ready are the first to go, as Kubernetes and dask have it.
    """

    target: int
    cancel_starting: bool = True
    again_after_seconds: float | None = None


class Scaler(Protocol):
    """A way to size a pool."""

    name: str
    interval_seconds: float
    hurry_seconds: float

    def decide(self, seen: Observation) -> Change:
        """The size for now."""
        ...

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """Whether an arrival calls for a decision before the next tick."""
        ...


class Rule:
    """Our own rule, unchanged: this class only remembers what the service keeps in its database."""

    name = "convener"

    def __init__(self, policy: ScalingPolicy, *, start_seconds: float) -> None:
        self.interval_seconds = policy.tick_seconds
        self.hurry_seconds = policy.hurry_seconds
        self.plan: ScalingPlan | None = None
        self._policy = policy
        self._start_seconds = start_seconds
        self._spare: tuple[Spare, ...] = ()
        self._last = 0.0

    def decide(self, seen: Observation) -> Change:
        """Take the sample of idle workers, decide, and forget the idleness of those that leave."""
        idle = 0 if seen.backlog.tasks else seen.idle
        self._spare = remembered(self._spare, Spare(seconds=seen.now - self._last, idle=idle), self._policy.spare)
        self._last = seen.now
        plan = target.decide(self._snapshot(seen), self._policy, _EPOCH + timedelta(seconds=seen.now))
        if plan.remove_idle:
            self._spare = lowered(self._spare, plan.remove_idle)
        self.plan = plan
        return Change(target=plan.target, cancel_starting=False, again_after_seconds=plan.decide_again_after_seconds)

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """The rule's own word."""
        return target.is_burst(queued_seconds, workers, seconds_since_last, self._policy)

    def _snapshot(self, seen: Observation) -> ScalingSnapshot:
        return ScalingSnapshot(
            idle=seen.idle,
            busy=seen.busy,
            starting=seen.starting,
            draining=seen.draining,
            waiting=seen.backlog.groups(seen.now, self._policy.budget_seconds, seen.service),
            spare=self._spare,
            cpu=seen.busy / max(1, seen.ready),
            start_seconds=self._start_seconds,
            running_mean_seconds=seen.running_mean_seconds,
        )
