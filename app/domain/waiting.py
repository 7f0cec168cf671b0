"""What waits, in groups, and in which order it will be served: what the scaling rule walks along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.domain.agents import AgentType


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Tasks of one type that wait together: how many, their estimated seconds of work, and how old the oldest is.

    Small groups (those of one second, say) tell more: every task of a group is taken to be as old as the oldest.
    """

    tasks: int
    work_seconds: float
    oldest_age_seconds: float


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
