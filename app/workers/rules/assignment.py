"""What a worker is told to do and how much its tasks may use, within what it has and what the configuration allows."""

import hashlib
from dataclasses import astuple, dataclass

from app.admin.rules.config import ResourceLimits
from app.kernel.agents import AgentType
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What one task may use."""

    compute_seconds: float
    memory_gb: float
    cpu_cores: float


# The least that the configuration may allow a worker, and so the least that anybody gets.
BASE = Size(compute_seconds=BASE_COMPUTE_SECONDS, memory_gb=1.0, cpu_cores=0.5)
_MOST_COMPUTE_SECONDS = 3600.0


# Two doublings: quality grows with the logarithm of compute, so a third would buy little more.
MAX_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """The agent to prefer; what each task may use, in GB, cores and, for tasks of that agent, seconds of a usual one.

    None: nobody has decided.
    """

    agent: AgentType | None = None
    memory_gb: float | None = None
    cpu_cores: float | None = None
    compute_seconds: float | None = None


def bounded(decided: Posting, limits: ResourceLimits, *, memory_gb: float | None, cpu_cores: float | None) -> Posting:
    """The posting of a worker that has so much: never more than that, nor than the configuration allows."""
    return Posting(
        agent=decided.agent,
        memory_gb=_least(decided.memory_gb, memory_gb, limits.max_memory_per_worker_gb),
        cpu_cores=_least(decided.cpu_cores, cpu_cores, limits.max_cpu_per_worker),
        compute_seconds=decided.compute_seconds,
    )


def version(posting: Posting) -> str:
    """A name of these very values: who knows it knows them, whatever was said in between."""
    return hashlib.sha256(repr(astuple(posting)).encode()).hexdigest()[:16]


def _least(*amounts: float | None) -> float:
    return min(amount for amount in amounts if amount is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a worker is to work on, and how much each of its tasks may use."""

    agent: AgentType
    memory_gb: float
    cpu_cores: float
    compute_seconds: float


def usual_size(limits: ResourceLimits) -> Size:
    """What everybody gets who is not known to need more."""
    return base(BASE, largest(limits))


def largest(limits: ResourceLimits) -> Size:
    return Size(
        compute_seconds=_MOST_COMPUTE_SECONDS,
        memory_gb=limits.max_memory_per_worker_gb,
        cpu_cores=limits.max_cpu_per_worker,
    )


def base(least: Size, limit: Size) -> Size:
    """What everybody gets: all that the limits allow could be given as the most, so whoever raises them gives more.

    Never below `least`. The time that a task gets is its own affair, whatever the limit.
    """
    return Size(
        compute_seconds=least.compute_seconds,
        memory_gb=max(least.memory_gb, limit.memory_gb / MAX_FACTOR),
        cpu_cores=max(least.cpu_cores, limit.cpu_cores / MAX_FACTOR),
    )


def within(wanted: Size, *, memory_gb: float, cpu_cores: float) -> Size:
    """The size on a worker that has no more than this."""
    return Size(
        compute_seconds=wanted.compute_seconds,
        memory_gb=min(wanted.memory_gb, memory_gb),
        cpu_cores=min(wanted.cpu_cores, cpu_cores),
    )
