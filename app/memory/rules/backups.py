"""Rules for restoring on another server: the offset of transaction numbers, and tasks without their leases."""

from collections.abc import Mapping
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED

_OFFSET_STEP = 10**12


def next_offset(highest: int) -> int:
    """The offset to add to the transaction numbers of a server that counts from its own beginning.

    `highest` is the highest stored number. The offset is a multiple of 10^12, and above it by at least as much: cursors
    that readers received after the backup lie in that gap, so that also they miss none of the events to come.
    """
    return (highest // _OFFSET_STEP + 2) * _OFFSET_STEP


def without_lease(task: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The row of a task without its lease, whose tag its lane has yet to correct.

    Progress, checkpoint, failures and token stay: no attempt is lost, and the next lease gets a higher token.
    """
    if task["state"] not in LEASED:
        return dict(task)
    no_lease = dict.fromkeys(("worker_id", "leased_at", "lease_expires_at", "deadline_at"))
    return {**task, **no_lease, "state": TaskState.PENDING.value, "waiting_since": now}
