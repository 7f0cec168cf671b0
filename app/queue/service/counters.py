"""Duties that maintain the figures of the queue: fold new entries, look for the oldest tasks, check the counters."""

import logging
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties, folds
from app.db.database import now
from app.db.duties import LastTurn
from app.kernel.lanes import Priority
from app.queue.rules.status import is_look_back_due, oldest_wait_floors
from app.queue.store import counters, throughput, waits

log = logging.getLogger(__name__)

FOLD_EVENTS = "fold events"
FIND_OLDEST = "find the oldest"
CHECK_COUNTERS = "check counters"
# Counting reads the whole table: half a second for this size, and longer than a statement may take for twenty times as
# much. The limit is on the size of the table, because wrong counters must not decide whether they are checked.
_MAX_TABLE_BYTES = 512 << 20


async def fold_counts(connection: AsyncConnection) -> dict[str, Any]:
    """Fold the changes of counters into totals, at most a few batches a turn; return the number folded."""
    line_count = 0
    for _ in range(folds.MAX_BATCHES):
        line_count += (folded := await counters.fold(connection))
        # A batch ends between two transactions, so a full one may have less than the limit.
        if folded < counters.FOLDED_LINES // 2:
            break
    return {"changes": line_count}


async def fold_events(connection: AsyncConnection) -> dict[str, Any]:
    """Fold new events into minutes, at most a few batches a turn."""
    return await folds.fold_batches(connection, throughput.fold)


async def find_oldest(connection: AsyncConnection) -> dict[str, Any]:
    """Look for the longest-waiting task of each priority; `oldest_by_priority` reads the result.

    What has risen from a lower priority, or was made ready by a long transaction, is found within a minute (within ten
    where that is dear): by a look that goes back to what the last one of its kind found, and so misses nothing between.
    """
    # Taken before the search: what becomes ready during it belongs to the next one.
    moment, last = await now(connection), await _last_look(connection)
    if last and datetime.fromisoformat(last["looked_at"]) > moment:
        last = {}  # the clock of the database was set back, so tasks may be older than what it found
    looked_back = last.get("looked_back", {})
    looks_back = is_look_back_due(_looked_at(looked_back), moment, timedelta(seconds=looked_back.get("seconds", 0.0)))
    floors = _floors(looked_back or last, looks_back=True) if looks_back else _floors(last)
    begun = time.monotonic()
    oldest = await waits.oldest_waits(connection, floors)
    look = {
        "looked_at": moment.isoformat(),
        "oldest": {priority.name: since.isoformat() for priority, since in oldest.items()},
        "seconds": round(time.monotonic() - begun, 3),
    }
    return {**look, "looked_back": look if looks_back else looked_back}


async def oldest_since(connection: AsyncConnection) -> Mapping[Priority, datetime]:
    """Times before which no task of each priority became ready, by the last turn of `find_oldest`.

    What has risen since the last look back may have waited for longer.
    """
    return _floors(await _last_look(connection))


def oldest_by_priority(turn: LastTurn | None) -> Mapping[Priority, datetime]:
    """Start of the longest wait of each priority where any task waits, by the last turn of `find_oldest`."""
    return _oldest(turn.result if turn else {})


async def _last_look(connection: AsyncConnection) -> Mapping[str, Any]:
    turn = (await duties.last_turns(connection, [FIND_OLDEST])).get(FIND_OLDEST)
    return turn.result if turn else {}


def _floors(look: Mapping[str, Any], *, looks_back: bool = False) -> Mapping[Priority, datetime]:
    return oldest_wait_floors(_oldest(look), _looked_at(look), looks_back=looks_back)


def _oldest(look: Mapping[str, Any]) -> Mapping[Priority, datetime]:
    return {Priority[name]: datetime.fromisoformat(since) for name, since in look.get("oldest", {}).items()}


def _looked_at(look: Mapping[str, Any]) -> datetime | None:
    return datetime.fromisoformat(look["looked_at"]) if look else None


async def check_counters(connection: AsyncConnection) -> dict[str, Any]:
    """Count all tasks, and report and correct counters that disagree; skipped while the table is too large."""
    size = await counters.table_bytes(connection)
    if size > _MAX_TABLE_BYTES:
        return {"skipped": f"the table of tasks has {size >> 20:,} MB, and counting them would hold up others"}
    differences = await counters.differences(connection)
    if not differences:
        return {"off_by": 0}
    missing_tasks = {f"{d.lane.agent_type} {d.lane.priority.name.lower()} {d.phase}": d.tasks for d in differences}
    log.error("the counters of the queue were wrong and have been put right; this was missing: %s", missing_tasks)
    await counters.correct(connection, differences)
    return {"off_by": sum(abs(difference.tasks) for difference in differences), "missing": missing_tasks}
