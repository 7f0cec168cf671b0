"""Made-up workloads that a pool should survive: steps, bursts, heavy tails, days and mixtures. All seeded."""

import math
from collections.abc import Iterator
from random import Random

from app.kernel.agents import AgentType
from app.scaling.simulation.workloads import Job, Workload, workload

_ONE = AgentType.GENERATION


def poisson(*, rate: float, mean_seconds: float, span: float, seed: int = 1) -> Workload:
    """Memoryless arrivals (a second) and memoryless service: queueing theory knows the answer."""
    random = Random(seed)
    jobs = (Job(at, _positive(random.expovariate(1 / mean_seconds)), _ONE) for at in _arrivals(random, rate, span))
    return workload("poisson", jobs)


def step(*, tasks: int = 500, seconds: float = 5.0, start: float = 300.0) -> Workload:
    """A few tasks, then very many at once, then nothing."""
    first = [Job(10.0 * place, seconds, _ONE) for place in range(int(start / 10))]
    return workload("step", [*first, *(Job(start, seconds, _ONE) for _ in range(tasks))])


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


def mixed_types(*, rate: float = 6.0, span: float = 3600.0, seed: int = 5) -> Workload:
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


def two_lengths(*, span: float = 7200.0, seed: int = 6) -> Workload:
    """Eight tasks a second of about 1 s, and one every 20 s of about 300 s: no mean fits both."""
    random = Random(seed)
    short = [
        Job(at, _positive(random.gammavariate(4.0, 0.25)), AgentType.PROXIMITY) for at in _arrivals(random, 8.0, span)
    ]
    long = [Job(at, random.gammavariate(4.0, 75.0), AgentType.META_REVIEW) for at in _arrivals(random, 0.05, span)]
    return workload("two-lengths", short + long)


def flash_crowd(*, seed: int = 7) -> Workload:
    """One task a second, then sixty at once, fewer by a factor e every two minutes; at the end thirty for a minute."""
    random, peak = Random(seed), 62.0

    def rate(at: float) -> float:
        crowd = 60.0 * math.exp((1800.0 - at) / 120.0) if at >= 1800.0 else 0.0
        return 1.0 + crowd + (30.0 if 5400.0 <= at < 5460.0 else 0.0)

    jobs = (
        Job(at, _positive(random.gammavariate(2.0, 4.0)), _ONE)
        for at in _arrivals(random, peak, 7200.0)
        if random.random() < rate(at) / peak
    )
    return workload("flash-crowd", jobs)


def batches(*, interval: float = 600.0, tasks: int = 150, times: int = 24, seed: int = 8) -> Workload:
    """So many tasks of about 9 s every ten minutes, and nothing in between."""
    random = Random(seed)
    jobs = (
        Job(interval * time + random.uniform(0.0, 2.0), _positive(random.gammavariate(3.0, 3.0)), AgentType.RANKING)
        for time in range(times)
        for _ in range(tasks)
    )
    return workload("batches", jobs)


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
