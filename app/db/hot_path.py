"""Runs a statement of the hot path on a pooled connection, repeating it where that is safe and useful."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import asyncpg

from app.db.database import Database, in_domain_words

T = TypeVar("T")
HotConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# A deadlock's victim, or another replica that served the same worker a moment earlier: the next look is a new one.
_AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)


def _nothing() -> None:
    """Where nobody needs to know that a try was undone."""


async def run(
    database: Database,
    statement: Callable[[HotConnection], Awaitable[T]],
    *,
    tries: int = 4,
    undone: Callable[[], None] = _nothing,
) -> T:
    """The answer of `statement`, which is one implicit transaction; `undone` hears of every try that lost to another.

    Raises DatabaseUnavailable.
    """
    for remaining in reversed(range(tries)):
        try:
            pool = await database.pool()
            async with pool.acquire(timeout=5) as connection:
                return await statement(connection)  # type: ignore[arg-type]  # a proxy of the connection
        except _AGAIN:
            undone()
            if not remaining:
                raise
        except Exception as error:
            raise in_domain_words(error) from error
    raise AssertionError("unreachable")


def columns(rows: Sequence[object], *names: str) -> list[list[object]]:
    """One list a name, for `unnest`: how a statement receives the calls of many."""
    return [[getattr(row, name) for row in rows] for name in names]
