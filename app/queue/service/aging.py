"""Aging of waiting tasks: the duty that raises their priorities."""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.db.duties import LastTurn
from app.kernel.lanes import Priority
from app.queue.rules.aging import AgingPolicy, DeadlineLook
from app.queue.service import counters
from app.queue.store import aging

AGE_TASKS = "age tasks"
# Those locked at one look are met at the next.
_OVERLAP = timedelta(seconds=5)


async def age_tasks(connection: AsyncConnection, policy: AgingPolicy) -> dict[str, Any]:
    """Raise tasks whose time has come; return the counts, and what the next turn has to know.

    Each search leaves out what earlier ones have dealt with: index entries of tasks that are leased or have risen. They
    stay for as long as somebody keeps an old snapshot.
    """
    last_turn = (await duties.last_turns(connection, (AGE_TASKS,))).get(AGE_TASKS)
    raised_count, arrivals = await _raise_old(connection, policy, _arrivals(last_turn))
    urgent_count, look = await _raise_urgent(connection, policy, last_turn)
    return {"aged": raised_count, "urgent": urgent_count, "arrivals": arrivals, "deadlines": asdict(look)}


async def _raise_old(
    connection: AsyncConnection, policy: AgingPolicy, earlier_arrivals: Mapping[Priority, datetime]
) -> tuple[int, dict[str, str]]:
    """Raise what has waited for long; return the number, and since when those that came to a priority have waited.

    From the longest-waiting task of each priority on, as it was found last. What has risen brings its age along, so the
    next turn begins there.
    """
    oldest = await counters.oldest_since(connection)
    raised_count, arrivals = 0, dict[str, str]()
    for step in policy.steps:
        since = min(oldest[step.priority], earlier_arrivals.get(step.priority, oldest[step.priority]))
        raised_tasks = await aging.age(connection, step.priority, step.wait, since)
        raised_count += raised_tasks.tasks
        if raised_tasks.since is not None:
            arrivals[Priority(step.priority + 1).name] = raised_tasks.since.isoformat()
    return raised_count, arrivals


async def _raise_urgent(
    connection: AsyncConnection, policy: AgingPolicy, last_turn: LastTurn | None
) -> tuple[int, DeadlineLook]:
    """Make tasks critical whose deadline is near; return the number, and how the last look at all deadlines went.

    Other looks meet the deadlines that have come near since the last turn.
    """
    look, ago = DeadlineLook(), timedelta(0)
    if last_turn is not None:
        # Another version may know more of it.
        stored = last_turn.result.get("deadlines", {})
        names = {field.name for field in fields(DeadlineLook)} & stored.keys()
        look, ago = DeadlineLook(**{name: stored[name] for name in names}), last_turn.ago
    look = replace(look, seconds_ago=look.seconds_ago + ago.total_seconds())
    span = None if look.is_due else ago + _OVERLAP
    begun = time.monotonic()
    count = await aging.expedite(connection, policy.urgent_within, span, aging.MAX_EXPEDITED)
    if span is None:
        look = DeadlineLook(seconds=round(time.monotonic() - begun, 3))
    return count, replace(look, is_cut=count >= aging.MAX_EXPEDITED)


def _arrivals(last_turn: LastTurn | None) -> dict[Priority, datetime]:
    arrivals = last_turn.result.get("arrivals", {}) if last_turn else {}
    return {Priority[name]: datetime.fromisoformat(since) for name, since in arrivals.items()}
