"""Changes of tasks that wait: their priority and their deadline, by order of the Supervisor."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import notify
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.lanes import Lane, Priority
from app.queue.errors import TaskFinished, TaskNotFound, TaskRunning
from app.queue.service.tags import reserve_tags
from app.queue.store import events, tasks
from app.queue.store.tasks import LiveTask


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """New values of a waiting task; one that is not in `fields` stays as it is."""

    fields: Collection[str]
    priority: Priority | None = None
    deadline: datetime | None = None


async def change(
    connection: AsyncConnection,
    task_id: UUID,
    order: TaskChange,
    reason: str,
    namespace: str | None = None,
    *,
    by: str | None = None,
) -> None:
    """Change priority or deadline of a task that waits: it counts as submitted with that priority. Safe to repeat.

    With a namespace there are no tasks but its own. The act of the key `by` is audited. Raises TaskNotFound,
    TaskFinished, and TaskRunning for a task that is with a worker.
    """
    task = await tasks.lock(connection, task_id, namespace)
    if task is None:
        state = await tasks.finished_state(connection, task_id, namespace)
        raise TaskNotFound if state is None else TaskFinished(f"the task is {state} already")
    if task.worker_id is not None:
        raise TaskRunning
    former, new = Priority(task.priority), order.priority or Priority(task.priority)
    deadline = order.deadline if "deadline" in order.fields else task.deadline
    if (new, deadline) == (former, task.deadline):
        _announce(connection, task)
        return
    lane = Lane(agent_type=AgentType(task.agent_type), priority=new, resource_class=task.resource_class or 0)
    flow = lane, task.goal_id
    async with reserve_tags(connection, {flow: 1} if new is not former else {}) as tags:
        tag = tags[flow].first if flow in tags else None
        await tasks.change(connection, task.id, priority=new, tag=tag, deadline=deadline)
    old_state, new_state = _queue_place(former, task.deadline), _queue_place(new, deadline)
    await events.append(
        connection,
        TaskEvent.CHANGED,
        task_id=task.id,
        agent_type=task.agent_type,
        goal_id=task.goal_id,
        detail=json.dumps({"from": old_state, "to": new_state, "reason": reason}),
        priority=new,
    )
    if by is not None:
        states = {"old_state": old_state, "new_state": {"task_id": str(task.id), **new_state}}
        audit.record(connection, "task.change", by=by, **states, reason=reason)


def _announce(connection: AsyncConnection, task: LiveTask) -> None:
    """Announce a task that stays as it is: claims of this moment have passed over it, as its row was locked."""
    if task.ready_tag is not None:
        lane = Lane(
            agent_type=AgentType(task.agent_type),
            priority=Priority(task.priority),
            resource_class=task.resource_class or 0,
        )
        notify.note_work(connection, {lane: task.ready_tag})


def _queue_place(priority: Priority, deadline: datetime | None) -> dict[str, Any]:
    return {"priority": priority.name.lower(), "deadline": deadline.isoformat() if deadline else None}
