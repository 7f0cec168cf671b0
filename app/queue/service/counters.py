"""Keeping the numbers of the queue: folding what was added, looking for the oldest, and checking that all is right."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.db.database import now
from app.db.duties import LastTurn
from app.kernel.lanes import Priority
from app.queue.rules.status import oldest_wait_floors
from app.queue.store import counters, throughput

log = logging.getLogger(__name__)

FOLD_EVENTS = "fold events"
FIND_OLDEST = "find the oldest"
CHECK_COUNTERS = "check counters"
_BATCHES = 5
# Counting reads the whole table: half a second for so much, and longer than a statement may take for twenty times as
# much. The limit goes by the table, because counters that are wrong may not decide whether they are checked.
_MOST_BYTES = 512 << 20


async def fold_counts(connection: AsyncConnection) -> dict[str, Any]:
    """Fold the changes of counters into totals."""
    return {"changes": await counters.fold(connection)}


async def fold_events(connection: AsyncConnection) -> dict[str, Any]:
    """Fold new events into minutes, in a few batches; what is left after a long break waits for the next turns."""
    folded = 0
    for _ in range(_BATCHES):
        batch = await throughput.fold(connection)
        folded += batch.events
        if not batch.has_more:
            return {"events": folded}
    return {"events": folded, "behind": True}


async def find_oldest(connection: AsyncConnection) -> dict[str, Any]:
    """Look for the longest-waiting task of each priority; the result is what `oldest` reads."""
    turn = (await duties.turns(connection, [FIND_OLDEST])).get(FIND_OLDEST)
    moment = await now(connection)
    looked_at = datetime.fromisoformat(turn.result["looked_at"]) if turn and turn.result else None
    found = await counters.oldest(connection, oldest_wait_floors(oldest(turn), looked_at))
    return {
        "looked_at": moment.isoformat(),
        "oldest": {priority.name: since.isoformat() for priority, since in found.items()},
    }


def oldest(turn: LastTurn | None) -> Mapping[Priority, datetime]:
    """Since when the oldest task of each priority waited at the last look, where any did."""
    found = turn.result.get("oldest", {}) if turn else {}
    return {Priority[name]: datetime.fromisoformat(since) for name, since in found.items()}


async def check_counters(connection: AsyncConnection) -> dict[str, Any]:
    """Count every task, and put right and report where the counters disagree; not while there are too many."""
    size = await counters.bytes_to_count(connection)
    if size > _MOST_BYTES:
        return {"skipped": f"the table of tasks has {size >> 20:,} MB, and counting them would hold up others"}
    found = await counters.differences(connection)
    if not found:
        return {"off_by": 0}
    missing = {f"{c.lane.agent_type} {c.lane.priority.name.lower()} {c.phase}": c.tasks for c in found}
    log.error("the counters of the queue were wrong and have been put right; this was missing: %s", missing)
    await counters.correct(connection, found)
    return {"off_by": sum(abs(count.tasks) for count in found), "missing": missing}
