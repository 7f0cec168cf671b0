"""What the Supervisor does with tasks: submit, read, cancel."""

import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now, shared_by
from app.db.uuids import time_ordered_uuid
from app.kernel.agents import AgentType
from app.kernel.errors import ConvenerError
from app.kernel.lanes import Lane, Priority
from app.kernel.states import TaskState
from app.queue.errors import GoalStopped, IdempotencyMismatch, SubmitInFlight, TaskConflict, TaskFinished, TaskNotFound
from app.queue.rules.aging import is_urgent
from app.queue.rules.events import TaskEvent
from app.queue.rules.tasks import RetryPolicy, next_state
from app.queue.service import dependencies
from app.queue.service.admission import Admission, Ticket
from app.queue.store import attempts, duplicates, events, holds, lanes, tasks
from app.queue.store.attempts import Ending
from app.queue.store.lanes import Lanes, Place
from app.queue.store.tasks import NewTask, Taken

_KEYS = UUID("6f1a4c1e-5d0b-4c53-9a0e-2b8f2f3d7c11")


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
    idempotency_key: str | None = None
    depends_on: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task after submit, and whether this call created it."""

    id: UUID
    state: TaskState
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """On what terms tasks are taken in: without an admission there is always room, without a window no duplicate.

    `on_submitted` is called with the types of the tasks that may run at once, before the commit.
    """

    admission: Admission | None = None
    duplicate_window_seconds: float = 0.0
    on_submitted: Callable[[AsyncConnection, Sequence[AgentType]], None] | None = None

    @property
    def displaces(self) -> bool:
        """Whether what waits may have to make room."""
        return self.admission is not None and self.admission.policy.displaces


_EVERYTHING = Intake()


async def submit(
    connection: AsyncConnection, submissions: Sequence[Submission], intake: Intake = _EVERYTHING
) -> list[Submitted]:
    """Take in all of the tasks or none. A chosen id or idempotency key that exists with the same body is the same task.

    Raises TaskConflict or IdempotencyMismatch when one exists with another body, also within the batch;
    SubmitInFlight while another request with the same key is being worked on; DependencyMissing, DependencyCycle;
    QueueFull and GoalStopped, which never keep a repeated call from its answer.
    """
    keys = [submission.idempotency_key for submission in submissions if submission.idempotency_key is not None]
    if keys and not await tasks.reserve_keys(connection, keys):
        raise SubmitInFlight
    goal_ids = {submission.goal_id for submission in submissions if submission.goal_id is not None}
    gate = await holds.gate(connection, goal_ids) if goal_ids else holds.Gate()
    asked = _distinct([_new_task(submission) for submission in submissions])
    same = await find(connection, asked.values(), intake.duplicate_window_seconds)
    new = {task_id: task for task_id, task in asked.items() if task_id not in same}
    wanted = await _urgent(connection, list(new.values()))
    # Before any task is locked: who has the gate alone may have to wait for tasks.
    ticket = await _enter(connection, wanted, intake)
    standing = await dependencies.standing(connection, new)
    waiting = [_placed(task, standing.blockers(task), gate) for task in wanted]
    async with lining_up(connection, waiting) as tagged:
        created = await _take_in(connection, tagged, intake, ticket)
        _refuse_stopped([task for task in waiting if task.id in created], gate)
        fresh = [task for task in waiting if task.id in created]
        if await standing.settle(connection, fresh, look_again=intake.displaces):
            created = await tasks.taken(connection, list(created))
        if intake.on_submitted is not None:
            intake.on_submitted(connection, _ready([task for task in waiting if task.id in created]))
        missing = [task_id for task_id in new if task_id not in created] + list(same.values())
        known = await tasks.taken(connection, missing) if missing else {}
        return [_outcome(task, created, known, same) for task in asked.values()]


def _ready(created: Sequence[NewTask]) -> list[AgentType]:
    """The types of the tasks that may run at once."""
    return [AgentType(task.agent_type) for task in created if not (task.blockers or task.is_held or task.run_at)]


def _placed(task: NewTask, blockers: int, gate: holds.Gate) -> NewTask:
    return replace(task, blockers=blockers, is_held=task.goal_id in gate.held)


def _refuse_stopped(created: Sequence[NewTask], gate: holds.Gate) -> None:
    for task in created:
        if task.goal_id in gate.stopped:
            raise GoalStopped(f"the research goal {task.goal_id} has stopped and takes no new tasks")


async def _enter(connection: AsyncConnection, wanted: Sequence[NewTask], intake: Intake) -> Ticket | None:
    if intake.admission is None:
        return None
    priorities = [Priority(task.priority) for task in wanted]
    return await intake.admission.enter(connection, priorities, all_new=not any(task.id_is_chosen for task in wanted))


async def _take_in(
    connection: AsyncConnection, waiting: Sequence[NewTask], intake: Intake, ticket: Ticket | None
) -> dict[UUID, Taken]:
    """Insert those whose id is new, where there is room. Of chosen ids only the insert tells which are."""
    created = {task.id: task for task in await tasks.insert(connection, waiting)}
    if intake.admission is not None and ticket is not None:
        entered = [Priority(task.priority) for task in waiting if task.id in created]
        await intake.admission.settle(connection, ticket, entered)
    return created


async def _urgent(connection: AsyncConnection, waiting: list[NewTask]) -> list[NewTask]:
    """Those whose deadline is near go ahead of everything."""
    if not any(task.deadline for task in waiting):
        return waiting
    moment = await now(connection)
    near = {task.id for task in waiting if is_urgent(task.deadline, moment)}
    return [replace(task, priority=Priority.CRITICAL.value) if task.id in near else task for task in waiting]


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
    state = next_state(task.state, TaskEvent.CANCELLED)
    error = json.dumps({"code": "cancelled", "message": reason})
    if task.worker_id is not None:
        attempt = await attempts.of_worker(connection, task.worker_id)
        if attempt is not None:
            await attempts.record(connection, attempt, Ending(outcome="cancelled", error=error))
    await tasks.finish(connection, task.id, state, failures=task.failures, rescues=task.rescues, error=error)
    await events.tell(
        connection,
        TaskEvent.CANCELLED,
        task_id=task.id,
        agent_type=task.agent_type,
        goal_id=task.goal_id,
        worker_id=task.worker_id,
        token=task.token,
        detail=json.dumps({"reason": reason}),
        priority=task.priority,
        leased_at=task.leased_at,
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
            raise _conflict(task, f"the batch has the id {task.id} twice, with different bodies")
    return distinct


def _outcome(task: NewTask, created: dict[UUID, Taken], known: dict[UUID, Taken], same: dict[UUID, UUID]) -> Submitted:
    if task.id in same:
        other = known[same[task.id]]
        return Submitted(id=other.id, state=TaskState(other.state), created=False)
    if task.id in created:
        return Submitted(id=task.id, state=TaskState(created[task.id].state), created=True)
    if known[task.id].request_hash != task.request_hash:
        raise _conflict(task, f"the task {task.id} exists already with another body")
    return Submitted(id=task.id, state=TaskState(known[task.id].state), created=False)


def _conflict(task: NewTask, detail: str) -> ConvenerError:
    return IdempotencyMismatch() if task.idempotency_key is not None else TaskConflict(detail)


def _identity(submission: Submission) -> UUID | None:
    """The id that the client chose, or the one that its key stands for: equal keys are equal tasks."""
    if submission.idempotency_key is not None:
        return uuid5(_KEYS, submission.idempotency_key)
    return submission.id


def _new_task(submission: Submission) -> NewTask:
    identity = _identity(submission)
    return NewTask(
        id=identity or time_ordered_uuid(),
        id_is_chosen=identity is not None,
        idempotency_key=submission.idempotency_key,
        depends_on=tuple(dict.fromkeys(submission.depends_on)),
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
        request_hash=_hash(submission) if identity is not None else b"",
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
        sorted(map(str, submission.depends_on)),
    ]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()


async def find(connection: AsyncConnection, new: Iterable[NewTask], window_seconds: float) -> dict[UUID, UUID]:
    """New task -> the task that is the same work, for those whose agent type and payload were submitted lately.

    A chosen id or an idempotency key says what the same task is better than its payload does.
    """
    digests = {task.id: _digest(task) for task in new if not task.id_is_chosen}
    if window_seconds <= 0 or not digests:
        return {}
    first: dict[bytes, UUID] = {}
    for task_id, digest in digests.items():
        first.setdefault(digest, task_id)
    known = await duplicates.duplicates(connection, first, window_seconds)
    same = {task_id: known.get(digest, first[digest]) for task_id, digest in digests.items()}
    return {task_id: other for task_id, other in same.items() if other != task_id}


def _digest(task: NewTask) -> bytes:
    """Equal for equal work, whatever the order of the keys in the payload."""
    body = json.dumps([task.agent_type, json.loads(task.payload)], sort_keys=True)
    return hashlib.sha256(body.encode()).digest()


@asynccontextmanager
async def lining_up(connection: AsyncConnection, new: Sequence[NewTask]) -> AsyncIterator[list[NewTask]]:
    """The tasks with their tags, in the given order; what is raised inside gives the tags back."""
    memory = shared_by(connection, Lanes)
    groups: dict[Place, list[int]] = defaultdict(list)
    for index, task in enumerate(new):
        groups[_place(task)].append(index)
    unsure = memory.unsure(groups)
    if unsure:
        memory.learn(await lanes.stand(connection, unsure))
    reserved = {place: memory.reserve(place, len(indices)) for place, indices in groups.items()}
    tagged = list(new)
    for place, indices in groups.items():
        for turn, index in enumerate(indices):
            tagged[index] = replace(new[index], tag=reserved[place][turn])
    try:
        yield tagged
    except BaseException:
        for place, tags in reserved.items():
            memory.give_back(place, tags)
        raise


def _place(task: NewTask) -> Place:
    return Lane(agent_type=AgentType(task.agent_type), priority=Priority(task.priority)), task.goal_id
