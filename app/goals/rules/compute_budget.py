"""Room that a compute budget leaves for further tasks, and those that run for which it leaves none until their end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.goals.rules.budgets import Compute

# What runs may end within this share beyond the budget; then it is taken back.
OVERRUN = 0.1
# A task for which only the overrun has room is let through only below this share of the budget.
_ENOUGH = 0.8
# So many of the tasks for which there is room run at once, as long as there is room for several: what runs may last far
# beyond the mean, and what does not end is lost.
_CONCURRENT_SHARE = 0.25
# Before its first end a task is taken to be so many times as long as expected.
_UNTRIED_FACTOR = 10.0
# Few ends say little about the mean: it is bounded by 20 times that of one, 3 times that of two, 1.4 times that of ten.
_SPREAD = 0.95
# A task that is older than the mean still needs this share of it.
_LEAST_REMAINDER = 0.25
# Below this an expected duration is no measure: a budget divided by it would be any number.
_MIN_TASK_SECONDS = 1e-6
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Number of further tasks that may begin, and of the youngest that run and are to be taken back.

    `tasks` is None where they are too short to matter. `is_over`: nothing may run any more.
    """

    tasks: int | None = 0
    excess: int = 0
    is_over: bool = False


def room(budget: float, compute: Compute, ages: Sequence[float], check_seconds: float) -> Room:
    """The room of a budget in seconds while tasks of these ages run, so that it is spent on tasks that end.

    At the whole budget what runs goes on as long as it fits in the overrun; where all do not, the oldest go on, which
    have cost most. All of it goes by the time that tasks have taken, and nothing by their estimates alone.
    """
    used, limit = compute.spent_seconds + sum(ages), budget * (1 + OVERRUN)
    # What runs goes on until the next check.
    if used >= max(budget, limit - check_seconds):
        return Room(is_over=True)
    tasks = _further_tasks(budget, compute, ages)
    return Room(tasks=tasks, excess=_excess(compute.mean_seconds, ages, limit - used, check_seconds))


def _further_tasks(budget: float, compute: Compute, ages: Sequence[float]) -> int | None:
    used = compute.spent_seconds + sum(ages)
    bound = _upper_bound(compute, used)
    alone = 0 if ages else int(_has_room_for_one(budget, compute))
    if bound <= _MIN_TASK_SECONDS:
        # Where nobody has an estimate, one task shows how long they are.
        return None if compute.attempts else alone
    # The epsilon keeps a budget of exactly four attempts from having room for three.
    return max(alone, int(_CONCURRENT_SHARE * (budget - used) / bound + _EPSILON) - len(ages))


def _upper_bound(compute: Compute, used: float) -> float:
    """Bound on the mean length of a task.

    All time on workers over the number of ends is the mean as far as it is known, also while the short ones have ended
    and the long ones run.
    """
    if not compute.attempts:
        return _UNTRIED_FACTOR * compute.prior_seconds
    return used / (compute.attempts - _SPREAD * math.sqrt(compute.attempts))


def _has_room_for_one(budget: float, compute: Compute) -> bool:
    """Whether one task may run alone: within the budget by the mean, or into the overrun while too little is spent."""
    spent, expected = compute.spent_seconds, compute.mean_seconds
    return spent + expected <= budget or (spent < _ENOUGH * budget and spent + expected <= budget * (1 + OVERRUN))


def _excess(mean_seconds: float, ages: Sequence[float], left: float, check_seconds: float) -> int:
    """Number of the youngest that would not end in the seconds that are left, the oldest of all always going on."""
    for count, age in enumerate(sorted(ages, reverse=True)):
        left -= max(mean_seconds - age, _LEAST_REMAINDER * mean_seconds, check_seconds)
        if count and left < 0:
            return len(ages) - count
    return 0
