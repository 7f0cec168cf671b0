"""The duty that divides lanes among namespaces, beyond which goals divide the shares of their namespaces."""

from collections import defaultdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import namespaces
from app.db import duties
from app.kernel.lanes import Lane
from app.queue.rules import sharing as rules
from app.queue.store import counters, sharing

# Of each namespace: about as many as a lane leases between two turns, so the next one comes in time.
_HEAD = 500
# In one turn, some 0.4 s: readers of events wait for the oldest open transaction that has written.
_MOVED = 1000
DUTY = "share lanes"


async def share_lanes(connection: AsyncConnection) -> dict[str, Any]:
    """Put the tasks at the heads of lanes in which several namespaces wait into their places; return the number moved.

    Without a second namespace that waits this is one small read. A turn that has moved many leaves the other lanes to
    the next one.
    """
    lanes = await _contested_lanes(connection)
    if not lanes:
        return {"lanes": 0, "moved": 0}
    turn = (await duties.last_turns(connection, [DUTY])).get(DUTY)
    last_name = turn.result.get("looked_at", "") if turn else ""
    lanes.sort(key=lambda lane: (_name(lane) <= last_name, _name(lane)))
    configured, moved = await namespaces.read(connection), 0
    for number, lane in enumerate(lanes, 1):
        head = await sharing.head(connection, lane, _HEAD)
        weights = {task.namespace: configured.config(task.namespace).weight for task in head}
        if tags := rules.share(head, weights):
            moved += await sharing.move(connection, tags)
        if moved >= _MOVED and number < len(lanes):
            return {"lanes": number, "moved": moved, "looked_at": _name(lane), "behind": True}
    return {"lanes": len(lanes), "moved": moved}


def _name(lane: Lane) -> str:
    return f"{lane.agent_type}/{lane.priority}"


async def _contested_lanes(connection: AsyncConnection) -> list[Lane]:
    waiting: dict[Lane, int] = defaultdict(int)
    for counts in (await counters.read_by_namespace(connection)).values():
        for lane in {count.lane for count in counts if count.phase == "pending"}:
            waiting[lane] += 1
    return [lane for lane, number in waiting.items() if number > 1]
