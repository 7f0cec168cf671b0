"""The duty that divides lanes among namespaces, beyond which goals divide the shares of their namespaces."""

from collections import defaultdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import namespaces
from app.kernel.lanes import Lane
from app.queue.rules import sharing as rules
from app.queue.store import counters, sharing

# Of each namespace: about as many as a lane leases between two turns, so the next one comes in time.
_HEAD = 500


async def share_lanes(connection: AsyncConnection) -> dict[str, Any]:
    """Put the tasks at the heads of lanes in which several namespaces wait into their places; return the number moved.

    Without a second namespace that waits this is one small read.
    """
    lanes = await _contested_lanes(connection)
    if not lanes:
        return {"lanes": 0, "moved": 0}
    configured, moved = await namespaces.read(connection), 0
    for lane in lanes:
        head = await sharing.head(connection, lane, _HEAD)
        weights = {task.namespace: configured.config(task.namespace).weight for task in head}
        if tags := rules.share(head, weights):
            moved += await sharing.move(connection, tags)
    return {"lanes": len(lanes), "moved": moved}


async def _contested_lanes(connection: AsyncConnection) -> list[Lane]:
    waiting: dict[Lane, int] = defaultdict(int)
    for counts in (await counters.read_by_namespace(connection)).values():
        for lane in {count.lane for count in counts if count.phase == "pending"}:
            waiting[lane] += 1
    return sorted(lane for lane, number in waiting.items() if number > 1)
