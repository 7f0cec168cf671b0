"""Priorities of tasks, and lanes: a queue for each agent type, priority and resource class."""

from dataclasses import dataclass, field
from enum import IntEnum
from math import inf

from app.kernel.agents import AgentType


class Priority(IntEnum):
    """Higher goes first."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


# The tags of each resource class are a range of their own, below those of tasks that ask for no resources, which are 0
# and more: [-SPAN * class, -SPAN * (class - 1)). So one index serves all lanes, a claim reads the range of its own
# lane, and tasks without a request cost what they would if there were no others. A double tells tags of the lowest
# range apart by 0.001, and a range has room for 10^9 tasks of the least weight.
SPAN = 2.0**36
_NUMBERS = {agent: number for number, agent in enumerate(AgentType)}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Lane:
    """An agent type at a priority, and the class of the resources that its tasks ask for; 0: they ask for none."""

    agent_type: AgentType
    priority: Priority
    resource_class: int = 0
    # Kept, as a claim looks lanes up eight times for each worker; of numbers, so that it is the same in all processes.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((_NUMBERS[self.agent_type], self.priority, self.resource_class)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def bottom(self) -> float:
        """The lowest tag that a task of the lane can have."""
        return -SPAN * self.resource_class

    @property
    def ceiling(self) -> float:
        """The tag below which all tasks of the lane are."""
        return SPAN + self.bottom if self.resource_class else inf


def class_of(tag: float) -> int:
    """The resource class of a task with this tag."""
    return 0 if tag >= 0 else -int(tag // SPAN)
