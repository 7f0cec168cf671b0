"""Connections for single statements: a pool, and one that is kept."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import asyncpg

from app.db.connections import LimitedConnection


class StatementPool:
    """The driver's pool of at most `size` connections, most of whose statements are transactions of their own.

    It is opened when first used.
    """

    def __init__(self, url: str, connect: Callable[[], Coroutine[Any, Any, LimitedConnection]], size: int) -> None:
        self.size = size
        self._url, self._connect = url, connect
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The driver's pool."""
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self.size,
                    connect=lambda *_, **__: self._connect(),
                    connection_class=LimitedConnection,
                    # Single statements leave no session state behind, so a round trip to reset it would be wasted.
                    reset=_keep_session,
                )
        return self._pool

    @property
    def is_exhausted(self) -> bool:
        """Whether all connections are in use."""
        return self._pool is not None and self._pool.get_size() == self.size and not self._pool.get_idle_size()

    def terminate(self) -> None:
        """Close all connections, without waiting for any answer."""
        if self._pool is not None:
            self._pool.terminate()


async def _keep_session(_connection: object) -> None:
    return None


class KeptConnection:
    """One connection for statements that come one after the other, opened when first used and after it was closed.

    For `hot_path.run` it is a pool; but to take it makes no task, and needs no turn of the event loop.
    """

    size = 1

    def __init__(self, connect: Callable[[], Coroutine[Any, Any, LimitedConnection]]) -> None:
        self._connect = connect
        self._connection: LimitedConnection | None = None

    async def open(self) -> Self:
        """Itself, in the place of a pool."""
        return self

    def acquire(self, *, timeout: float) -> Self:
        """The context in which a statement has the connection."""
        return self

    def get_size(self) -> int:
        """Return the number of connections that are open."""
        return int(self._connection is not None)

    def get_max_size(self) -> int:
        """Return more than there ever are, as none is waited for."""
        return self.size + 1

    async def __aenter__(self) -> LimitedConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        pass

    def terminate(self) -> None:
        """Close it, without waiting for any answer."""
        if self._connection is not None:
            self._connection.terminate()
