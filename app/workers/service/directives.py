"""People and the pool tell workers to drain, restart or stop: recorded, and safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import notify
from app.queue.errors import WorkerGone, WorkerNotFound
from app.workers.rules.workers import OVER, Directive, weaker
from app.workers.store import directives as store
from app.workers.store import workers
from app.workers.store.directives import Told, WorkerSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What workers are to do, who says so, and why."""

    directive: Directive
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Workers that the order concerned when it came, and how many of them have been told."""

    matched: int
    told: int


async def direct(connection: AsyncConnection, worker_id: UUID, order: Order) -> dict[str, Any]:
    """Tell one worker: it gets no more leases, and hears it with its next beat. Returns how it stands.

    Telling it again, or something weaker, changes nothing, also when it has obeyed meanwhile.
    Raises WorkerNotFound, WorkerGone.
    """
    told = await store.direct(connection, WorkerSelector(ids=[worker_id]), order.directive, order.reason)
    row = await workers.read(connection, worker_id)
    if row is None:
        raise WorkerNotFound
    if row["state"] in OVER and not _knew(row["directive"], order.directive):
        raise WorkerGone(f"this worker is {row['state']} already", reason=row["state"])
    await _note(connection, told, order)
    return row


async def count(connection: AsyncConnection, crew: WorkerSelector, directive: Directive) -> Outcome:
    """How many workers an order would concern."""
    return Outcome(matched=await store.count(connection, crew, directive), told=0)


async def direct_many(connection: AsyncConnection, crew: WorkerSelector, order: Order, *, limit: int) -> Outcome:
    """Tell all that are meant, by id, at most so many; those that know it already are not among them."""
    matched = await store.count(connection, crew, order.directive)
    told = await store.direct(connection, crew, order.directive, order.reason, limit=limit)
    await _note(connection, told, order)
    return Outcome(matched=max(matched, len(told)), told=len(told))


async def _note(connection: AsyncConnection, told: Sequence[Told], order: Order) -> None:
    if not told:
        return
    notify.note(connection, notify.FLEET)
    await audit.record(
        connection,
        f"workers.{order.directive}",
        by=order.by,
        old_state={worker.name: worker.before for worker in told},
        new_state={worker.name: order.directive for worker in told},
        reason=order.reason,
    )


def _knew(directive: str | None, ordered: Directive) -> bool:
    return directive is not None and Directive(directive) not in weaker(ordered)
