"""Shares of what is not hot: each key has so many requests at once, and all keys together; the others wait briefly."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass

from app.kernel.errors import TooManyRequests


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePolicy:
    """Requests at once of a key and of all, seconds that one waits for its turn, and how many of a key may wait."""

    of_key: int = 4
    in_all: int = 32
    wait_seconds: float = 5.0
    waiting: int = 100


# The work on a body of some MiB takes a tenth of a second of the loop and of the database: many at once would keep all
# others waiting for as many.
_LARGE_BYTES = 2 << 20


class Shares:
    """The requests of this process that are under way, by key; those that cost much apart, as they are few."""

    def __init__(
        self,
        policy: SharePolicy = SharePolicy(),
        costly: SharePolicy = SharePolicy(of_key=1, in_all=2),
        large: SharePolicy = SharePolicy(of_key=1, in_all=2, wait_seconds=30.0),
        batches: SharePolicy = SharePolicy(of_key=1, in_all=1000, wait_seconds=30.0),
    ) -> None:
        self._usual, self._costly, self._large = _Turns(policy), _Turns(costly), _Turns(large)
        self._batches = _Turns(batches)

    def of(self, key_id: str, *, is_costly: bool = False) -> AbstractAsyncContextManager[None]:
        """A turn of the key, for the length of the block. Raises TooManyRequests."""
        return (self._costly if is_costly else self._usual).of(key_id)

    def of_body(self, caller: Hashable, size: int) -> AbstractAsyncContextManager[None]:
        """A turn of the caller for the work on a body of `size` bytes, where that is much. Raises TooManyRequests."""
        return self._large.of(caller) if size > _LARGE_BYTES else nullcontext()

    def of_batch(self, caller: Hashable) -> AbstractAsyncContextManager[None]:
        """A turn of the caller for reading many calls that came in one request. Raises TooManyRequests."""
        return self._batches.of(caller)


class _Turns:
    """Turns of all keys by one policy."""

    def __init__(self, policy: SharePolicy) -> None:
        self._policy = policy
        self._all = asyncio.Semaphore(policy.in_all)
        self._by_key: dict[Hashable, _Share] = {}

    @asynccontextmanager
    async def of(self, key_id: Hashable) -> AsyncIterator[None]:
        share = self._by_key.setdefault(key_id, _Share(self._policy.of_key))
        if share.requests >= self._policy.of_key + self._policy.waiting:
            raise TooManyRequests
        share.requests += 1
        try:
            # The own turn first: a key that waits for it keeps nobody else waiting.
            async with _Turn(share.turns, self._policy), _Turn(self._all, self._policy):
                yield
        finally:
            share.requests -= 1
            if not share.requests:
                self._by_key.pop(key_id, None)


class _Share:
    """Turns of one key, and its requests that have one or wait."""

    __slots__ = ("requests", "turns")

    def __init__(self, turns: int) -> None:
        self.turns = asyncio.Semaphore(turns)
        self.requests = 0


class _Turn:
    """A turn of a semaphore, refused after a while."""

    __slots__ = ("_policy", "_turns")

    def __init__(self, turns: asyncio.Semaphore, policy: SharePolicy) -> None:
        self._turns, self._policy = turns, policy

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(self._policy.wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise TooManyRequests from None

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()
