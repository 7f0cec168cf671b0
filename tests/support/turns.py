"""Turns of background duties, taken at once instead of after a few seconds."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.store import performance
from app.db import duties
from app.db.database import Database
from app.goals.store import compute
from app.queue.service import counters
from app.queue.store import throughput


def done(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a turn has done, without until when it has found nothing to do."""
    return {name: content for name, content in result.items() if name != "none_before"}


async def take_turn(
    database: Database, duty: str, run: Callable[[AsyncConnection], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Do what the loops do when the duty is due; its result."""
    async with database.transaction() as connection:
        await duties.ensure(connection, duty)
        assert await duties.claim(connection, duty, 0) is not None
        result = await run(connection)
        await duties.record(connection, duty, result, held_back=False)
    return result


async def counted(database: Database) -> None:
    """Fold all events into minutes, and look for the oldest task."""
    # What was written while a younger transaction ended is folded once another one has ended.
    async with database.transaction() as connection:
        await connection.exec_driver_sql("SELECT pg_current_xact_id()")
    await take_turn(database, counters.FOLD_EVENTS, counters.fold_events)
    await take_turn(database, counters.FIND_OLDEST, counters.find_oldest)


async def fold_events(database: Database) -> None:
    """Let all sums count the events that are there."""
    async with database.transaction() as connection:
        await compute.fold(connection)
        await throughput.fold(connection)
        await performance.fold(connection)
