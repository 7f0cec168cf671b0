"""Ages of the tasks that wait, estimated from counters alone: by the arrivals between two readings of them.

A lane is served in the order of arrival, more or less, so the tasks that wait in it are those that came last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Number of tasks that came into each lane during an interval of `seconds`."""

    seconds: float
    tasks: Mapping[Lane, int]


def count_arrivals(
    previous: Mapping[Lane, int], pending: Mapping[Lane, int], leases: Mapping[Lane, int]
) -> dict[Lane, int]:
    """Tasks that came between two readings, by lane: growth of the pending tasks plus those leased meanwhile."""
    # Tasks that were cancelled meanwhile make it too small, tasks that came back too large: both are few.
    lanes = {*previous, *pending, *leases}
    arrivals = {lane: pending.get(lane, 0) - previous.get(lane, 0) + leases.get(lane, 0) for lane in lanes}
    return {lane: tasks for lane, tasks in sorted(arrivals.items()) if tasks > 0}


def extend_history(history: Sequence[Arrivals], latest: Arrivals, lasts_seconds: float) -> tuple[Arrivals, ...]:
    """The history with one more interval at its end, cut to `lasts_seconds` or a little more."""
    intervals = [*history, latest]
    # Summed anew each time: what is left of a sum after subtractions is not the sum of what is left.
    while len(intervals) > 1 and sum(interval.seconds for interval in intervals[1:]) >= lasts_seconds:
        intervals.pop(0)
    return tuple(intervals)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingGroup:
    """Tasks of one type that came together, with their estimated work and the age of the oldest.

    Every task of a group is taken to be as old as the oldest, so small groups (those of one second, say) tell more.
    """

    tasks: int
    work_seconds: float
    oldest_age_seconds: float


def group_by_age(
    history: Sequence[Arrivals], lane: Lane, tasks: int, task_seconds: float, oldest: float
) -> list[WaitingGroup]:
    """The `tasks` that wait in a lane as groups, oldest first, each task being `task_seconds` of work.

    Every task is taken to have come at the beginning of its interval, and none to be older than `oldest` seconds.
    """
    groups, age = list[WaitingGroup](), 0.0
    for interval in reversed(history):
        age += interval.seconds
        count = min(tasks, interval.tasks.get(lane, 0))
        if count:
            work = count * task_seconds
            groups.append(WaitingGroup(tasks=count, work_seconds=work, oldest_age_seconds=min(age, oldest)))
            tasks -= count
    # Whatever waited before the history began is of unknown age, and taken to be as old as it may be.
    if tasks:
        work = tasks * task_seconds
        groups.append(WaitingGroup(tasks=tasks, work_seconds=work, oldest_age_seconds=max(0.0, oldest)))
    return groups[::-1]


def in_dispatch_order(
    queues: Mapping[AgentType, Sequence[WaitingGroup]], weights: Mapping[AgentType, float]
) -> list[WaitingGroup]:
    """The groups of several agent types in the order in which start-time fair queueing serves them.

    Each queue has its oldest group first. A group's virtual finish time is the work of its type up to and including
    it, divided by the weight of the type. Where there are priorities, order each by itself, the higher ones in front.
    """
    # By age alone the tasks of a busy type would seem to be served sooner than they are.
    turns: list[tuple[float, AgentType, int]] = []
    for agent, groups in queues.items():
        work = 0.0
        for place, group in enumerate(groups):
            work += group.work_seconds
            turns.append((work / max(weights[agent], 1e-9), agent, place))
    return [queues[agent][place] for _, agent, place in sorted(turns)]
