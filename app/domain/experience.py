"""What the scaling loop knows from one decision to the next: how fast tasks come and go, and who idled for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from app.domain import arrivals, spare
from app.domain.agents import AgentType
from app.domain.arrivals import Arrivals
from app.domain.lanes import Lane
from app.domain.scaling import ScalingPolicy
from app.domain.service_times import ServicePolicy, mean_after
from app.domain.spare import Spare

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
        arrivals=arrivals.remembered(
            before.arrivals, Arrivals(seconds=seconds, tasks=_arrived(before, look)), policy.budget_seconds
        ),
        service=_service(before, look, service),
        starts=(*before.starts, *look.starts)[-_STARTS:],
        spare=_spare(before, look, seconds, policy),
        workers=look.workers,
    )


def after_removal(experience: Experience, removed: int, workers: int) -> Experience:
    """What is known once the decision was carried out: their idleness must not count again."""
    lowered = spare.lowered(experience.spare, removed) if removed else experience.spare
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
    return arrivals.arrived(before.pending, look.pending, leased)


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
    kept = spare.remembered(before.spare, Spare(seconds=seconds, idle=look.idle), policy.spare)
    gone = before.workers - look.workers
    return spare.lowered(kept, gone) if gone > 0 else kept
