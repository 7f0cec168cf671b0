"""Turns of background duties, taken at once instead of after a few seconds."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.operations import counting
from app.store import duties
from app.store.database import Database


async def take_turn(
    database: Database, duty: str, run: Callable[[AsyncConnection], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Do what the loops do when the duty is due; its result."""
    async with database.transaction() as connection:
        await duties.ensure(connection, duty)
        assert await duties.claim(connection, duty, 0) is not None
        result = await run(connection)
        await duties.done(connection, duty, result, held_back=False)
    return result


async def counted(database: Database) -> None:
    """Fold all events into minutes, and look for the oldest task."""
    await take_turn(database, counting.FOLD_EVENTS, counting.fold_events)
    await take_turn(database, counting.FIND_OLDEST, counting.find_oldest)
