"""Moving a database from one server to another: where counting goes on, and what a task is without its lease."""

from collections.abc import Mapping
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED

_EPOCH = 10**12


def next_offset(highest: int) -> int:
    """The offset to add to the transaction numbers of a server where counting begins anew.

    `highest` is the highest number that is stored. The offset is a multiple of 10^12 and at least as much above it:
    cursors that readers received since the backup was made lie in that gap, so that they too go on without a loss.
    """
    return (highest // _EPOCH + 2) * _EPOCH


def at_rest(task: Mapping[str, Any], virtual_times: Mapping[tuple[str, int], float], now: str) -> dict[str, Any]:
    """A task as it goes back to the queue unharmed when its worker holds nothing real any more.

    Progress, checkpoint, failures and token stay; the next lease has a higher token than any before.
    """
    if task["state"] not in LEASED:
        return dict(task)
    lane = (task["agent_type"], task["priority"])
    free = dict.fromkeys(("worker_id", "leased_at", "lease_expires_at", "deadline_at"))
    tag = max(task["tag"], virtual_times.get(lane, 0.0))
    return {**task, **free, "state": TaskState.PENDING.value, "waiting_since": now, "tag": tag}
