"""Coalescing: concurrent calls become one statement; calls that arrive while a batch runs make the next one."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from app.kernel.errors import ConvenerError, DatabaseUnavailable, Locked, ShuttingDown

log = logging.getLogger(__name__)
_LARGE_BATCH = 4
_LOCKED_IN_ROW = 2
_LINGER_SECONDS = 0.001
# A statement with its values is in memory several times.
_MAX_BYTES = 32 << 20
# Whoever got no answer has called again by then.
_REPEAT_SECONDS = 2.0
Call = TypeVar("Call")
Answer = TypeVar("Answer")


class Coalescer(Generic[Call, Answer]):
    """Answers concurrent calls in batches by `run_batch`; a lone call runs at once, so it is not delayed.

    Two calls of the same key never share a batch, because a statement can change each row only once. Where calls have a
    `size`, in bytes or characters, a batch has 32 Mi of them at most, or one call.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Call]], Awaitable[Sequence[Answer]]],
        key: Callable[[Call], Hashable] | None = None,
        *,
        limit: int = 128,
        size: Callable[[Call], int] | None = None,
    ) -> None:
        self._run_batch = run_batch
        self._key = key
        self._limit = limit
        self._size = size
        self._waiting: list[tuple[Call, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._unanswered_since: float | None = None
        # Of the last run; while one goes on it has no end yet.
        self._ended_at = -math.inf

    async def __call__(self, call: Call) -> Answer:
        """Return the answer to a call. Raises ShuttingDown, and whatever `run_batch` raised for it."""
        return await self.enqueue_one(call)

    def enqueue_one(self, call: Call) -> "asyncio.Future[Answer]":
        """Let a call be answered together with others; return the future of its answer."""
        # For itself, as most calls come alone, and lists of one would cost half as much again.
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            future.set_exception(ShuttingDown())
            return future
        self._waiting.append((call, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return future

    def enqueue(self, calls: Sequence[Call]) -> "list[asyncio.Future[Answer]]":
        """Let calls be answered together; return the futures of their answers, which raise as for a single call."""
        create_future = asyncio.get_running_loop().create_future
        batch = [(call, create_future()) for call in calls]
        futures = [future for _, future in batch]
        if self._is_closed:
            _fail(batch, ShuttingDown())
            return futures
        self._waiting += batch
        if self._task is None and futures:
            self._task = asyncio.create_task(self._run())
        return futures

    @property
    def is_busy(self) -> bool:
        """Whether calls are being answered."""
        return self._task is not None

    @property
    def stalled_seconds(self) -> float:
        """For how long the database has answered no call; 0 while there is none."""
        moment = time.monotonic()
        if self._unanswered_since is None or moment - self._ended_at > _REPEAT_SECONDS:
            return 0.0
        return moment - self._unanswered_since

    async def close(self) -> None:
        """Answer the calls that have arrived, and refuse later ones."""
        self._is_closed = True
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        if self._unanswered_since is not None and self.stalled_seconds == 0.0:
            # Nobody has called for a while: that time is no part of a stall.
            self._unanswered_since = None
        self._ended_at = math.inf
        try:
            while self._waiting:
                batch = self._next_batch()
                await self._answer(batch)
                if len(batch) >= _LARGE_BATCH and len(self._waiting) < self._limit:
                    # Under load, a short pause makes fewer and larger statements; a lone call never waits.
                    await asyncio.sleep(_LINGER_SECONDS)
        finally:
            self._task = None
            self._ended_at = time.monotonic()

    def _next_batch(self) -> list[tuple[Call, asyncio.Future[Answer]]]:
        if self._are_one_batch():
            batch, self._waiting = self._waiting, []
            return batch
        calls: dict[Hashable, tuple[Call, asyncio.Future[Answer]]] = {}
        rest, size = [], 0
        for item in self._waiting:
            key, more = self._key(item[0]) if self._key else object(), self._size(item[0]) if self._size else 0
            if key in calls or len(calls) >= self._limit or (calls and size + more > _MAX_BYTES):
                rest.append(item)
            else:
                calls[key] = item
                size += more
        self._waiting = rest
        return list(calls.values())

    def _are_one_batch(self) -> bool:
        """Whether the calls that wait are few enough, small enough, and of different keys, as they mostly are."""
        waiting, key_of, size_of = self._waiting, self._key, self._size
        return (
            len(waiting) <= self._limit
            and (key_of is None or len({key_of(call) for call, _ in waiting}) == len(waiting))
            and (size_of is None or sum([size_of(call) for call, _ in waiting]) <= _MAX_BYTES)
        )

    async def _answer(self, batch: list[tuple[Call, asyncio.Future[Answer]]]) -> Exception | None:
        """Answer the calls of a batch; return the error of the statement for all of them, if there was one."""
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        try:
            answers = await self._run_batch([call for call, _ in batch])
        except Locked as error:
            self._unanswered_since = None
            await self._answer_one_by_one(batch, error)
            return error
        except DatabaseUnavailable as error:
            _fail(batch, error)
            return error
        except Exception as error:
            self._unanswered_since = None
            await self._answer_one_by_one(batch, error)
            return error
        self._unanswered_since = None
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        return None

    async def _answer_one_by_one(self, batch: list[tuple[Call, asyncio.Future[Answer]]], error: Exception) -> None:
        # One call that the database refuses must not make the others fail.
        if len(batch) == 1:
            _fail(batch, error)
            return
        # What the domain refuses is the business of its caller alone.
        if not isinstance(error, ConvenerError):
            log.warning("a batch of %d failed (%s); trying each by itself", len(batch), error)
        locked_in_row = 0
        for place, item in enumerate(batch):
            failure = await self._answer([item])
            locked_in_row = locked_in_row + 1 if isinstance(failure, Locked) else 0
            # Either the database is away, or they seem to want the same lock: each of the others would wait as long for
            # nothing, with all newer calls behind.
            if isinstance(failure, DatabaseUnavailable) and locked_in_row in (0, _LOCKED_IN_ROW):
                _fail(batch[place + 1 :], failure)
                return


def _fail(batch: list[tuple[Call, asyncio.Future[Answer]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
