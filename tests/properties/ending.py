"""Cancelling tasks, one or many, and giving those that failed another chance."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.states import TaskState
from app.queue.errors import TaskFinished
from app.queue.service import cancel, dead_letters, tasks
from app.queue.store.listing import Selection
from tests.properties.model import Model, Task
from tests.properties.service import Service

_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """One task."""

    task_id: UUID
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            await tasks.cancel(connection, self.task_id, "changed my mind")
        return None

    def judge(self, model: Model, observed: object) -> None:
        task = model.tasks[self.task_id]
        if task.state in (TaskState.COMPLETED, TaskState.FAILED):
            assert observed is TaskFinished, f"should be refused, not {observed}"
            return
        assert observed is None, f"refused with {observed}"
        if task.is_live:
            model.cancel(task)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelMany:
    """All of a goal or of an agent type, and what waits for them."""

    goal_id: str | None = None
    agent: AgentType | None = None
    replica: int = 0

    async def run(self, service: Service) -> object:
        selection = Selection(goal_id=self.goal_id, agent_type=self.agent)
        database = service.replicas[self.replica].database
        return await cancel.cancel(database, selection, limit=_LIMIT, reason="changed my mind")

    def judge(self, model: Model, observed: object) -> None:
        live = model.live()
        selected = [task for task in live if _is_selected(task, self.goal_id, self.agent)]
        for task in selected:
            if task.is_live:
                model.cancel(task)
        dependents = sum(not task.is_live for task in live) - len(selected)
        expected = cancel.CancelResult(
            matching_count=len(selected), cancelled_count=len(selected), dependent_count=dependents
        )
        assert observed == expected, f"{observed} instead of {expected}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Another chance for one dead letter."""

    task_id: UUID
    replica: int = 0

    async def run(self, service: Service) -> object:
        async with service.replicas[self.replica].database.transaction() as connection:
            await dead_letters.requeue(connection, self.task_id, "mended")
        return None

    def judge(self, model: Model, observed: object) -> None:
        task = model.tasks[self.task_id]
        if task.state in (TaskState.COMPLETED, TaskState.CANCELLED):
            assert observed is TaskFinished, f"should be refused, not {observed}"
            return
        assert observed is None, f"refused with {observed}"
        if task.state is TaskState.FAILED:
            model.requeue(task)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueMany:
    """Another chance for all that failed of a goal."""

    goal_id: str | None = None
    replica: int = 0

    async def run(self, service: Service) -> object:
        selection = Selection(goal_id=self.goal_id)
        database = service.replicas[self.replica].database
        return await dead_letters.requeue_many(database, selection, limit=_LIMIT, reason="mended")

    def judge(self, model: Model, observed: object) -> None:
        failed = [
            task
            for task in model.tasks.values()
            if task.state is TaskState.FAILED and _is_selected(task, self.goal_id, None)
        ]
        for task in failed:
            model.requeue(task)
        assert observed == dead_letters.BulkResult(matching_count=len(failed), processed_count=len(failed)), (
            f"{observed}"
        )


def _is_selected(task: Task, goal_id: str | None, agent: AgentType | None) -> bool:
    return (goal_id is None or task.submission.goal_id == goal_id) and (agent is None or task.agent is agent)
