"""Many concurrent calls, one statement: whatever arrives while a flush runs goes into the next one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from app.kernel.errors import DatabaseUnavailable, ShuttingDown

log = logging.getLogger(__name__)
_CROWD = 4
_LINGER_SECONDS = 0.001
Q = TypeVar("Q")
A = TypeVar("A")


class Coalescer(Generic[Q, A]):
    """Answers calls in batches. A lone call is flushed at once, so coalescing does not delay it.

    Two calls with the same key never share a batch: the statement sees each row once. Without keys any calls may.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        key: Callable[[Q], Hashable] | None = None,
        *,
        limit: int = 128,
    ) -> None:
        self._flush = flush
        self._key = key
        self._limit = limit
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __call__(self, call: Q) -> A:
        """The answer to this call. Raises whatever the flush raised for it."""
        if self._closed:
            raise ShuttingDown
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Finish what has arrived and take no more."""
        self._closed = True
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                await self._answer(batch)
                if len(batch) >= _CROWD:
                    # Under load a moment's patience makes fewer, larger statements; a lone call never waits.
                    await asyncio.sleep(_LINGER_SECONDS)
        finally:
            self._task = None

    def _next_batch(self) -> list[tuple[Q, asyncio.Future[A]]]:
        batch: dict[Hashable, tuple[Q, asyncio.Future[A]]] = {}
        rest = []
        for item in self._waiting:
            key = self._key(item[0]) if self._key else object()
            if key in batch or len(batch) >= self._limit:
                rest.append(item)
            else:
                batch[key] = item
        self._waiting = rest
        return list(batch.values())

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._flush([call for call, _ in batch])
        except DatabaseUnavailable as error:
            _fail(batch, error)
        except Exception as error:
            await self._answer_one_by_one(batch, error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _answer_one_by_one(self, batch: list[tuple[Q, asyncio.Future[A]]], error: Exception) -> None:
        """One call that the database refuses must not take the others with it."""
        if len(batch) == 1:
            _fail(batch, error)
            return
        log.warning("a batch of %d failed (%s); trying each by itself", len(batch), error)
        for item in batch:
            await self._answer([item])


def _fail(batch: list[tuple[Q, asyncio.Future[A]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
