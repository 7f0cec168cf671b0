"""Priorities of tasks, and lanes: a queue for each agent type and priority."""

from dataclasses import dataclass
from enum import IntEnum

from app.kernel.agents import AgentType


class Priority(IntEnum):
    """Higher goes first."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Lane:
    """An agent type at a priority."""

    agent_type: AgentType
    priority: Priority
