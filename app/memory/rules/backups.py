"""Rules for restoring on another server: the offset of transaction numbers, and tasks without their leases."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED

# For readers, a number has 18 digits: with so many for each second they suffice until 2089.
_ROOM, _PER_SECOND = 10**12, 5 * 10**8
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def next_offset(highest: int, moment: datetime) -> int:
    """The offset to add to the transaction numbers of a server that counts from its own beginning.

    `highest` is the highest stored number. The offset is above it by 10^12 at least: cursors that readers received
    after the backup lie in that gap, so that also they miss none of the events to come. It grows with time faster than
    any server counts, as the same backup may have been restored before, and readers have gone on there.
    """
    return max(highest + _ROOM, int((moment - _BEGINNING).total_seconds() * _PER_SECOND))


def without_lease(task: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The row of a task without its lease, whose tag its lane has yet to correct.

    Progress, checkpoint, failures and token stay: no attempt is lost, and the next lease gets a higher token.
    """
    if task["state"] not in LEASED:
        return dict(task)
    no_lease = dict.fromkeys(("worker_id", "leased_at", "lease_expires_at", "deadline_at"))
    return {**task, **no_lease, "state": TaskState.PENDING.value, "waiting_since": now}
