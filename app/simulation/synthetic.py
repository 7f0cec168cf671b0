"""Made-up workloads that a pool should survive: steps, bursts, heavy tails, days and mixtures. All seeded."""

import math
from collections.abc import Iterator
from random import Random

from app.domain.agents import AgentType
from app.simulation.workloads import Job, Workload, workload

_ONE = AgentType.GENERATION


def poisson(*, rate: float, mean_seconds: float, span: float, seed: int = 1) -> Workload:
    """Memoryless arrivals (a second) and memoryless service: queueing theory knows the answer."""
    random = Random(seed)
    jobs = (Job(at, _positive(random.expovariate(1 / mean_seconds)), _ONE) for at in _arrivals(random, rate, span))
    return workload("poisson", jobs)


def step(*, tasks: int = 500, seconds: float = 5.0, after: float = 300.0) -> Workload:
    """A few tasks, then very many at once, then nothing."""
    before = [Job(10.0 * place, seconds, _ONE) for place in range(int(after / 10))]
    return workload("step", [*before, *(Job(after, seconds, _ONE) for _ in range(tasks))])


def on_off(*, period: float = 310.0, tasks: int = 200, seconds: float = 6.0, times: int = 12) -> Workload:
    """Bursts that come back just after a scale-down window of 300 s is over."""
    random = Random(2)
    jobs = (
        Job(period * time + random.uniform(0, 10), random.uniform(0.5, 1.5) * seconds, _ONE)
        for time in range(times)
        for _ in range(tasks)
    )
    return workload("on-off", jobs)


def heavy_tailed(*, rate: float = 2.0, span: float = 3600.0, seed: int = 3) -> Workload:
    """Service by a Pareto law with infinite variance, mean 9 s: most take 3 s, some take ten minutes."""
    random = Random(seed)
    jobs = (Job(at, min(600.0, 3.0 * random.paretovariate(1.5)), _ONE) for at in _arrivals(random, rate, span))
    return workload("heavy-tailed", jobs)


def diurnal(*, peak: float = 8.0, mean_seconds: float = 8.0, span: float = 86_400.0, seed: int = 4) -> Workload:
    """A day: the rate follows a sine from a twentieth of its peak at night."""
    random = Random(seed)
    jobs = (
        Job(at, _positive(random.gammavariate(2.0, mean_seconds / 2)), _ONE)
        for at in _arrivals(random, peak, span)
        if random.random() < 0.525 - 0.475 * math.cos(2 * math.pi * at / 86_400)
    )
    return workload("diurnal", jobs)


def mixed(*, rate: float = 6.0, span: float = 3600.0, seed: int = 5) -> Workload:
    """All six types, service times from 2 s to 40 s; beside a steady stream, ranking comes in tournaments of 50."""
    random = Random(seed)
    jobs = [
        Job(at, _positive(random.gammavariate(3.0, _MEANS[agent] / 3)), agent)
        for at in _arrivals(random, rate, span)
        for agent in random.choices(list(_MEANS), _SHARES)
    ]
    tournaments = [
        Job(120.0 * place, _positive(random.gammavariate(3.0, 2.0)), AgentType.RANKING)
        for place in range(1, int(span / 120))
        for _ in range(50)
    ]
    return workload("mixed", jobs + tournaments)


_MEANS = {
    AgentType.GENERATION: 25.0,
    AgentType.REFLECTION: 12.0,
    AgentType.RANKING: 6.0,
    AgentType.EVOLUTION: 18.0,
    AgentType.PROXIMITY: 2.0,
    AgentType.META_REVIEW: 40.0,
}
_SHARES = (0.2, 0.3, 0.25, 0.15, 0.05, 0.05)


def _arrivals(random: Random, rate: float, span: float) -> Iterator[float]:
    at = random.expovariate(rate)
    while at < span:
        yield at
        at += random.expovariate(rate)


def _positive(seconds: float) -> float:
    return max(0.05, seconds)
