"""Operations of the Supervisor on tasks: submit, read and cancel."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import notify
from app.db.database import now
from app.db.driver_uuids import new_uuid
from app.db.shared_objects import shared_by
from app.db.turns import Turns, turn
from app.kernel.agents import AgentType
from app.kernel.errors import ConvenerError
from app.kernel.events import TaskEvent
from app.kernel.lanes import Priority
from app.kernel.namespaces import DEFAULT, shown_name
from app.kernel.states import TaskState
from app.kernel.text import NO_REASON
from app.queue.errors import GoalStopped, IdempotencyMismatch, SubmitInFlight, TaskConflict, TaskFinished, TaskNotFound
from app.queue.rules.aging import is_urgent
from app.queue.rules.task_ids import private_id
from app.queue.rules.tasks import next_state
from app.queue.service import dependencies, resource_classes
from app.queue.service.admission import Admission, Ticket
from app.queue.service.tags import by_flow, give_tags, reserve_tags
from app.queue.store import attempts, duplicates, events, holds, tasks
from app.queue.store import dependencies as dependency_store
from app.queue.store.attempts import Ending
from app.queue.store.new_tasks import NewTask, TaskFields, insert, reserve_keys
from app.queue.store.tasks import StoredTask

_KEY_NAMESPACE = UUID("6f1a4c1e-5d0b-4c53-9a0e-2b8f2f3d7c11")
_values_of = attrgetter(*(field.name for field in fields(TaskFields)))
# In a hash from the beginning on, or never, as the idempotency key is.
_HASHED = frozenset(
    {"agent_type", "goal_id", "priority", "payload", "labels", "timeout_seconds", "deadline", "run_at", "retry"}
    | {"trace_context", "depends_on", "idempotency_key"}
)


@dataclass(slots=True, kw_only=True)
class Submission(TaskFields):
    """A task as the Supervisor submits it, with the id that it may have chosen.

    `batch_size` is that of a batch whose tasks have keys by their places in it. `traceparent` is the trace context that
    the task keeps where the request has brought or begun one; a repetition may have another and is the same task.
    """

    id: UUID | None = None
    batch_size: int | None = None
    traceparent: str | None = None


class Submitted(NamedTuple):
    """State of a task after submit, and whether this call created it."""

    id: UUID
    state: TaskState
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Terms on which tasks are accepted: without an admission there is always room, without a window no duplicate.

    `on_submitted` is called with the types of the written tasks that may run at once, and returns topics to announce
    when they are committed.
    """

    admission: Admission | None = None
    duplicate_window_seconds: float = 0.0
    on_submitted: Callable[[Sequence[AgentType]], Collection[str]] | None = None

    @property
    def displaces(self) -> bool:
        """Whether a submit may displace waiting tasks."""
        return self.admission is not None and self.admission.policy.displaces


# Of every task that named none: the hash of a body without one stays what it was.
_FORMER_TIMEOUT_SECONDS = 600.0
_OPEN_INTAKE = Intake()
# So many tasks take some milliseconds of the loop.
_MANY = 100


async def submit(
    connection: AsyncConnection, submissions: Sequence[Submission], intake: Intake = _OPEN_INTAKE
) -> list[Submitted]:
    """Create all of the tasks or none. A chosen id or idempotency key that exists with the same body is the same task.

    Raises TaskConflict or IdempotencyMismatch when one exists with another body, also within the batch; SubmitInFlight
    while another request with the same key is in progress; DependencyCycle; DependencyMissing, QueueFull and
    GoalStopped, which apply to new tasks only, so that a repeated call gets its answer.
    """
    await take_turn(shared_by(connection, Turns), submissions)
    keys = [str(identity(submission)) for submission in submissions if submission.idempotency_key is not None]
    # Of two requests with one key the second is refused at once, rather than wait with its connection for the first.
    if keys and not await reserve_keys(connection, keys):
        raise SubmitInFlight
    goal_ids = {submission.goal_id for submission in submissions if submission.goal_id is not None}
    # Keeps holds as they are until the commit, so that no task slips past a pause or stop of its goal.
    gate = await holds.lock_gate(connection, goal_ids) if goal_ids else holds.Gate()
    distinct = _distinct_tasks([new_task(submission) for submission in submissions])
    duplicates_of = await find_duplicates(connection, distinct.values(), intake.duplicate_window_seconds)
    new = (
        {task_id: task for task_id, task in distinct.items() if task_id not in duplicates_of}
        if duplicates_of
        else distinct
    )
    candidates = list(new.values())
    await _raise_urgent(connection, candidates)
    # Lock order: the gate of admission before any task, because its sole holder may have to wait for tasks.
    ticket = await _enter_admission(connection, candidates, intake)
    await _classify(connection, candidates)
    dependency_states = await dependencies.lock_dependencies(connection, new)
    await take_turn(shared_by(connection, Turns), submissions)
    for task in candidates:
        task.blockers, task.is_held = dependency_states.blockers(task), task.goal_id in gate.held_goals
    flows = by_flow(candidates)
    async with reserve_tags(connection, {flow: len(tasks) for flow, tasks in flows.items()}) as tags:
        give_tags(flows, tags)
        created_tasks = await _insert(connection, candidates, intake, ticket)
        new_tasks = [task for task in candidates if task.id in created_tasks]
        _refuse_stopped(new_tasks, gate)
        # Some of them may be cancelled again at once, so their states are read anew for the answer.
        if await dependency_states.record(connection, new_tasks, look_again=intake.displaces):
            created_tasks = await tasks.find(connection, list(created_tasks))
        if intake.on_submitted is not None:
            notify.note(connection, *intake.on_submitted(runnable_agents(new_tasks)))
        existing_ids = list(new.keys() - created_tasks.keys()) + list(duplicates_of.values())
        existing = await tasks.find(connection, existing_ids) if existing_ids else {}
        return [_submit_result(task, created_tasks, existing, duplicates_of) for task in distinct.values()]


