"""Limits on waiting tasks: one on all of them and a quota per priority, so that floods leave room for urgent work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.kernel.lanes import Priority

# A flood at one priority leaves room for those above it: half, four fifths and 95 % of the queue, then all of it.
QUOTAS: Mapping[Priority, float] = {
    Priority.LOW: 0.5,
    Priority.MEDIUM: 0.8,
    Priority.HIGH: 0.95,
    Priority.CRITICAL: 1.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPolicy:
    """Size of the queue, the share that each priority may take up, and the fullness at which people are warned."""

    max_queue_size: int = 10_000
    quotas: Mapping[Priority, float] = field(default_factory=lambda: QUOTAS)
    warning: float = 0.80
    critical: float = 0.95
    # Displacement makes room for more urgent work by moving the least urgent to the dead letters.
    displaces: bool = False

    def quota(self, priority: Priority) -> int:
        """The number of tasks of this priority that may wait."""
        return math.floor(self.max_queue_size * self.quotas.get(priority, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """The limit that a submit exceeds, and by how many tasks: that of a priority, a namespace, or the whole queue."""

    priority: Priority | None = None
    namespace: str | None = None
    depth: int
    limit: int
    excess: int

    @property
    def reason(self) -> str:
        """The overflow as a sentence for the client."""
        tasks = "tasks" if self.priority is None else f"tasks of priority {self.priority.name.lower()}"
        tasks += "" if self.namespace is None else f" of the namespace {self.namespace}"
        return f"{self.depth:,} {tasks} wait already and {self.limit:,} may; {self.excess:,} of yours do not fit"


Depth = Mapping[Priority, int]


def find_overflow(policy: CapacityPolicy, depth: Depth, incoming: Depth) -> Overflow | None:
    """The first limit that the incoming tasks would exceed, or None when all of them fit."""
    for priority, count in incoming.items():
        overflow = _excess(depth.get(priority, 0), count, policy.quota(priority), priority=priority)
        # A priority above its quota, say after the limits were lowered, must not block submits of other priorities.
        if count and overflow is not None:
            return overflow
    return _excess(sum(depth.values()), sum(incoming.values()), policy.max_queue_size)


def find_namespace_overflow(namespace: str, limit: int, depth: int, incoming: int) -> Overflow | None:
    """The limit of the namespace where the incoming tasks would exceed it."""
    return _excess(depth, incoming, limit, namespace=namespace)


def has_room(policy: CapacityPolicy, depth: Depth, incoming: Depth, *, within: float) -> bool:
    """Whether the queue stays within this share of every bound, so that an estimate of its depth is good enough."""
    total = {priority: depth.get(priority, 0) + incoming.get(priority, 0) for priority in Priority}
    fits = all(total[p] <= within * policy.quota(p) for p, count in incoming.items() if count)
    return fits and sum(total.values()) <= within * policy.max_queue_size


def capacity_level(policy: CapacityPolicy, depth: Depth) -> str:
    """`normal`, `warning` or `critical`, by the fullest limit."""
    fullness = [sum(depth.values()) / policy.max_queue_size]
    fullness += [depth.get(p, 0) / quota for p in Priority if (quota := policy.quota(p))]
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
