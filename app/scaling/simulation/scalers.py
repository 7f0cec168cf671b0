"""Interface between the simulation and a scaler: the observation, the decision, and our own rule behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from app.scaling.rules import target
from app.scaling.rules.estimates import ServiceTimes
from app.scaling.rules.idle import IdleSample, extend_history, without_workers
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot
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
        """Workers that stay or start."""
        return self.ready + len(self.starting)

    @property
    def running_mean_seconds(self) -> float | None:
        """Estimated mean run time of the tasks that run; None when none runs."""
        running = self.busy + self.draining
        return self.running_seconds / running if running else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalerDecision:
    """The size that the pool should have, and the seconds until the next decision; None: at the next tick.

    With `cancel_starting` workers that are not ready yet are the first to go, as with Kubernetes and dask.
    """

    target: int
    cancel_starting: bool = True
    again_after_seconds: float | None = None


class Scaler(Protocol):
    """A way to size a pool."""

    name: str
    interval_seconds: float
    hurry_seconds: float

    def decide(self, observation: Observation) -> ScalerDecision:
        """Decide the size of the pool."""
        ...

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """Whether an arrival calls for a decision before the next tick."""
        ...


class Rule:
    """Our own rule, unchanged; the class only holds what the service keeps in its database."""

    name = "convener"

    def __init__(self, policy: ScalingPolicy, *, start_seconds: float) -> None:
        self.interval_seconds = policy.tick_seconds
        self.hurry_seconds = policy.hurry_seconds
        self._policy = target.priced(policy, start_seconds)
        self._start_seconds = start_seconds
        self._idle_history: tuple[IdleSample, ...] = ()
        self._last = 0.0

    def decide(self, observation: Observation) -> ScalerDecision:
        """Sample the idle workers, decide, and drop the idleness of those that leave."""
        idle = 0 if observation.backlog.tasks else observation.idle
        self._idle_history = extend_history(
            self._idle_history, IdleSample(seconds=observation.now - self._last, idle=idle), self._policy.idle
        )
        self._last = observation.now
        plan = target.decide(self._snapshot(observation), self._policy, _EPOCH + timedelta(seconds=observation.now))
        if plan.remove_idle:
            self._idle_history = without_workers(self._idle_history, plan.remove_idle)
        return ScalerDecision(
            target=plan.target, cancel_starting=False, again_after_seconds=plan.decide_again_after_seconds
        )

    def is_burst(self, queued_seconds: float, workers: int, seconds_since_last: float) -> bool:
        """Whether the rule calls this a burst."""
        return target.is_burst(queued_seconds, workers, seconds_since_last, self._policy)

    def _snapshot(self, observation: Observation) -> ScalingSnapshot:
        return ScalingSnapshot(
            idle=observation.idle,
            busy=observation.busy,
            starting=observation.starting,
            draining=observation.draining,
            waiting=observation.backlog.groups(observation.now, self._policy.budget_seconds, observation.service),
            idle_history=self._idle_history,
            cpu=observation.busy / max(1, observation.ready),
            start_seconds=self._start_seconds,
            running_mean_seconds=observation.running_mean_seconds,
        )
