"""A pool of connections for single statements."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

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
