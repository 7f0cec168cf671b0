"""Directives of operators to workers (drain, restart, stop): recorded in the audit log, and safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import notify
from app.kernel.errors import WorkerGone
from app.kernel.text import NO_REASON
from app.workers.rules.workers import ENDED_STATES, Directive, weaker
from app.workers.service import workers
from app.workers.store import directives as store
from app.workers.store.directives import DirectedWorker, WorkerSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A directive with who gives it and the reason."""

    directive: Directive
    by: str
    reason: str

    @property
    def shown_reason(self) -> str:
        """The reason as the worker and whoever looks at it are told."""
        return self.reason or NO_REASON


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Number of workers that an order selected, and of those that have got its directive."""

    selected_workers: int
    directed_workers: int


async def direct(connection: AsyncConnection, worker_id: UUID, order: Order) -> dict[str, Any]:
    """Give one worker a directive, which it reads with its next heartbeat; return the worker as stored.

    It gets no more leases. The same directive again, or a weaker one, changes nothing, also after the worker has ended
    by it. Raises WorkerNotFound, WorkerGone.
    """
    changed_workers = await store.direct(
        connection, WorkerSelector(ids=[worker_id]), order.directive, order.shown_reason
    )
    # Read after the update, so that the answer shows the worker with its directive.
    row = await workers.read(connection, worker_id)
    if row["state"] in ENDED_STATES and not _is_as_strong(row["directive"], order.directive):
        raise WorkerGone(f"this worker is {row['state']} already", reason=row["state"])
    _audit(connection, changed_workers, order)
    return row


async def direct_many(
    connection: AsyncConnection, selector: WorkerSelector, order: Order, *, limit: int, dry_run: bool = False
) -> Outcome:
    """Give a directive to the selected workers that do not have it yet, in the order of ids, at most `limit`.

    With `dry_run` they are only counted.
    """
    count = await store.count(connection, selector, order.directive)
    if dry_run:
        return Outcome(selected_workers=count, directed_workers=0)
    changed_workers = await store.direct(connection, selector, order.directive, order.shown_reason, limit=limit)
    _audit(connection, changed_workers, order)
    # Workers may have come between the two statements.
    return Outcome(selected_workers=max(count, len(changed_workers)), directed_workers=len(changed_workers))


def _audit(connection: AsyncConnection, workers: Sequence[DirectedWorker], order: Order) -> None:
    if not workers:
        return
    notify.note(connection, notify.FLEET)
    audit.record(
        connection,
        f"workers.{order.directive}",
        by=order.by,
        old_state={worker.name: worker.previous_directive for worker in workers},
        new_state={worker.name: order.directive for worker in workers},
        reason=order.reason,
    )


def _is_as_strong(present: str | None, directive: Directive) -> bool:
    return present is not None and Directive(present) not in weaker(directive)
