"""For how long tasks have been waiting, without looking at any of them: by how many came between looks at counters.

A lane is served in the order of arrival, more or less, so the tasks that wait in it are those that came last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How many tasks came into each lane within so many seconds."""

    seconds: float
    tasks: Mapping[Lane, int]


def arrived(before: Mapping[Lane, int], now: Mapping[Lane, int], leased: Mapping[Lane, int]) -> dict[Lane, int]:
    """How many came between two looks: by how many more wait, and how many were leased meanwhile."""
    came = {lane: now.get(lane, 0) - before.get(lane, 0) + leased.get(lane, 0) for lane in {*before, *now, *leased}}
    return {lane: tasks for lane, tasks in sorted(came.items()) if tasks > 0}


def remembered(history: Sequence[Arrivals], latest: Arrivals, lasts_seconds: float) -> tuple[Arrivals, ...]:
    """The history with one more look, which has the latest last, as far back as `lasts_seconds` or a little further."""
    kept = [*history, latest]
    # Summed anew each time: what is left of a sum after subtractions is not the sum of what is left.
    while len(kept) > 1 and sum(look.seconds for look in kept[1:]) >= lasts_seconds:
        kept.pop(0)
    return tuple(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Tasks of one type that wait together: how many, their estimated seconds of work, and how old the oldest is.

    Small groups (those of one second, say) tell more: every task of a group is taken to be as old as the oldest.
    """

    tasks: int
    work_seconds: float
    oldest_age_seconds: float


def by_age(history: Sequence[Arrivals], lane: Lane, tasks: int, one: float, oldest: float) -> list[Waiting]:
    """The tasks that wait in a lane, oldest first, each taken to be `one` seconds of work.

    Every task is taken to have come at the beginning of its interval, and none to be older than `oldest` seconds.
    """
    groups, age = list[Waiting](), 0.0
    for look in reversed(history):
        age += look.seconds
        came = min(tasks, look.tasks.get(lane, 0))
        if came:
            groups.append(Waiting(tasks=came, work_seconds=came * one, oldest_age_seconds=min(age, oldest)))
            tasks -= came
    if tasks:
        groups.append(Waiting(tasks=tasks, work_seconds=tasks * one, oldest_age_seconds=max(0.0, oldest)))
    return groups[::-1]


def in_dispatch_order(
    queues: Mapping[AgentType, Sequence[Waiting]], weights: Mapping[AgentType, float]
) -> list[Waiting]:
    """The groups of several agent types as fair queueing serves them; each queue has its oldest first.

    A group's turn comes when its type has been served the work up to and including it, over the weight of the type: the
    virtual finish time. By age alone the tasks of a busy type would seem to be served sooner than they are. Where there
    are priorities, order each by itself and put the higher ones in front.
    """
    turns: list[tuple[float, AgentType, int]] = []
    for agent, groups in queues.items():
        work = 0.0
        for place, group in enumerate(groups):
            work += group.work_seconds
            turns.append((work / max(weights[agent], 1e-9), agent, place))
    return [queues[agent][place] for _, agent, place in sorted(turns)]
