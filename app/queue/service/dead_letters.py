"""What becomes of tasks that failed for good: another chance, or oblivion.

What is done to many is done in batches, each in a transaction of its own: readers of events wait for the oldest
transaction, so none may last long. A call that was interrupted has done some of its work, and may be repeated.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.kernel.states import FINISHED, TaskState
from app.queue.errors import DeadLetterNotFound, GoalStopped, TaskFinished
from app.queue.store import dead_letters, holds, tasks
from app.queue.store.dead_letters import Letter
from app.queue.store.listing import Selection

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many were selected when the call began, and how many of them it has dealt with."""

    matched: int
    done: int

    @property
    def remaining(self) -> int:
        """How many are left."""
        return max(0, self.matched - self.done)


async def read(connection: AsyncConnection, task_id: UUID) -> dict[str, Any]:
    """Everything about a task that failed. Raises DeadLetterNotFound, also for a task that is something else."""
    task = await tasks.read(connection, task_id)
    if task is None:
        raise DeadLetterNotFound
    if task["state"] != TaskState.FAILED:
        raise DeadLetterNotFound(f"the task is {task['state']}; only failed tasks are dead letters")
    return task


async def requeue(connection: AsyncConnection, task_id: UUID, reason: str) -> None:
    """Give a failed task another chance; one that lives already, for somebody was faster, stays as it is.

    Raises DeadLetterNotFound when there is no such task, TaskFinished for one that completed or was cancelled, and
    GoalStopped when nothing may be done for its goal any more.
    """
    letter = await dead_letters.find_one(connection, task_id)
    if letter is not None and await dead_letters.requeue(connection, [letter], reason):
        return
    task = await tasks.read(connection, task_id)
    if task is None:
        raise DeadLetterNotFound
    if task["state"] in FINISHED - {TaskState.FAILED}:
        raise TaskFinished(f"the task is {task['state']}; only failed tasks can be requeued")
    if task["state"] == TaskState.FAILED and (await holds.gate(connection, [task["goal_id"] or ""])).stopped:
        raise GoalStopped(f"the research goal {task['goal_id']} has stopped, so the task stays a dead letter")


async def requeue_many(database: Database, selection: Selection, *, limit: int, reason: str) -> Outcome:
    """Give up to `limit` of the selected another chance, those that were submitted first; not of stopped goals."""
    return await _each(
        database,
        selection,
        limit,
        lambda connection, some: dead_letters.requeue(connection, some, reason),
        may_run=True,
    )


async def purge(database: Database, selection: Selection, *, limit: int, reason: str) -> Outcome:
    """Forget up to `limit` of the selected, those that were submitted first."""
    return await _each(
        database, selection, limit, lambda connection, some: dead_letters.purge(connection, some, reason)
    )


async def count(database: Database, selection: Selection, *, may_run: bool = False) -> Outcome:
    """What one of the others would find, requeueing with `may_run`; nothing is done."""
    async with database.transaction() as connection:
        return Outcome(matched=await dead_letters.count(connection, selection, may_run=may_run), done=0)


async def _each(
    database: Database,
    selection: Selection,
    limit: int,
    act: Callable[[AsyncConnection, Sequence[Letter]], Awaitable[int]],
    *,
    may_run: bool = False,
) -> Outcome:
    async with database.transaction() as connection:
        matched = await dead_letters.count(connection, selection, may_run=may_run)
        letters = await dead_letters.find(connection, selection, limit, may_run=may_run)
    done = 0
    for start in range(0, len(letters), BATCH):
        async with database.transaction() as connection:
            done += await act(connection, letters[start : start + BATCH])
    return Outcome(matched=matched, done=done)
