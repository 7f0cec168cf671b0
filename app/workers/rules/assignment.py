"""Assignments of workers: the agent type each prefers, and what its tasks may use within what the worker has."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from app.admin.rules.config import LimitsConfig
from app.kernel.agents import AgentType
from app.queue.rules.tasks import BASE_COMPUTE_SECONDS
from app.workers.rules.hosts import HostPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """Compute time, memory and cores that one task may use; seconds are those of a usual task."""

    compute_seconds: float
    memory_gb: float
    cpu_cores: float


# The smallest limits that the configuration may set for a worker, and so what every task gets at least.
BASE = TaskLimits(compute_seconds=BASE_COMPUTE_SECONDS, memory_gb=1.0, cpu_cores=0.5)
_MAX_COMPUTE_SECONDS = 3600.0


# Two doublings: quality grows with the logarithm of compute, so a third would buy little more.
MAX_FACTOR = 4.0


class Assignment(NamedTuple):
    """Agent type that a worker prefers, and the limits of each of its tasks; None where nothing is decided yet.

    Memory is in GB, `compute_seconds` is the time of a usual task of that agent type. A tuple, since a decision makes
    and compares as many as there are workers.
    """

    agent: AgentType | None = None
    memory_gb: float | None = None
    cpu_cores: float | None = None
    compute_seconds: float | None = None


UNDECIDED = Assignment()


def assignment_to(agent: AgentType, limits: TaskLimits) -> Assignment:
    """Assignment to an agent type with these limits of a task."""
    return Assignment(agent, limits.memory_gb, limits.cpu_cores, limits.compute_seconds)


def within(assignment: Assignment, *, memory_gb: float | None, cpu_cores: float | None) -> Assignment:
    """The assignment cut to this much memory and this many cores; None limits nothing."""
    return assignment._replace(
        memory_gb=_smaller(assignment.memory_gb, memory_gb), cpu_cores=_smaller(assignment.cpu_cores, cpu_cores)
    )


def in_force(
    assignment: Assignment, limits: LimitsConfig, *, memory_gb: float | None, cpu_cores: float | None
) -> Assignment:
    """The assignment cut to what the configuration allows and to the memory and cores that the worker has."""
    # Decisions are made from what was true then: the configuration may allow less by now.
    allowance = within(assignment, memory_gb=limits.max_memory_per_worker_gb, cpu_cores=limits.max_cpu_per_worker)
    return within(allowance, memory_gb=memory_gb, cpu_cores=cpu_cores)


def version(assignment: Assignment) -> str:
    """Name of exactly these values, so that a worker which sends it back is known to go by them."""
    return hashlib.sha256(repr(tuple(assignment)).encode()).hexdigest()[:16]


def usual_limits(limits: LimitsConfig) -> TaskLimits:
    """Limits of every task that is not known to need more."""
    return base_limits(BASE, largest_limits(limits))


def host_policy(limits: LimitsConfig) -> HostPolicy:
    """The policy for hosts, with the memory that every worker gets by the configuration."""
    return HostPolicy(worker_gb=usual_limits(limits).memory_gb)


def largest_limits(limits: LimitsConfig) -> TaskLimits:
    """The most that the configuration lets one task use."""
    return TaskLimits(
        compute_seconds=_MAX_COMPUTE_SECONDS,
        memory_gb=limits.max_memory_per_worker_gb,
        cpu_cores=limits.max_cpu_per_worker,
    )


def base_limits(floor: TaskLimits, limit: TaskLimits) -> TaskLimits:
    """Memory and cores that leave room for a MAX_FACTOR within the limit, never below `floor`; time as in `floor`.

    So whoever raises the limits of the configuration gives every task more.
    """
    return TaskLimits(
        compute_seconds=floor.compute_seconds,
        memory_gb=max(floor.memory_gb, limit.memory_gb / MAX_FACTOR),
        cpu_cores=max(floor.cpu_cores, limit.cpu_cores / MAX_FACTOR),
    )


def _smaller(amount: float | None, limit: float | None) -> float | None:
    return min((value for value in (amount, limit) if value is not None), default=None)
