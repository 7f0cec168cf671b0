"""Aging of waiting tasks: the duty that raises their priorities."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.kernel.lanes import Priority
from app.queue.rules.aging import AgingPolicy
from app.queue.store import aging

AGE_TASKS = "age tasks"
# A task that was locked when its time had come was skipped; it is met again within this time.
_OVERLAP = timedelta(seconds=60)


async def age_tasks(connection: AsyncConnection, policy: AgingPolicy) -> dict[str, Any]:
    """Raise tasks whose time has come, from where the last turn stopped; return the counts and the new positions.

    The result is stored with the duty, so the next turn need not walk over tasks that were looked at already.
    """
    last_turn = (await duties.last_turns(connection, (AGE_TASKS,))).get(AGE_TASKS)
    positions: dict[str, str] = dict(last_turn.result.get("stood", {})) if last_turn else {}
    raised_count = 0
    for step in policy.steps:
        raised_tasks = await aging.age(connection, step.priority, step.wait, _start(positions, step.priority))
        raised_count += raised_tasks.tasks
        if raised_tasks.since is not None and raised_tasks.until is not None:
            positions[step.priority.name] = raised_tasks.until.isoformat()
            # They bring their age along, so the next priority is searched again from there.
            _move_back(positions, Priority(step.priority + 1), raised_tasks.since)
    urgent_count = await aging.expedite(connection, policy.urgent_within)
    return {"aged": raised_count, "urgent": urgent_count, "stood": positions}


def _move_back(positions: dict[str, str], priority: Priority, since: datetime) -> None:
    """Include tasks that came from below: they may have waited longer than those already looked at here."""
    if priority.name in positions:
        positions[priority.name] = min(datetime.fromisoformat(positions[priority.name]), since).isoformat()


def _start(positions: dict[str, str], priority: Priority) -> datetime | None:
    return datetime.fromisoformat(positions[priority.name]) - _OVERLAP if priority.name in positions else None
