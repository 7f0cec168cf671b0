"""Lanes, where tasks queue, and how goals share one: weighted fair queueing by tags given at submit.

A lane is an agent type at a priority. A task's tag is its virtual finish time there; the lane's virtual time is the
tag of the last task leased, so ten tasks of a new goal fall in between the fifty thousand of an old one.
Source: Golestani, "A self-clocked fair queueing scheme" (INFOCOM 1994).
"""

from dataclasses import dataclass

from app.domain.agents import AgentType
from app.domain.tasks import Priority


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Lane:
    """An agent type at a priority."""

    agent_type: AgentType
    priority: Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The tags of a run of tasks that a goal submits together: `first`, then one `step` further each."""

    first: float
    step: float
    count: int

    def __getitem__(self, place: int) -> float:
        return self.first + place * self.step

    @property
    def last(self) -> float:
        """The tag of the last task, after which the goal goes on."""
        return self[self.count - 1]


def tags(*, virtual_time: float, last_tag: float, count: int, weight: float = 1.0, cost: float = 1.0) -> Tags:
    """Tags for `count` tasks of a goal: `max(virtual time, last tag of the goal) + cost / weight` for the first."""
    step = cost / weight
    return Tags(first=max(virtual_time, last_tag) + step, step=step, count=count)
