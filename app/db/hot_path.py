"""Run a statement of the hot path on a pooled connection, and repeat it where it lost against another."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import asyncpg
from sqlalchemy.exc import TimeoutError as PoolExhausted

from app.db.database import Database, cancellation_or
from app.db.statement_pool import StatementPool

T = TypeVar("T")
_ACQUIRE_SECONDS = 5.0
HotConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Victim of a deadlock, or of another replica that served the same worker a moment earlier: a new try sees that.
_RETRYABLE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError)


def _ignore() -> None:
    """Ignore that a try may be undone."""


async def run(
    database: Database,
    statement: Callable[[HotConnection], Awaitable[T]],
    *,
    tries: int = 4,
    on_undone: Callable[[], None] = _ignore,
    connections: StatementPool | None = None,
) -> T:
    """Return the answer of `statement`, which is one implicit transaction.

    It has one of `connections`, else one of the hot path. `on_undone` is called for every try that failed once it had
    a connection: rows that it had locked are free again, and others have passed over them. Raises DatabaseUnavailable.
    """
    for remaining in reversed(range(tries)):
        pool, has_begun = None, False  # the pool while it waits for a connection of it
        try:
            pool = await (connections or database.hot).open()
            async with pool.acquire(timeout=_ACQUIRE_SECONDS) as connection:
                pool, has_begun = None, True
                answer = await statement(connection)  # type: ignore[arg-type]  # a proxy of the connection
            database.outage.note_answer()
            return answer
        except _RETRYABLE:
            on_undone()
            if not remaining:
                raise
        except Exception as error:
            if has_begun:
                on_undone()
            failure = error
            if isinstance(error, TimeoutError) and pool is not None and pool.get_size() == pool.get_max_size():
                failure = PoolExhausted()  # all are in use: the database is busy, and not away
            database.note_failure(failure)
            raise cancellation_or(failure) from error
    raise AssertionError("unreachable")


def columns(rows: Sequence[object], *names: str) -> list[list[object]]:
    """Return one list of values for each attribute name, as `unnest` takes them."""
    return [[getattr(row, name) for row in rows] for name in names]
