"""Limits of tasks by agent type (vertical scaling): between a base and the limits of the configuration."""

import math
from dataclasses import dataclass

from app.workers.rules.assignment import MAX_FACTOR, TaskLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingPolicy:
    """The base that every task gets, the limit that none exceeds, and when the room between is given."""

    base: TaskLimits
    limit: TaskLimits
    wait_target_seconds: float = 30.0
    max_factor: float = MAX_FACTOR
    # A gain of 0.05 in win probability (35 Elo) an iteration is the specification's own example of a clear one.
    clear_gain: float = 0.05
    # Factor and memory are rounded down to multiples of this share of the base; 0: not at all.
    step: float = 0.0
    # Memory and cores that the hosts have for each worker, whatever the configuration allows.
    host_memory_gb: float = math.inf
    host_cores: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingSnapshot:
    """One agent type: seconds of work that wait for each of its workers, and its quality gain; None: not measured."""

    waiting_seconds_per_worker: float
    quality_gain: float | None
    is_degraded: bool = False


def size(snapshot: SizingSnapshot, policy: SizingPolicy) -> tuple[TaskLimits, str]:
    """The limits of a task of one type, and why.

    The base times 1 + (max_factor - 1) * (1 - pressure) * improvement, with pressure = min(1, waiting seconds per
    worker / wait target) and improvement = min(1, quality gain / clear gain); the base alone under degradation.
    """
    pressure = min(1.0, snapshot.waiting_seconds_per_worker / policy.wait_target_seconds)
    if snapshot.is_degraded:
        return _scale(1.0, policy), "base: resources are short"
    if pressure >= 1:
        return _scale(1.0, policy), f"base: {snapshot.waiting_seconds_per_worker:,.0f} s of work wait for each worker"
    if snapshot.quality_gain is None or snapshot.quality_gain <= 0:
        return _scale(1.0, policy), "base: more compute is not known to improve the results"
    improvement = min(1.0, snapshot.quality_gain / policy.clear_gain)
    factor = _rounded(1 + (policy.max_factor - 1) * (1 - pressure) * improvement, policy.step)
    reason = f"{factor:.1f} times the base: quality gains {snapshot.quality_gain:.3g}, few tasks wait"
    limits = _scale(factor, policy)
    if max(policy.base.memory_gb, policy.host_memory_gb) < min(policy.limit.memory_gb, policy.base.memory_gb * factor):
        reason += f"; the hosts have {limits.memory_gb:.3g} GB for each worker"
    return limits, reason


def _rounded(value: float, step: float) -> float:
    return math.floor(value / step) * step if step and math.isfinite(value) else value


def _scale(factor: float, policy: SizingPolicy) -> TaskLimits:
    base, limit = policy.base, policy.limit
    host_memory_gb = _rounded(policy.host_memory_gb, policy.step * base.memory_gb)
    # Never below the base: where that does not fit, there are too many workers, and the size of the pool is limited.
    return TaskLimits(
        compute_seconds=min(limit.compute_seconds, base.compute_seconds * factor),
        memory_gb=min(limit.memory_gb, base.memory_gb * factor, max(base.memory_gb, host_memory_gb)),
        cpu_cores=min(limit.cpu_cores, base.cpu_cores * factor, max(base.cpu_cores, policy.host_cores)),
    )
