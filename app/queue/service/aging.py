"""Letting what waits become more urgent."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.kernel.lanes import Priority
from app.queue.rules.aging import AgingPolicy
from app.queue.store import aging

AGE_TASKS = "age tasks"
# A task that was locked at the moment when its time had come is met again within this time.
_OVERLAP = timedelta(seconds=60)


async def tick(connection: AsyncConnection, policy: AgingPolicy) -> dict[str, Any]:
    """One turn, from where the last one stood. The higher step first, so that nothing climbs two in one turn."""
    last = (await duties.turns(connection, (AGE_TASKS,))).get(AGE_TASKS)
    stood: dict[str, str] = dict(last.result.get("stood", {})) if last else {}
    moved = 0
    for step in policy.steps:
        aged = await aging.age(connection, step.priority, step.after, _since(stood, step.priority))
        moved += aged.tasks
        if aged.since is not None and aged.until is not None:
            stood[step.priority.name] = aged.until.isoformat()
            _go_back(stood, Priority(step.priority + 1), aged.since)
    return {"aged": moved, "urgent": await aging.hurry(connection, policy.urgent_within), "stood": stood}


def _go_back(stood: dict[str, str], priority: Priority, since: datetime) -> None:
    """What came from below may have waited longer than what this priority has looked at already."""
    if priority.name in stood:
        stood[priority.name] = min(datetime.fromisoformat(stood[priority.name]), since).isoformat()


def _since(stood: dict[str, str], priority: Priority) -> datetime | None:
    return datetime.fromisoformat(stood[priority.name]) - _OVERLAP if priority.name in stood else None
