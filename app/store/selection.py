"""Which tasks are meant: what a caller names becomes the conditions of a statement."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.agents import AgentType
from app.domain.tasks import Priority, TaskState

# The same columns in `tasks` and `task_history`. A time is from the one on, and before the other.
_CONDITIONS = {
    "agent_type": "agent_type = :agent_type",
    "goal_id": "goal_id = :goal_id",
    "states": "state = ANY (:states)",
    "priority": "priority = :priority",
    "labels": "labels @> ALL (CAST(:labels AS jsonb[]))",
    "worker_id": "worker_id = :worker_id",
    "code": "error ->> 'code' = :code",
    "created_after": "created_at >= :created_after",
    "created_before": "created_at < :created_before",
    "finished_after": "finished_at >= :finished_after",
    "finished_before": "finished_at < :finished_before",
}
FINISHED_ONLY = ("finished_after", "finished_before")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Every field that is given narrows it: a task must agree with all of them, and carry all of the labels."""

    agent_type: AgentType | None = None
    goal_id: str | None = None
    states: Collection[TaskState] = ()
    priority: Priority | None = None
    labels: Collection[tuple[str, str]] = ()
    worker_id: UUID | None = None
    code: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    finished_after: datetime | None = None
    finished_before: datetime | None = None

    def values(self) -> dict[str, Any]:
        """What is given, as a statement takes it."""
        given = {name: getattr(self, name) for name in _CONDITIONS}
        given["states"] = [state.value for state in self.states]
        given["labels"] = [json.dumps({name: value}) for name, value in self.labels]
        return {name: value for name, value in given.items() if value is not None and value != []}

    def conditions(self) -> dict[str, str]:
        """The condition of each field that is given."""
        return {name: _CONDITIONS[name] for name in self.values()}

    def where(self, *more: str) -> str:
        """All conditions, and some more, as one."""
        return " AND ".join([*more, *self.conditions().values()]) or "true"