async def take_turn(turns: Turns, submissions: Sequence[Submission]) -> None:
    """Wait for a turn in the event loop for work with many tasks."""
    if len(submissions) > _MANY:
        await turns.wait()


def runnable_agents(new_tasks: Sequence[NewTask]) -> list[AgentType]:
    """Agent types of the tasks that may run at once."""
    return [task.agent_type for task in new_tasks if not (task.blockers or task.is_held or task.run_at)]


def _refuse_stopped(new_tasks: Sequence[NewTask], gate: holds.Gate) -> None:
    for task in new_tasks:
        if task.goal_id in gate.stopped_goals:
            raise GoalStopped(f"the research goal {shown_name(task.goal_id)} has stopped and takes no new tasks")


async def _enter_admission(connection: AsyncConnection, candidates: Sequence[NewTask], intake: Intake) -> Ticket | None:
    if intake.admission is None:
        return None
    priorities = [task.submitted_priority or task.priority for task in candidates]
    all_new = not any(task.id_is_chosen for task in candidates)
    namespace = candidates[0].namespace if candidates else DEFAULT
    return await intake.admission.enter(connection, priorities, namespace=namespace, all_new=all_new)


async def _insert(
    connection: AsyncConnection, waiting: Sequence[NewTask], intake: Intake, ticket: Ticket | None
) -> dict[UUID, StoredTask]:
    """Insert the tasks whose id is new and check the limits: only the insert shows which chosen ids are new."""
    created_tasks = {task.id: task for task in await insert(connection, waiting)}
    if intake.admission is not None and ticket is not None:
        priorities = [task.submitted_priority or task.priority for task in waiting if task.id in created_tasks]
        await intake.admission.settle(connection, ticket, priorities)
    return created_tasks


async def _raise_urgent(connection: AsyncConnection, waiting: Sequence[NewTask]) -> None:
    """Make tasks whose deadline is near critical."""
    if not any(task.deadline for task in waiting):
        return
    moment = await now(connection)
    for task in waiting:
        if is_urgent(task.deadline, moment) and task.priority is not Priority.CRITICAL:
            task.priority, task.submitted_priority = Priority.CRITICAL, task.priority


async def _classify(connection: AsyncConnection, waiting: Sequence[NewTask]) -> None:
    """Give tasks that ask for resources their class. Raises TooManyResourceClasses."""
    asking = [task for task in waiting if task.resources is not None]
    if not asking:
        return
    classes = await resource_classes.classes(connection, {task.resources for task in asking if task.resources})
    for task in asking:
        task.resource_class = classes[task.resources or ""]


