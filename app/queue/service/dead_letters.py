"""Dead letters, the tasks that failed for good: reading, requeueing and purging them.

Operations on many run in batches with a transaction each: readers of events wait for the oldest transaction, so none
may last long. A call that was interrupted has done part of its work and may be repeated.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db.database import Database
from app.kernel.lanes import Priority
from app.kernel.namespaces import shown_name
from app.kernel.states import FINISHED, TaskState
from app.queue.errors import DeadLetterNotFound, GoalStopped, TaskFinished
from app.queue.service import resource_classes
from app.queue.store import dead_letters, holds, tasks
from app.queue.store.dead_letters import DeadLetter
from app.queue.store.listing import Selection

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """Numbers of dead letters that matched when the call began, and of those that it has processed."""

    matching_count: int
    processed_count: int

    @property
    def remaining(self) -> int:
        """Number of matching dead letters that are not processed yet."""
        return max(0, self.matching_count - self.processed_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Act:
    """The entry of an operation on many; nobody's is not audited."""

    action: str
    by: str | None
    reason: str
    priority: Priority | None = None


async def read(connection: AsyncConnection, task_id: UUID, namespace: str | None = None) -> dict[str, Any]:
    """Everything about a failed task, of this namespace if one is given.

    Raises DeadLetterNotFound, also for a task in another state.
    """
    task = await tasks.read(connection, task_id, namespace)
    if task is None:
        raise DeadLetterNotFound
    if task["state"] != TaskState.FAILED:
        raise DeadLetterNotFound(f"the task is {task['state']}; only failed tasks are dead letters")
    return task


async def requeue(
    connection: AsyncConnection,
    task_id: UUID,
    reason: str,
    namespace: str | None = None,
    *,
    priority: Priority | None = None,
    by: str | None = None,
) -> None:
    """Put a failed task back into the queue; one that is in the queue already, by a concurrent call, stays as it is.

    It keeps its priority unless another one is given. The act of the key `by` is audited.
    With a namespace there are no tasks but its own. Raises DeadLetterNotFound when there is no such task, TaskFinished
    for one that completed or was cancelled, and GoalStopped when its goal has stopped.
    """
    letter = await dead_letters.find_one(connection, task_id, namespace)
    if letter is not None and await _requeue(connection, [letter], reason, priority):
        if by is not None:
            requeued = {"task_id": str(task_id), **_priority_given(priority)}
            audit.record(connection, "dead_letter.requeue", by=by, new_state=requeued, reason=reason)
        return
    # Nothing was requeued; whether that is an error depends on the state of the task.
    task = await tasks.read(connection, task_id, namespace)
    if task is None:
        raise DeadLetterNotFound
    if task["state"] in FINISHED - {TaskState.FAILED}:
        raise TaskFinished(f"the task is {task['state']}; only failed tasks can be requeued")
    if task["state"] == TaskState.FAILED and (await holds.lock_gate(connection, [task["goal_id"] or ""])).stopped_goals:
        raise GoalStopped(f"the research goal {shown_name(task['goal_id'])} has stopped; the task stays a dead letter")


def _priority_given(priority: Priority | None) -> dict[str, str]:
    """The priority that an act has given, for its entry; nothing where tasks have kept their own."""
    return {} if priority is None else {"priority": priority.name.lower()}


async def _requeue(
    connection: AsyncConnection, letters: Sequence[DeadLetter], reason: str, priority: Priority | None
) -> int:
    # As of a submit, and before any task is locked: those of a goal that is held, or metered, wait to be let through.
    goal_ids = {letter.goal_id for letter in letters if letter.goal_id is not None}
    gate = await holds.lock_gate(connection, goal_ids) if goal_ids else holds.Gate()
    if requests := {letter.resources for letter in letters if letter.resources is not None}:
        await resource_classes.classes(connection, requests)
    return await dead_letters.requeue(connection, letters, reason, priority, held_goals=gate.held_goals)


async def requeue_many(
    database: Database,
    selection: Selection,
    *,
    limit: int,
    reason: str,
    priority: Priority | None = None,
    dry_run: bool = False,
    by: str | None = None,
) -> BulkResult:
    """Requeue up to `limit` of the selected dead letters, first submitted first; none of stopped goals.

    They keep their priorities unless one is given. A dry run only counts those that match. The act of the key `by` is
    audited with each batch.
    """
    return await _process_in_batches(
        database,
        selection,
        limit,
        lambda connection, letters: _requeue(connection, letters, reason, priority),
        _Act(action="dead_letters.requeue", by=by, reason=reason, priority=priority),
        may_run=True,
        dry_run=dry_run,
    )


async def purge(
    database: Database,
    selection: Selection,
    *,
    limit: int,
    reason: str,
    dry_run: bool = False,
    by: str | None = None,
) -> BulkResult:
    """Delete up to `limit` of the selected dead letters, first submitted first; a dry run only counts.

    The act of the key `by` is audited with each batch.
    """
    return await _process_in_batches(
        database,
        selection,
        limit,
        lambda connection, letters: dead_letters.purge(connection, letters, reason),
        _Act(action="dead_letters.purge", by=by, reason=reason),
        dry_run=dry_run,
    )


async def _process_in_batches(
    database: Database,
    selection: Selection,
    limit: int,
    process: Callable[[AsyncConnection, Sequence[DeadLetter]], Awaitable[int]],
    act: _Act,
    *,
    may_run: bool = False,
    dry_run: bool,
) -> BulkResult:
    async with database.transaction() as connection:
        matching_count = await dead_letters.count(connection, selection, may_run=may_run)
        is_over = dry_run or not matching_count
        letters = [] if is_over else await dead_letters.find(connection, selection, limit, may_run=may_run)
    processed_count = 0
    for start in range(0, len(letters), BATCH):
        # Letters that another call has requeued or purged since they were found are skipped, and not counted.
        async with database.transaction() as connection:
            count = await process(connection, letters[start : start + BATCH])
            if act.by is not None and count:
                processed = {"filter": selection.as_json(), "tasks": count, **_priority_given(act.priority)}
                audit.record(connection, act.action, by=act.by, new_state=processed, reason=act.reason)
        processed_count += count
    return BulkResult(matching_count=matching_count, processed_count=processed_count)
