"""How much work may wait: a bound on the whole queue and one for each priority, so that no flood of ordinary work
keeps urgent work out."""

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
    """Tasks that may wait in all; the share of them that one priority may take up; and when that is worth a warning."""

    max_queue_size: int = 10_000
    quotas: Mapping[Priority, float] = field(default_factory=lambda: QUOTAS)
    warning: float = 0.80
    critical: float = 0.95
    # Displacement makes room for more urgent work by moving the least urgent to the dead letters.
    displaces: bool = False

    def quota(self, priority: Priority) -> int:
        """How many tasks of this priority may wait."""
        return math.floor(self.max_queue_size * self.quotas.get(priority, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """Why a submit does not fit: how many tasks too many, of which priority (None: all together)."""

    priority: Priority | None
    depth: int
    limit: int
    excess: int

    @property
    def reason(self) -> str:
        """In words."""
        whose = "tasks" if self.priority is None else f"tasks of priority {self.priority.name.lower()}"
        return f"{self.depth:,} {whose} wait already and {self.limit:,} may; {self.excess:,} of yours do not fit"


Depth = Mapping[Priority, int]


def find_overflow(policy: CapacityPolicy, depth: Depth, incoming: Depth) -> Overflow | None:
    """What does not fit, or None when everything does."""
    for priority, count in incoming.items():
        found = _over(priority, depth.get(priority, 0), count, policy.quota(priority))
        if count and found is not None:
            return found
    return _over(None, sum(depth.values()), sum(incoming.values()), policy.max_queue_size)


def has_room(policy: CapacityPolicy, depth: Depth, incoming: Depth, *, within: float) -> bool:
    """Whether the queue stays within this share of every bound, so that an estimate of its depth is good enough."""
    after = {priority: depth.get(priority, 0) + incoming.get(priority, 0) for priority in Priority}
    fits = all(after[p] <= within * policy.quota(p) for p, count in incoming.items() if count)
    return fits and sum(after.values()) <= within * policy.max_queue_size


def capacity_level(policy: CapacityPolicy, depth: Depth) -> str:
    """`normal`, `warning` or `critical`, by the fullest of the queue and its quotas."""
    fullness = [sum(depth.values()) / policy.max_queue_size]
    fullness += [depth.get(p, 0) / quota for p in Priority if (quota := policy.quota(p))]
    worst = max(fullness)
    if worst >= policy.critical:
        return "critical"
    return "warning" if worst >= policy.warning else "normal"


def retry_after(excess: int, finished_per_second: float) -> int:
    """Seconds, 1 to 60, until so much has probably been worked off; 5 where nothing is known."""
    if finished_per_second <= 0:
        return 5
    return max(1, min(60, math.ceil(excess / finished_per_second)))


def _over(priority: Priority | None, depth: int, count: int, limit: int) -> Overflow | None:
    excess = depth + count - limit
    return Overflow(priority=priority, depth=depth, limit=limit, excess=excess) if excess > 0 else None
