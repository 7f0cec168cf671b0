"""Cancellation of all tasks that a selection matches, in batches with a transaction each.

Readers of events wait for the oldest transaction, so none may last long. A call that was interrupted has done part of
its work and may be repeated.
"""

from dataclasses import asdict, dataclass

from app.admin.service import audit
from app.db.database import Database
from app.queue.store import cancel as cancel_store
from app.queue.store.listing import Selection

BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """Numbers of tasks that matched when the call began, of those that it cancelled, and of cancelled dependents."""

    matching_count: int
    cancelled_count: int
    dependent_count: int

    @property
    def remaining(self) -> int:
        """Number of matching tasks that are not cancelled yet."""
        return max(0, self.matching_count - self.cancelled_count)


async def cancel(
    database: Database,
    selection: Selection,
    *,
    limit: int,
    reason: str,
    dry_run: bool = False,
    by: str | None = None,
) -> CancelResult:
    """Cancel up to `limit` of the selected live tasks, first submitted first, and all tasks that wait for them.

    Workers learn of it with their next heartbeat or call. A dry run only counts the tasks that match.
    The act of the key `by` is audited with each batch.
    """
    async with database.transaction() as connection:
        matching_count = await cancel_store.count(connection, selection)
        ids = [] if dry_run else await cancel_store.find(connection, selection, limit)
    cancelled_count = dependent_count = 0
    for start in range(0, len(ids), BATCH):
        # Each batch checks the selection again: tasks may have left it since they were found.
        async with database.transaction() as connection:
            batch = await cancel_store.cancel(connection, ids[start : start + BATCH], selection, reason)
            if by is not None and batch.selected_tasks:
                cancelled = {"filter": selection.as_json(), **asdict(batch)}
                audit.record(connection, "tasks.cancel", by=by, new_state=cancelled, reason=reason)
        cancelled_count += batch.selected_tasks
        dependent_count += batch.dependents
    return CancelResult(matching_count=matching_count, cancelled_count=cancelled_count, dependent_count=dependent_count)
