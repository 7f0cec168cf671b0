"""What the Supervisor does with tasks: submit, read, cancel."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.errors import TaskConflict, TaskFinished, TaskNotFound
from app.domain.tasks import Move, Priority, RetryPolicy, TaskState, after
from app.operations.identifiers import time_ordered_uuid
from app.store import attempts, events, tasks
from app.store.attempts import Ending
from app.store.tasks import NewTask, Taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A task as the Supervisor wants it; `payload` and `labels` are JSON text."""

    id: UUID | None
    agent_type: AgentType
    goal_id: str | None
    priority: Priority
    payload: str
    labels: str
    timeout_seconds: float
    deadline: datetime | None
    run_at: datetime | None
    retry: RetryPolicy
    trace_context: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task after submit, and whether this call created it."""

    id: UUID
    state: TaskState
    created: bool


async def submit(connection: AsyncConnection, submissions: Sequence[Submission]) -> list[Submitted]:
    """Take in all of the tasks or none. A chosen id that exists with the same body is the same task.

    Raises TaskConflict when an id exists with another body, also within the batch.
    """
    new = _distinct([_new_task(submission) for submission in submissions])
    created = {task.id: task for task in await tasks.insert(connection, list(new.values()))}
    missing = [task_id for task_id in new if task_id not in created]
    known = await tasks.taken(connection, missing) if missing else {}
    return [_outcome(task, created, known) for task in new.values()]


async def read(connection: AsyncConnection, task_id: UUID) -> dict[str, Any]:
    """Everything about a task. Raises TaskNotFound."""
    task = await tasks.read(connection, task_id)
    if task is None:
        raise TaskNotFound
    return task


async def cancel(connection: AsyncConnection, task_id: UUID, reason: str) -> None:
    """End a task that has not finished; its worker hears of it with its next heartbeat or call. Safe to repeat.

    Raises TaskNotFound, and TaskFinished for a task that completed or failed.
    """
    task = await tasks.lock(connection, task_id)
    if task is None:
        await _already_cancelled(connection, task_id)
        return
    state = after(task.state, Move.CANCEL)
    error = json.dumps({"code": "cancelled", "message": reason})
    if task.worker_id is not None:
        attempt = await attempts.of_worker(connection, task.worker_id)
        if attempt is not None:
            await attempts.record(connection, attempt, Ending(outcome="cancelled", error=error))
    await tasks.finish(connection, task.id, state, failures=task.failures, rescues=task.rescues, error=error)
    await events.tell(
        connection,
        Move.CANCEL,
        task_id=task.id,
        agent_type=task.agent_type,
        goal_id=task.goal_id,
        worker_id=task.worker_id,
        token=task.token,
        detail=json.dumps({"reason": reason}),
    )


async def _already_cancelled(connection: AsyncConnection, task_id: UUID) -> None:
    state = await tasks.finished_state(connection, task_id)
    if state is None:
        raise TaskNotFound
    if state is not TaskState.CANCELLED:
        raise TaskFinished(f"the task is {state} already")


def _distinct(new: list[NewTask]) -> dict[UUID, NewTask]:
    distinct: dict[UUID, NewTask] = {}
    for task in new:
        if distinct.setdefault(task.id, task).request_hash != task.request_hash:
            raise TaskConflict(f"the batch has the id {task.id} twice, with different bodies")
    return distinct


def _outcome(task: NewTask, created: dict[UUID, Taken], known: dict[UUID, Taken]) -> Submitted:
    if task.id in created:
        return Submitted(id=task.id, state=TaskState.PENDING, created=True)
    if known[task.id].request_hash != task.request_hash:
        raise TaskConflict(f"the task {task.id} exists already with another body")
    return Submitted(id=task.id, state=TaskState(known[task.id].state), created=False)


def _new_task(submission: Submission) -> NewTask:
    return NewTask(
        id=submission.id or time_ordered_uuid(),
        id_is_chosen=submission.id is not None,
        agent_type=submission.agent_type.value,
        goal_id=submission.goal_id,
        priority=submission.priority.value,
        payload=submission.payload,
        labels=submission.labels,
        timeout_seconds=submission.timeout_seconds,
        deadline=submission.deadline,
        run_at=submission.run_at,
        max_attempts=submission.retry.max_attempts,
        retry_delays=submission.retry.delays_seconds,
        trace_context=submission.trace_context,
        request_hash=_hash(submission) if submission.id is not None else b"",
    )


def _hash(submission: Submission) -> bytes:
    """Equal for equal bodies, whatever the order of the keys in their objects."""
    body = [
        submission.agent_type,
        submission.goal_id,
        submission.priority,
        json.loads(submission.payload),
        json.loads(submission.labels),
        submission.timeout_seconds,
        str(submission.deadline),
        str(submission.run_at),
        submission.retry.max_attempts,
        list(submission.retry.delays_seconds),
        submission.trace_context,
    ]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
