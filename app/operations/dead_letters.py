"""What becomes of tasks that failed for good: another chance, or oblivion.

What is done to many is done in batches, each in a transaction of its own: readers of events wait for the oldest
transaction, so none may last long. A call that was interrupted has done some of its work, and may be repeated.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import DeadLetterNotFound, TaskFinished
from app.domain.tasks import FINISHED, TaskState
from app.store import dead_letters, tasks
from app.store.database import Database
from app.store.dead_letters import Letter
from app.store.selection import Selection

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

    Raises DeadLetterNotFound when there is no such task, and TaskFinished for one that completed or was cancelled.
    """
    letter = await dead_letters.find_one(connection, task_id)
    if letter is not None and await dead_letters.requeue(connection, [letter], reason):
        return
    task = await tasks.read(connection, task_id)
    if task is None:
        raise DeadLetterNotFound
    if task["state"] in FINISHED - {TaskState.FAILED}:
        raise TaskFinished(f"the task is {task['state']}; only failed tasks can be requeued")


async def requeue_many(database: Database, selection: Selection, *, limit: int, reason: str) -> Outcome:
    """Give up to `limit` of the selected another chance, those that were submitted first."""
    return await _each(
        database, selection, limit, lambda connection, some: dead_letters.requeue(connection, some, reason)
    )


async def purge(database: Database, selection: Selection, *, limit: int, reason: str) -> Outcome:
    """Forget up to `limit` of the selected, those that were submitted first."""
    return await _each(
        database, selection, limit, lambda connection, some: dead_letters.purge(connection, some, reason)
    )


async def count(database: Database, selection: Selection) -> Outcome:
    """What one of the others would find; nothing is done."""
    async with database.transaction() as connection:
        return Outcome(matched=await dead_letters.count(connection, selection), done=0)


async def _each(
    database: Database,
    selection: Selection,
    limit: int,
    act: Callable[[AsyncConnection, Sequence[Letter]], Awaitable[int]],
) -> Outcome:
    async with database.transaction() as connection:
        matched = await dead_letters.count(connection, selection)
        letters = await dead_letters.find(connection, selection, limit)
    done = 0
    for start in range(0, len(letters), BATCH):
        async with database.transaction() as connection:
            done += await act(connection, letters[start : start + BATCH])
    return Outcome(matched=matched, done=done)
