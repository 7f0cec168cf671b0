"""Routes of dead letters, the tasks that failed for good: listing, reading, requeueing and purging."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.http.fields import PriorityIn, ReasonIn, optional_priority
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import InBatches, Reading, Writing
from app.kernel.access import Scope
from app.queue.api.task_filters import LetterQuery, PurgeIn, RequeueManyIn
from app.queue.api.task_schemas import TaskOut, TaskPage, summary, whole
from app.queue.errors import DeadLetterNotFound, GoalStopped, TaskFinished
from app.queue.service import dead_letters as service
from app.queue.service import tasks
from app.queue.store import listing

router = Router(prefix="/dead-letters", tags=["dead letters"])


class RequeueIn(ReasonIn):
    """Why, and with another priority if one is given."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"priority": "high", "reason": "the gateway is back"}]})

    priority: PriorityIn | None = Field(None, description="null: as it was")


class Requeued(BaseModel):
    """What a call of `POST /dead-letters/requeue` has done."""

    matched: int = Field(description="dead letters that the filter selected when the call began")
    requeued: int = Field(description="those of them that are in the queue again")
    remaining: int = Field(description="those that are left: repeat the call to go on")
    dry_run: bool


class Purged(BaseModel):
    """What a call of `POST /dead-letters/purge` has done."""

    matched: int = Field(description="dead letters that the filter selected when the call began")
    purged: int = Field(description="those of them that are gone")
    remaining: int = Field(description="those that are left: repeat the call to go on")
    dry_run: bool


@router.get(
    "",
    operation_id="list_dead_letters",
    summary="List dead letters",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
)
async def page(connection: Reading, namespace: Within, query: Annotated[LetterQuery, Query()]) -> TaskPage:
    """Failed tasks, those that were submitted last first. A page may be short and still have a `next`."""
    rows = await listing.page(connection, query.selection(namespace), below=query.after, limit=query.limit)
    return TaskPage(items=[summary(row) for row in rows.items], next=None if rows.next is None else str(rows.next))


@router.post(
    "/requeue",
    operation_id="requeue_dead_letters",
    summary="Requeue the dead letters that a filter selects",
    dependencies=[requires(Scope.SUBMIT)],
)
async def requeue_many(order: RequeueManyIn, database: InBatches, caller: Caller, namespace: Within) -> Requeued:
    """As for a single one; those that were submitted first go first, and goals share the queue as ever.

    Those of research goals that have stopped are left out.

    Up to `limit` in one call, in batches that are each durable at once: repeat the call while `remaining` is not 0.
    """
    outcome = await service.requeue_many(
        database,
        order.filter.selection(namespace),
        limit=order.limit,
        reason=order.reason,
        priority=optional_priority(order.priority),
        dry_run=order.dry_run,
        by=caller.key_id,
    )
    counts = {"matched": outcome.matching_count, "requeued": outcome.processed_count, "remaining": outcome.remaining}
    return Requeued(**counts, dry_run=order.dry_run)


@router.post(
    "/purge",
    operation_id="purge_dead_letters",
    summary="Forget the dead letters that a filter selects",
    dependencies=[requires(Scope.MANAGE)],
)
async def purge(order: PurgeIn, database: InBatches, caller: Caller, namespace: Within) -> Purged:
    """The tasks and their attempts are gone for good; of each an event `task.purged` is left.

    Up to `limit` in one call, in batches that are each durable at once: repeat the call while `remaining` is not 0.
    """
    outcome = await service.purge(
        database,
        order.filter.selection(namespace),
        limit=order.limit,
        reason=order.reason,
        dry_run=order.dry_run,
        by=caller.key_id,
    )
    counts = {"matched": outcome.matching_count, "purged": outcome.processed_count, "remaining": outcome.remaining}
    return Purged(**counts, dry_run=order.dry_run)


@router.get(
    "/{task_id}",
    operation_id="get_dead_letter",
    summary="Read a dead letter",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
    responses=responses_for(DeadLetterNotFound),
)
async def read(task_id: UUID, connection: Reading, namespace: Within) -> TaskOut:
    """Everything about it: the payload, the error, and every attempt."""
    return whole(await service.read(connection, task_id, namespace))


@router.post(
    "/{task_id}/requeue",
    operation_id="requeue_dead_letter",
    summary="Requeue a dead letter",
    dependencies=[requires(Scope.SUBMIT, Scope.CONTENT)],
    responses=responses_for(DeadLetterNotFound, TaskFinished, GoalStopped),
)
async def requeue(task_id: UUID, order: RequeueIn, connection: Writing, caller: Caller, namespace: Within) -> TaskOut:
    """It is pending again, with all its attempts before it, and goes on from its checkpoint; it needs no room.

    Tasks that waited for it were cancelled when it failed, and stay so: submit them anew. Requeueing a task that is
    in the queue already changes nothing, and answers how it stands.
    """
    priority = optional_priority(order.priority)
    await service.requeue(connection, task_id, order.reason, namespace, priority=priority, by=caller.key_id)
    return whole(await tasks.read(connection, task_id))
