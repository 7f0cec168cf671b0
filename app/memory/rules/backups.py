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


def without_lease(task: Mapping[str, Any], virtual_times: Mapping[tuple[str, int], float], now: str) -> dict[str, Any]:
    """The row of a task, returned to its lane without its lease; `virtual_times` are those of the lanes.

    Progress, checkpoint, failures and token stay: no attempt is lost, and the next lease gets a higher token.
    """
    if task["state"] not in LEASED:
        return dict(task)
    lane = (task["agent_type"], task["priority"])
    no_lease = dict.fromkeys(("worker_id", "leased_at", "lease_expires_at", "deadline_at"))
    # Its old tag may lie far behind the lane by now, which would put it before all others.
    tag = max(task["tag"], virtual_times.get(lane, 0.0))
    return {**task, **no_lease, "state": TaskState.PENDING.value, "waiting_since": now, "tag": tag}
