"""Estimates that every decision updates from the counters: arrivals, service times, start times, idle workers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane
from app.scaling.rules import demand, idle
from app.scaling.rules.demand import Arrivals
from app.scaling.rules.idle import IdleSample
from app.scaling.rules.target import USUAL_START_SECONDS, ScalingPolicy

# As many as tell a high percentile from the slowest; a new image or a slower disk is learned within these.
_STARTS = 20
_SLOW = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTotals:
    """Number of tasks of a type that have ever ended, and the seconds that they ran in all."""

    tasks: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """Decayed mean of the run times of a type, and the number of tasks behind it."""

    mean_seconds: float
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReading:
    """The counters at one moment.

    `pending` tasks may run now; `leases` and `totals` count since ever; `starts` are the seconds from request to first
    heartbeat of the workers that have become ready since the last reading; `idle` is 0 while tasks wait.
    """

    at: datetime
    pending: Mapping[Lane, int]
    leases: Mapping[Lane, int]
    totals: Mapping[AgentType, TaskTotals]
    starts: Sequence[float] = ()
    idle: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassHistory:
    """Size of a class of workers after the last decision, its idle workers lately, and its last starts."""

    workers: int = 0
    idle_history: Sequence[IdleSample] = ()
    starts: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Estimates as of the last reading of the counters; `workers` is the size of the usual pool after that decision.

    `classes` has what is known of each class of workers by its name.
    """

    at: datetime
    pending: Mapping[Lane, int] = field(default_factory=dict)
    leases: Mapping[Lane, int] = field(default_factory=dict)
    totals: Mapping[AgentType, TaskTotals] = field(default_factory=dict)
    arrivals: Sequence[Arrivals] = ()
    service_times: Mapping[AgentType, ServiceTime] = field(default_factory=dict)
    starts: Sequence[float] = ()
    idle_history: Sequence[IdleSample] = ()
    workers: int = 0
    classes: Mapping[str, ClassHistory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimePolicy:
    """Seconds assumed before any task has ended, and the fewest that a task is ever taken to cost."""

    prior_seconds: float = 20.0
    floor_seconds: float = 1.0
    # The mean of about the last twenty tasks: it follows a new model or prompt within minutes.
    least_alpha: float = 0.05


SERVICE_TIMES = ServiceTimePolicy()


def update(
    previous: Estimates | None, reading: CounterReading, policy: ScalingPolicy, service_policy: ServiceTimePolicy
) -> Estimates:
    """The estimates after one more reading of the counters; the first reading only sets the baseline."""
    # The totals before the first reading belong to an unknown span of time, so nothing is learned from them.
    baseline = Estimates(
        at=reading.at, pending=reading.pending, leases=reading.leases, totals=reading.totals, workers=reading.workers
    )
    if previous is None:
        return baseline
    # Never negative, also when the clock of the database was set back.
    seconds = max(0.0, (reading.at - previous.at).total_seconds())
    arrivals = Arrivals(seconds=seconds, tasks=_arrivals(previous, reading))
    return replace(
        baseline,
        arrivals=demand.extend_history(previous.arrivals, arrivals, policy.budget_seconds),
        service_times=_service_times(previous, reading, service_policy),
        starts=(*previous.starts, *reading.starts)[-_STARTS:],
        idle_history=_idle_history(previous, reading, seconds, policy),
    )


def class_history(
    previous: ClassHistory,
    seconds: float,
    idle_workers: int,
    workers: int,
    policy: ScalingPolicy,
    starts: Sequence[float] = (),
) -> ClassHistory:
    """Return the history of a class of workers after one more reading, as for the usual pool."""
    history = idle.extend_history(previous.idle_history, _idle_sample(seconds, idle_workers, policy), policy.idle)
    departures = max(0, previous.workers - workers)
    return ClassHistory(
        workers=workers,
        idle_history=idle.without_workers(history, departures),
        starts=(*previous.starts, *starts)[-_STARTS:],
    )


def after_removal(estimates: Estimates, removals: int, workers: int) -> Estimates:
    """The estimates once a decision was applied: the idleness of the workers it removed must not count again."""
    history = idle.without_workers(estimates.idle_history, removals) if removals else estimates.idle_history
    return replace(estimates, idle_history=history, workers=workers)


def start_seconds(estimates: Estimates, of_class: ClassHistory | None = None) -> float:
    """A high percentile of the measured start times of workers; the usual time while there are none.

    Those of a class, whose machines may start in their own time, go by its own once there are any.
    """
    starts = sorted(estimates.starts if of_class is None or not of_class.starts else of_class.starts)
    return starts[min(len(starts) - 1, int(_SLOW * len(starts)))] if starts else USUAL_START_SECONDS


def task_seconds(estimates: Estimates, agent: AgentType) -> float:
    """Seconds that a task of this type will take, never under the floor."""
    service_time = estimates.service_times.get(agent)
    return max(SERVICE_TIMES.floor_seconds, service_time.mean_seconds if service_time else SERVICE_TIMES.prior_seconds)


def arrival_rates(estimates: Estimates) -> dict[Lane, float]:
    """Tasks a second that came into each lane lately."""
    seconds = sum(interval.seconds for interval in estimates.arrivals)
    tasks: Counter[Lane] = Counter()
    for interval in estimates.arrivals:
        tasks.update(interval.tasks)
    return {lane: count / seconds for lane, count in tasks.items()} if seconds else {}


def _arrivals(previous: Estimates, reading: CounterReading) -> dict[Lane, int]:
    leases = {lane: tasks - previous.leases.get(lane, 0) for lane, tasks in reading.leases.items()}
    return demand.count_arrivals(previous.pending, reading.pending, leases)


def _service_times(
    previous: Estimates, reading: CounterReading, policy: ServiceTimePolicy
) -> dict[AgentType, ServiceTime]:
    service_times = dict(previous.service_times)
    for agent, total in reading.totals.items():
        last = previous.totals.get(agent, TaskTotals())
        tasks, seconds = total.tasks - last.tasks, max(0.0, total.seconds - last.seconds)
        if tasks > 0:
            mean = service_times.get(agent, ServiceTime(mean_seconds=policy.prior_seconds, tasks=0))
            mean_seconds = mean_after(mean.mean_seconds, mean.tasks, tasks, seconds, policy)
            service_times[agent] = ServiceTime(mean_seconds=mean_seconds, tasks=mean.tasks + tasks)
    return service_times


def _idle_history(
    previous: Estimates, reading: CounterReading, seconds: float, policy: ScalingPolicy
) -> tuple[IdleSample, ...]:
    """The history with the idle workers of this reading; one that left by itself is not counted as having idled."""
    history = idle.extend_history(previous.idle_history, _idle_sample(seconds, reading.idle, policy), policy.idle)
    # Workers that ended without a decision took their idle time along.
    departures = previous.workers - reading.workers
    return idle.without_workers(history, departures) if departures > 0 else history


def _idle_sample(seconds: float, count: int, policy: ScalingPolicy) -> IdleSample:
    # Nobody looked for longer than a tick: whoever idles now may have been at work all the while.
    return IdleSample(seconds=min(seconds, policy.tick_seconds), idle=count)


def next_mean(mean: float, tasks: int, seconds: float, policy: ServiceTimePolicy) -> float:
    """Decayed mean after one more task than `tasks`: it moves by max(least_alpha, 1 / (tasks + 2)) of the difference.

    Until the floor of the weight is reached this is the plain mean, in which the prior counts as one task.
    """
    return mean + max(policy.least_alpha, 1 / (tasks + 2)) * (seconds - mean)


# So many tasks later a mean has forgotten 99.9 % of what it was; more of them change nothing.
_ENOUGH = 135


def mean_after(mean: float, tasks: int, new_tasks: int, seconds: float, policy: ServiceTimePolicy) -> float:
    """Decayed mean of `tasks` tasks after `new_tasks` more, which took `seconds` in all and are taken to be alike."""
    for place in range(min(new_tasks, _ENOUGH)):
        mean = next_mean(mean, tasks + place, seconds / new_tasks, policy)
    return mean


@dataclass(slots=True)
class ServiceTimes:
    """Decayed means of all agent types, updated task by task (the simulation sees every one end)."""

    _means: dict[AgentType, float] = field(default_factory=dict)
    _tasks: dict[AgentType, int] = field(default_factory=dict)

    def observe(self, agent: AgentType, seconds: float) -> None:
        """A task of this type ran for so long."""
        tasks = self._tasks.get(agent, 0)
        self._means[agent] = next_mean(self._mean(agent), tasks, seconds, SERVICE_TIMES)
        self._tasks[agent] = tasks + 1

    def estimate(self, agent: AgentType) -> float:
        """Seconds that the next task of this type will take, never under the floor."""
        return max(SERVICE_TIMES.floor_seconds, self._mean(agent))

    def _mean(self, agent: AgentType) -> float:
        return self._means.get(agent, SERVICE_TIMES.prior_seconds)
