"""How much a worker gets: time, memory and CPU for each task, between a base and the limits (vertical scaling)."""

from dataclasses import dataclass

from app.workers.rules.assignment import MAX_FACTOR, TaskLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingPolicy:
    """The base that everybody has, the limits that nobody passes, and how freely the room between is given."""

    base: TaskLimits
    limit: TaskLimits
    wait_target_seconds: float = 30.0
    most: float = MAX_FACTOR
    # A gain of 0.05 in win probability (35 Elo) an iteration is the specification's own example of a clear one.
    clear_gain: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingSnapshot:
    """One agent type: the work that waits for each of its workers, and how its quality grows (None: not known)."""

    waiting_seconds_per_worker: float
    quality_gain: float | None
    degraded: bool = False


def size(snapshot: SizingSnapshot, policy: SizingPolicy) -> tuple[TaskLimits, str]:
    """The size of a type's workers, and why: base under pressure, more while quality still improves and few wait."""
    pressure = min(1.0, snapshot.waiting_seconds_per_worker / policy.wait_target_seconds)
    if snapshot.degraded:
        return _scaled(1.0, policy), "base: resources are short"
    if pressure >= 1:
        return _scaled(1.0, policy), f"base: {snapshot.waiting_seconds_per_worker:,.0f} s of work wait for each worker"
    if snapshot.quality_gain is None or snapshot.quality_gain <= 0:
        return _scaled(1.0, policy), "base: more compute is not known to improve the results"
    improvement = min(1.0, snapshot.quality_gain / policy.clear_gain)
    factor = 1 + (policy.most - 1) * (1 - pressure) * improvement
    return _scaled(
        factor, policy
    ), f"{factor:.1f} times the base: quality gains {snapshot.quality_gain:.3g}, few tasks wait"


def _scaled(factor: float, policy: SizingPolicy) -> TaskLimits:
    base, limit = policy.base, policy.limit
    return TaskLimits(
        compute_seconds=min(limit.compute_seconds, base.compute_seconds * factor),
        memory_gb=min(limit.memory_gb, base.memory_gb * factor),
        cpu_cores=min(limit.cpu_cores, base.cpu_cores * factor),
    )
