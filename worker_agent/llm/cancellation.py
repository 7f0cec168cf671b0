"""How work that waits for others comes to its end although whoever wanted it is cancelled, perhaps more than once."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
# What must come to its end although nobody waits for it any longer.
_background_tasks: set["asyncio.Future[None]"] = set()


async def cancel_at_most_once(work: Awaitable[T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
    """Do the work; it is cancelled at most once, however often whoever waits for it is, and has ended when this ends.

    httpcore hangs up when it is cancelled, and leaves the connection open for ever when that is cancelled in turn.
    `undo` is for a result that comes in the moment in which nobody wants it any more.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.cancel()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled() and future.exception() is None and undo is not None:
            await run_shielded(undo(future.result()))
        raise


async def run_shielded(work: Awaitable[None]) -> None:
    """Do it whole, even if whoever waits for it is cancelled meanwhile; who is cancelled goes no further."""
    await asyncio.shield(run_in_background(work))


def run_in_background(work: Awaitable[None]) -> "asyncio.Future[None]":
    """Do it although nobody waits for it."""
    future = asyncio.ensure_future(work)
    _background_tasks.add(future)
    future.add_done_callback(_background_tasks.discard)
    return future
