"""How work that waits for others comes to its end although whoever wanted it is cancelled, perhaps more than once."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
# What must come to its end although nobody waits for it any longer.
_ending: set["asyncio.Future[None]"] = set()


async def cancelled_once(work: Awaitable[T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
    """Do the work; it is cancelled at most once, however often whoever waits for it is, and has ended when this ends.

    httpcore hangs up when it is cancelled, and leaves the connection open for ever when that is cancelled in turn.
    `undo` is for a result that comes in the moment in which nobody wants it any more.
    """
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        doing.cancel()
        while not doing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({doing})
        if not doing.cancelled() and doing.exception() is None and undo is not None:
            await to_the_end(undo(doing.result()))
        raise


async def to_the_end(work: Awaitable[None]) -> None:
    """Do it whole, even if whoever waits for it is cancelled meanwhile; who is cancelled goes no further."""
    await asyncio.shield(in_the_background(work))


def in_the_background(work: Awaitable[None]) -> "asyncio.Future[None]":
    """Do it although nobody waits for it."""
    doing = asyncio.ensure_future(work)
    _ending.add(doing)
    doing.add_done_callback(_ending.discard)
    return doing
