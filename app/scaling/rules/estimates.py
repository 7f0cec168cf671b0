"""What the scaling loop knows from one decision to the next: how fast tasks come and go, and who idled for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane
from app.scaling.rules import demand, idle
from app.scaling.rules.demand import Arrivals
from app.scaling.rules.idle import Spare
from app.scaling.rules.target import ScalingPolicy

# As many as tell a high percentile from the slowest; a new image or a slower disk is learned within these.
_STARTS = 20
_SLOW = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How many tasks of a type have ever ended, and for how many seconds they ran in all."""

    tasks: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The decayed mean of a type's run times, and how many tasks it was learned from."""

    mean_seconds: float
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The counters at one moment.

    `pending` tasks may run now; `leased` and `ended` count since ever; `starts` are the seconds from request to first
    heartbeat of the workers that have become ready since the last look; `idle` is 0 while tasks wait.
    """

    at: datetime
    pending: Mapping[Lane, int]
    leased: Mapping[Lane, int]
    ended: Mapping[AgentType, Ended]
    starts: Sequence[float] = ()
    idle: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What was learned up to the last look; `workers` is the size of the pool as that decision left it."""

    at: datetime
    pending: Mapping[Lane, int] = field(default_factory=dict)
    leased: Mapping[Lane, int] = field(default_factory=dict)
    ended: Mapping[AgentType, Ended] = field(default_factory=dict)
    arrivals: Sequence[Arrivals] = ()
    service: Mapping[AgentType, Service] = field(default_factory=dict)
    starts: Sequence[float] = ()
    spare: Sequence[Spare] = ()
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """Seconds assumed before anything is known, and the least that a task is ever taken to cost."""

    prior_seconds: float = 20.0
    floor_seconds: float = 1.0
    # The mean of about the last twenty tasks: it follows a new model or prompt within minutes.
    least_alpha: float = 0.05


def learned(before: Experience | None, look: Look, policy: ScalingPolicy, service: ServicePolicy) -> Experience:
    """What is known after one more look."""
    if before is None:
        return Experience(at=look.at, pending=look.pending, leased=look.leased, ended=look.ended, workers=look.workers)
    seconds = max(0.0, (look.at - before.at).total_seconds())
    return Experience(
        at=look.at,
        pending=look.pending,
        leased=look.leased,
        ended=look.ended,
        arrivals=demand.remembered(
            before.arrivals, Arrivals(seconds=seconds, tasks=_arrived(before, look)), policy.budget_seconds
        ),
        service=_service(before, look, service),
        starts=(*before.starts, *look.starts)[-_STARTS:],
        spare=_spare(before, look, seconds, policy),
        workers=look.workers,
    )


def after_removal(experience: Experience, removed: int, workers: int) -> Experience:
    """What is known once the decision was carried out: their idleness must not count again."""
    lowered = idle.lowered(experience.spare, removed) if removed else experience.spare
    return replace(experience, spare=lowered, workers=workers)


def start_seconds(experience: Experience, usual: float) -> float:
    """A high percentile of the starts that were measured; what is usual while there are none."""
    if not experience.starts:
        return usual
    ordered = sorted(experience.starts)
    return ordered[min(len(ordered) - 1, int(_SLOW * len(ordered)))]


def estimate(experience: Experience, agent: AgentType, policy: ServicePolicy) -> float:
    """Seconds that a task of this type will take."""
    known = experience.service.get(agent)
    return max(policy.floor_seconds, known.mean_seconds if known else policy.prior_seconds)


def _arrived(before: Experience, look: Look) -> dict[Lane, int]:
    leased = {lane: tasks - before.leased.get(lane, 0) for lane, tasks in look.leased.items()}
    return demand.arrived(before.pending, look.pending, leased)


def _service(before: Experience, look: Look, policy: ServicePolicy) -> dict[AgentType, Service]:
    found = dict(before.service)
    for agent, ended in look.ended.items():
        last = before.ended.get(agent, Ended())
        tasks, seconds = ended.tasks - last.tasks, max(0.0, ended.seconds - last.seconds)
        if tasks > 0:
            known = found.get(agent, Service(mean_seconds=policy.prior_seconds, tasks=0))
            mean = mean_after(known.mean_seconds, known.tasks, tasks, seconds, policy)
            found[agent] = Service(mean_seconds=mean, tasks=known.tasks + tasks)
    return found


def _spare(before: Experience, look: Look, seconds: float, policy: ScalingPolicy) -> tuple[Spare, ...]:
    """With the idle workers of this look; who left of its own accord is not counted as having idled."""
    kept = idle.remembered(before.spare, Spare(seconds=seconds, idle=look.idle), policy.spare)
    gone = before.workers - look.workers
    return idle.lowered(kept, gone) if gone > 0 else kept


def next_mean(mean: float, tasks: int, seconds: float, policy: ServicePolicy) -> float:
    """The mean of `tasks` tasks after one more: weight `1 / (k + 1)` for the k-th, so the prior counts as one task."""
    return mean + max(policy.least_alpha, 1 / (tasks + 2)) * (seconds - mean)


# So many tasks later a mean has forgotten 99.9 % of what it was; more of them change nothing.
_ENOUGH = 135


def mean_after(mean: float, tasks: int, ended: int, seconds: float, policy: ServicePolicy) -> float:
    """The mean of `tasks` tasks after `ended` more, which took `seconds` in all and are taken to be alike."""
    for place in range(min(ended, _ENOUGH)):
        mean = next_mean(mean, tasks + place, seconds / ended, policy)
    return mean


@dataclass(slots=True)
class ServiceTimes:
    """The means of all agent types, for whoever watches tasks end. Plain state without IO."""

    policy: ServicePolicy = field(default_factory=ServicePolicy)
    # What is known of an agent beforehand; the policy's prior for those that are not named.
    priors: Mapping[AgentType, float] = field(default_factory=dict)
    _means: dict[AgentType, float] = field(default_factory=dict)
    _tasks: dict[AgentType, int] = field(default_factory=dict)

    def observe(self, agent: AgentType, seconds: float) -> None:
        """A task of this type ran for so long."""
        tasks = self._tasks.get(agent, 0)
        self._means[agent] = next_mean(self._mean(agent), tasks, seconds, self.policy)
        self._tasks[agent] = tasks + 1

    def estimate(self, agent: AgentType) -> float:
        """Seconds that the next task of this type will take, never under the floor."""
        return max(self.policy.floor_seconds, self._mean(agent))

    def _mean(self, agent: AgentType) -> float:
        known = self._means.get(agent)
        return self.priors.get(agent, self.policy.prior_seconds) if known is None else known
