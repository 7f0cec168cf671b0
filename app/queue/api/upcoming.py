"""Route of what comes next: the tasks of each agent type in the order in which they are leased."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.http.fields import AgentName, Moment, PriorityName, priority_name
from app.http.guard import requires
from app.http.namespaces import Within
from app.http.routing import Router
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.namespaces import split_name
from app.queue.store import agent_types, upcoming
from app.queue.store.upcoming import UpcomingTask

router = Router(prefix="/queues", tags=["queues"])


class UpcomingTaskOut(BaseModel):
    """A task that may run now."""

    place: int = Field(description="among the tasks of its agent type, from 1")
    id: UUID
    namespace: str
    goal_id: str | None
    priority: PriorityName
    submitted_priority: PriorityName
    created_at: Moment
    waiting_since: Moment


class UpcomingAgentOut(BaseModel):
    """The next tasks of an agent type; while it is paused none of them is leased."""

    agent_type: AgentType
    paused: bool
    tasks: list[UpcomingTaskOut]


class UpcomingOut(BaseModel):
    """What is leased next, by agent type."""

    agents: list[UpcomingAgentOut]


@router.get(
    "/next",
    operation_id="list_upcoming_tasks",
    summary="See what is leased next",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
)
async def read(
    connection: Reading,
    namespace: Within,
    agent_type: Annotated[AgentName | None, Query(description="only of this type; else of each")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="tasks of each type to look at")] = 10,
) -> UpcomingOut:
    """The tasks of each agent type in the order in which they are leased, as things stand now.

    Which type is next depends on the weights and on what the worker that asks can run. Of a namespace that is not the
    whole service only its own tasks are shown, each with its place among all.
    """
    agents = [AgentType(agent_type)] if agent_type else list(AgentType)
    tasks = await upcoming.read(connection, agents, namespace, limit)
    paused = {pause.agent_type for pause in await agent_types.read_pauses(connection)}
    return UpcomingOut(
        agents=[
            UpcomingAgentOut(
                agent_type=agent,
                paused=agent in paused,
                tasks=[_task_out(task) for task in tasks if task.agent_type is agent],
            )
            for agent in agents
        ]
    )


def _task_out(task: UpcomingTask) -> UpcomingTaskOut:
    namespace, goal_id = split_name(task.goal_id)
    same = {name: getattr(task, name) for name in ("place", "id", "created_at", "waiting_since")}
    return UpcomingTaskOut(
        **same,
        namespace=namespace,
        goal_id=goal_id,
        priority=priority_name(task.priority),
        submitted_priority=priority_name(task.submitted_priority or task.priority),
    )