async def read(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> dict[str, Any]:
    """Everything about a task, of this namespace if one is given. Raises TaskNotFound."""
    task = await tasks.read(connection, task_id, namespace)
    if task is None:
        raise TaskNotFound
    return task


async def cancel(
    connection: AsyncConnection, task_id: UUID, reason: str, namespace: str | None = None, *, by: str | None = None
) -> None:
    """Cancel a task that has not finished; its worker learns of it with its next heartbeat or call. Safe to repeat.

    With a namespace there are no tasks but its own. The act of the key `by` is audited. Raises TaskNotFound, and
    TaskFinished for a task that completed or failed.
    """
    # By the lock order one that is blocked comes among those that wait for it, which go with it.
    await dependency_store.lock_blocked(connection, task_id, namespace)
    task = await tasks.lock(connection, task_id, namespace)
    if task is None:
        await _check_cancelled(connection, task_id, namespace)
        return
    state = next_state(task.state, TaskEvent.CANCELLED)
    error = json.dumps({"code": "cancelled", "message": reason or NO_REASON})
    if task.worker_id is not None:
        attempt = await attempts.lock_of_worker(connection, task.worker_id)
        if attempt is not None:
            await attempts.record(connection, attempt, Ending(outcome="cancelled", error=error))
    await tasks.finish(connection, task.id, state, failures=task.failures, rescues=task.rescues, error=error)
    await events.append(
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
    if by is not None:
        states = {
            "old_state": {"state": task.state.value},
            "new_state": {"task_id": str(task.id), "state": state.value},
        }
        audit.record(connection, "task.cancel", by=by, **states, reason=reason)


async def _check_cancelled(connection: AsyncConnection, task_id: UUID, namespace: str | None) -> None:
    state = await tasks.finished_state(connection, task_id, namespace)
    if state is None:
        raise TaskNotFound
    if state is not TaskState.CANCELLED:
        raise TaskFinished(f"the task is {state} already")


def _distinct_tasks(new: list[NewTask]) -> dict[UUID, NewTask]:
    distinct: dict[UUID, NewTask] = {}
    for task in new:
        if distinct.setdefault(task.id, task).request_hash != task.request_hash:
            raise _conflict(task, f"the batch has the id {task.id} twice, with different bodies")
    return distinct


def _submit_result(
    task: NewTask,
    created_tasks: dict[UUID, StoredTask],
    existing: dict[UUID, StoredTask],
    duplicates_of: dict[UUID, UUID],
) -> Submitted:
    if (created := created_tasks.get(task.id)) is not None:
        return Submitted(task.id, TaskState(created.state), True)
    if task.id in duplicates_of:
        original = existing[duplicates_of[task.id]]
        return Submitted(id=original.id, state=TaskState(original.state), created=False)
    if existing[task.id].request_hash != task.request_hash:
        raise _conflict(task, f"the task {task.id} exists already with another body")
    return Submitted(id=task.id, state=TaskState(existing[task.id].state), created=False)


def _conflict(task: NewTask, detail: str) -> ConvenerError:
    return IdempotencyMismatch() if task.idempotency_key is not None else TaskConflict(detail)


def identity(submission: Submission) -> UUID | None:
    """The id that the client chose, or the one derived from its idempotency key: equal keys are equal tasks."""
    if submission.idempotency_key is None:
        return submission.id
    if submission.namespace == DEFAULT:
        return uuid5(_KEY_NAMESPACE, submission.idempotency_key)
    # Equal keys of two namespaces are two tasks.
    return private_id(uuid5(uuid5(_KEY_NAMESPACE, submission.namespace), submission.idempotency_key))


def new_task(submission: Submission) -> NewTask:
    """The task of a submission, with the id that follows from it or a new one."""
    chosen_id = identity(submission)
    task = NewTask(
        *_values_of(submission),
        id=chosen_id or new_uuid(),
        id_is_chosen=chosen_id is not None,
        request_hash=_hash(submission) if chosen_id is not None else b"",
    )
    task.depends_on = tuple(dict.fromkeys(task.depends_on)) if task.depends_on else ()
    if submission.traceparent:
        task.trace_context = submission.traceparent
    return task


def _hash(submission: Submission) -> bytes:
    """Hash of the body, independent of the order of keys in its objects."""
    body: list[Any] = [
        submission.agent_type,
        submission.goal_id,
        submission.priority,
        json.loads(submission.payload),
        json.loads(submission.labels),
        _FORMER_TIMEOUT_SECONDS if submission.timeout_seconds is None else submission.timeout_seconds,
        *(str(moment and moment.astimezone(UTC)) for moment in (submission.deadline, submission.run_at)),
        submission.retry.max_attempts,
        list(submission.retry.delays_seconds),
        submission.trace_context,
        sorted(map(str, submission.depends_on)),
    ]
    # Fields that came later count only where they are set: the hash of a body that lacks them stays what it was.
    later = {
        field.name: str(value)
        for field in fields(TaskFields)
        if field.name not in _HASHED and (value := getattr(submission, field.name)) != field.default
    }
    # A batch that is repeated with more tasks, or fewer, is another one.
    later |= {} if submission.batch_size is None else {"batch_size": str(submission.batch_size)}
    return hashlib.sha256(json.dumps([*body, *([later] if later else [])], sort_keys=True).encode()).digest()


# Payloads of a batch have some ten kilobytes each; others are served in between.
_DIGESTED_AT_ONCE = 20


async def find_duplicates(
    connection: AsyncConnection, new: Iterable[NewTask], window_seconds: float
) -> dict[UUID, UUID]:
    """New task -> the earlier task with the same agent type and payload, for those submitted within the window.

    Tasks with a chosen id or an idempotency key are left out: it identifies them better than their payload does.
    """
    if window_seconds <= 0:
        return {}
    digests = {}
    for place, task in enumerate(task for task in new if not task.id_is_chosen):
        if place % _DIGESTED_AT_ONCE == _DIGESTED_AT_ONCE - 1:
            await turn(connection)
        digests[task.id] = _digest(task)
    if not digests:
        return {}
    first_ids: dict[bytes, UUID] = {}
    for task_id, digest in digests.items():
        first_ids.setdefault(digest, task_id)
    earlier_ids = await duplicates.register(connection, first_ids, window_seconds)
    originals = {task_id: earlier_ids.get(digest, first_ids[digest]) for task_id, digest in digests.items()}
    return {task_id: original for task_id, original in originals.items() if original != task_id}


def _digest(task: NewTask) -> bytes:
    """Hash of agent type, payload and namespace, independent of the order of keys."""
    content = [task.agent_type, json.loads(task.payload)]
    content += [] if task.namespace == DEFAULT else [task.namespace]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
