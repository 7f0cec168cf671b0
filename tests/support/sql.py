"""Statements that tests run beside the service, each committed at once, and a look at who waits for a lock."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database

PATIENCE = 30.0


async def execute(database: Database, statement: str, *values: Any) -> str:
    """Run one statement."""
    async with (await database.pool()).acquire() as connection:
        return str(await connection.execute(statement, *values))


async def fetch(database: Database, query: str, *values: Any) -> list[asyncpg.Record]:
    """The rows of a query."""
    async with (await database.pool()).acquire() as connection:
        return list(await connection.fetch(query, *values))


async def value(database: Database, query: str, *values: Any) -> Any:
    """The first column of the first row."""
    rows = await fetch(database, query, *values)
    return rows[0][0] if rows else None


@asynccontextmanager
async def uncommitted(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection whose transaction goes on until the end, and is rolled back."""
    async with database.engine.connect() as connection:
        yield connection
        await connection.rollback()


async def until(condition: Callable[[], Awaitable[object]], *, within: float = PATIENCE) -> None:
    """Look again and again until the condition holds. Raises AssertionError when it never does."""
    limit = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < limit, "waited in vain"
        await asyncio.sleep(0.01)


async def early_in_a_minute(database: Database) -> None:
    """Return when the minute goes on for a while by the database's clock, so that what follows falls into one."""

    async def early() -> bool:
        return bool(await value(database, "SELECT extract(second FROM now()) < 55"))

    await until(early)


async def until_blocked(database: Database, sessions: int = 1) -> None:
    """Return once so many sessions of this database wait for a lock, by PostgreSQL's own account."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0
    """
    async with (await database.pool()).acquire() as connection:

        async def blocked() -> bool:
            return bool(await connection.fetchval(query) >= sessions)

        await until(blocked)
