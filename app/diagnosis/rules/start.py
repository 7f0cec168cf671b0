"""Estimate of when a task in line starts: an interval, from its place, the workers, and how long tasks take.

A worker that ends a task, or becomes ready, is an opening; the task starts with the opening after those of the tasks
before it. Openings come at random at the rate of the workers over the mean service time, so the work until the n-th has
a gamma distribution; its quantile is that of Wilson and Hilferty ("The distribution of chi-square", PNAS 1931).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from app.diagnosis.rules.facts import Place
from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane

_HORIZON_SECONDS = 30 * 86_400.0
_MOST_ROUNDS = 50
_SETTLED = 1.01
_LEAST_WEIGHT = 1e-9
# So many tasks tell their mean better than what was assumed or learned before them.
_ENOUGH_TASKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPolicy:
    """Spread of the estimate: bounds of the squared variation of service times, and the uncertainty of the rate.

    The rate is uncertain where the pool changes. Chosen so that in simulations, of the traces with a pool that grows
    and of queues with one that does not, about 90 % of tasks start before p90.
    """

    usual_variation: float = 1.0
    least_variation: float = 0.3
    rate_uncertainty: float = 0.1
    # Of the mean service time, on top of p90: tasks that began together do not end at random.
    slack: float = 0.05
    # Of the normal distribution, at 90 %.
    z90: float = 1.2816


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Other tasks that go before it: those that wait, and those that come while it does, `limit` of them at most."""

    tasks: float
    seconds: float
    arrivals_per_second: float = 0.0
    limit: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A task in line: `ahead` tasks of its lane go before it, which take `seconds` each, and those of the rivals.

    `running_seconds` is the mean of the tasks that the busy workers have; `starting` are the seconds until each further
    worker is ready. `variation` is that of the service times: the squared ratio of deviation and mean, where known.
    Where decisions may still add workers, `grows_after_seconds` is the wait from which they do.
    """

    ahead: float
    seconds: float
    rivals: Sequence[Rival] = ()
    idle: int = 0
    busy: int = 0
    running_seconds: float = 0.0
    starting: Sequence[float] = ()
    variation: float | None = None
    grows_after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEstimate:
    """Seconds until the start that half, and nine of ten, such tasks do not exceed."""

    p50_seconds: float
    p90_seconds: float


def estimate_start(line: Line, policy: StartPolicy = StartPolicy()) -> StartEstimate | None:
    """The estimate; None where no worker is there or on its way, or others keep going before it."""
    median, late = _seconds_at(line, 0.0, policy), _seconds_at(line, policy.z90, policy)
    if median is None or late is None:
        return None
    late += policy.slack * line.seconds if late else 0.0
    if line.grows_after_seconds is not None:
        # From then on time counts half, as if there were twice as many workers.
        median, late = (min(wait, (wait + line.grows_after_seconds) / 2) for wait in (median, late))
    return StartEstimate(p50_seconds=median, p90_seconds=late)


def service_seconds(lately: Durations, learned_seconds: float) -> float:
    """Seconds that a task takes: the mean of those that completed lately, or what was learned where they are few.

    What the pool is sized by would be too long for short tasks: it has a floor and counts its prior as a task.
    """
    mean = lately.mean
    return learned_seconds if not mean or lately.count < _ENOUGH_TASKS else mean


def rivals(
    lane: Lane,
    place: Place,
    *,
    served: Collection[AgentType],
    waiting: Mapping[Lane, int],
    arrivals: Mapping[Lane, float],
    seconds: Mapping[AgentType, float],
    weights: Mapping[AgentType, float],
) -> list[Rival]:
    """The tasks that go before one in this lane, but for those before it in the lane itself.

    Higher priorities all do; of other agent types at the same one as many as start-time fair queueing lets through by
    their weights until its turn. `served` are the agent types that the same workers run.
    """
    agent, chosen = lane.agent_type, [Rival(tasks=place.higher, seconds=seconds[lane.agent_type])]
    # Of the round in which it has its turn, half goes before it.
    own_share = (place.same + 0.5) * seconds[agent] / max(weights.get(agent, 0.0), _LEAST_WEIGHT)
    for other in sorted(lane for lane in waiting.keys() | arrivals.keys() if lane.agent_type in served):
        came, tasks = arrivals.get(other, 0.0), waiting.get(other, 0)
        rival = Rival(tasks=tasks, seconds=seconds[other.agent_type], arrivals_per_second=came)
        if other.priority > lane.priority:
            # Those of its own type are in its place.
            chosen.append(replace(rival, tasks=0.0) if other.agent_type is agent else rival)
        elif other.priority == lane.priority and other.agent_type is not agent:
            limit = own_share * weights.get(other.agent_type, 0.0) / rival.seconds
            chosen.append(replace(rival, limit=limit))
    return chosen


def _seconds_at(line: Line, z: float, policy: StartPolicy) -> float | None:
    """Seconds until the start at this quantile: the longer it takes, the more rivals come before it."""
    seconds = 0.0
    for _ in range(_MOST_ROUNDS):
        tasks, mean = _tasks_ahead(line, seconds)
        openings = tasks + 1 - line.idle
        if openings <= 0:
            return seconds
        later = _time_of(line, _quantile(line, openings, z, policy), mean)
        if later is None or later <= seconds * _SETTLED:
            return later
        seconds = later
    return None


def _tasks_ahead(line: Line, seconds: float) -> tuple[float, float]:
    """Number of tasks that go before it within so many seconds, and the mean service time while it waits."""
    counts = [min(rival.tasks + rival.arrivals_per_second * seconds, rival.limit) for rival in line.rivals]
    tasks = line.ahead + sum(counts)
    work = line.ahead * line.seconds
    work += sum(count * rival.seconds for count, rival in zip(counts, line.rivals, strict=True))
    return tasks, (work + (line.running_seconds or line.seconds)) / (tasks + 1)


def _quantile(line: Line, openings: float, z: float, policy: StartPolicy) -> float:
    """Expected openings at the moment by which, at this quantile, so many have come."""
    variation = policy.usual_variation if line.variation is None else max(policy.least_variation, line.variation)
    uncertainty = 0.0 if line.grows_after_seconds is None else policy.rate_uncertainty
    spread = (variation + uncertainty**2 * openings) / (9 * openings)
    return float(openings * (1 - spread + z * math.sqrt(spread)) ** 3)


def _time_of(line: Line, openings: float, mean_seconds: float) -> float | None:
    """Seconds until so many openings are expected; None: never."""
    workers, moment, count = line.busy + line.idle, 0.0, 0.0
    for ready in (*sorted(line.starting), math.inf):
        speed = workers / mean_seconds
        if speed > 0 and count + speed * (ready - moment) >= openings:
            reached = moment + (openings - count) / speed
            return reached if reached < _HORIZON_SECONDS else None
        if math.isinf(ready):
            return None
        count, moment, workers = count + speed * (ready - moment) + 1, ready, workers + 1
        if count >= openings:
            return moment
    return None
