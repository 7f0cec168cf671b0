"""Limits on waiting tasks: one on all of them and a quota per priority, so that floods leave room for urgent work.

Everything here goes by the priorities at submit: a task that has risen takes up no room of those above.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from app.admin.rules.config import QueueConfig
from app.kernel.lanes import Priority

# Each for its priority and all below it together, so that a flood of these leaves room for those above: half, four
# fifths and 95 % of the queue, then all of it. Above 1 it is a number of tasks.
QUOTAS: Mapping[Priority, float] = {
    Priority.LOW: 0.5,
    Priority.MEDIUM: 0.8,
    Priority.HIGH: 0.95,
    Priority.CRITICAL: 1.0,
}


_ASCENDING = tuple(sorted(Priority))


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPolicy:
    """Size of the queue, the quota of each priority and those below it, and the fullness at which people are warned."""

    max_queue_size: int = 10_000
    quotas: Mapping[Priority, float] = field(default_factory=lambda: QUOTAS)
    warning: float = 0.80
    critical: float = 0.95
    # Displacement makes room for more urgent work by moving the least urgent to the dead letters.
    displaces: bool = False
    # Numbers of tasks, kept because every submit asks for all of them.
    _limits: Mapping[Priority, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_limits", {priority: self._limit(priority) for priority in Priority})

    def quota(self, priority: Priority) -> int:
        """The number of tasks of this priority and of lower ones that may wait together."""
        return self._limits[priority]

    def _limit(self, priority: Priority) -> int:
        quota = self.quotas.get(priority, 1.0)
        # As it was written: the nearest binary number to 0.29 is less than 0.29, and would make 28 of 100.
        tasks = quota if quota > 1 else Fraction(str(quota)) * self.max_queue_size
        return min(self.max_queue_size, math.floor(tasks))


def capacity_policy(config: QueueConfig, settings: CapacityPolicy) -> CapacityPolicy:
    """The policy of the configuration; what that leaves open is as the settings of the process say."""
    quotas = {priority: getattr(config.quotas, priority.name.lower()) for priority in Priority}
    return replace(
        settings,
        max_queue_size=config.max_size or settings.max_queue_size,
        displaces=settings.displaces if config.displaces is None else config.displaces,
        quotas={**settings.quotas, **{priority: quota for priority, quota in quotas.items() if quota is not None}},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """The limit that a submit exceeds, and by how many tasks: of a priority with those below, a namespace, or all."""

    priority: Priority | None = None
    namespace: str | None = None
    depth: int
    limit: int
    excess: int

    @property
    def reason(self) -> str:
        """The overflow as a sentence for the client."""
        tasks = "tasks" if self.priority is None else f"tasks of priority {name_with_lower(self.priority)}"
        tasks += "" if self.namespace is None else f" of the namespace {self.namespace}"
        return f"{self.depth:,} {tasks} wait already and {self.limit:,} may; {self.excess:,} of yours do not fit"


Depth = Mapping[Priority, int]


def name_with_lower(priority: Priority) -> str:
    """The name of a priority as one that stands for those below it as well."""
    return priority.name.lower() + ("" if priority is min(Priority) else " and below")


def cumulative(depth: Depth) -> dict[Priority, int]:
    """For each priority the number of tasks that are of it or of a lower one."""
    tasks = 0
    sums: dict[Priority, int] = {}
    for priority in _ASCENDING:
        tasks += depth.get(priority, 0)
        sums[priority] = tasks
    return sums


def _quotas(policy: CapacityPolicy, incoming: Depth) -> Iterator[Priority]:
    """The quotas that the incoming tasks count against, without those that are the limit of the queue itself."""
    lowest = min((priority for priority, count in incoming.items() if count), default=max(Priority))
    return (p for p in _ASCENDING if p >= lowest and policy.quota(p) < policy.max_queue_size)


def find_overflow(policy: CapacityPolicy, depth: Depth, incoming: Depth) -> Overflow | None:
    """The first limit that the incoming tasks would exceed, or None when all of them fit."""
    waiting, coming = cumulative(depth), cumulative(incoming)
    for priority in _quotas(policy, incoming):
        overflow = _excess(waiting[priority], coming[priority], policy.quota(priority), priority=priority)
        if overflow is not None:
            return overflow
    return _excess(sum(depth.values()), sum(incoming.values()), policy.max_queue_size)


def find_namespace_overflow(namespace: str, limit: int, depth: int, incoming: int) -> Overflow | None:
    """The limit of the namespace where the incoming tasks would exceed it."""
    return _excess(depth, incoming, limit, namespace=namespace)


def has_room(policy: CapacityPolicy, depth: Depth, incoming: Depth, *, within: float) -> bool:
    """Whether the queue stays within this share of every bound, so that an estimate of its depth is good enough."""
    waiting, coming = cumulative(depth), cumulative(incoming)
    fits = all(waiting[p] + coming[p] <= within * policy.quota(p) for p in _quotas(policy, incoming))
    return fits and sum(depth.values()) + sum(incoming.values()) <= within * policy.max_queue_size


def capacity_level(policy: CapacityPolicy, depth: Depth) -> str:
    """`normal`, `warning` or `critical`, by the fullest limit."""
    fullness = [sum(depth.values()) / policy.max_queue_size]
    fullness += [tasks / quota for p, tasks in cumulative(depth).items() if (quota := policy.quota(p))]
    fullest = max(fullness)
    if fullest >= policy.critical:
        return "critical"
    return "warning" if fullest >= policy.warning else "normal"


def retry_after(excess: int, finished_per_second: float) -> int:
    """Seconds, 1 to 60, in which `excess` tasks finish at the current rate; 5 where no rate is known."""
    # At most a minute: the rate is that of the last minutes, and room may be made sooner.
    if finished_per_second <= 0:
        return 5
    return max(1, min(60, math.ceil(excess / finished_per_second)))


def _excess(
    depth: int, count: int, limit: int, *, priority: Priority | None = None, namespace: str | None = None
) -> Overflow | None:
    excess = depth + count - limit
    if excess <= 0:
        return None
    return Overflow(priority=priority, namespace=namespace, depth=depth, limit=limit, excess=excess)
