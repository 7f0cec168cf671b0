"""Awaits work that must end in order although its caller is cancelled, perhaps more than once."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
# The event loop keeps weak references only; without these, work that nobody awaits might be collected.
_background_tasks: set["asyncio.Future[None]"] = set()


async def cancel_at_most_once(work: Awaitable[T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
    """Await the work; however often the caller is cancelled, the work is cancelled once and has ended on return.

    httpcore hangs up when it is cancelled, and leaks the connection when that is cancelled in turn. `undo` takes back a
    result that arrives in the moment of cancellation.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.cancel()
        # Further cancellations of the caller interrupt only this wait, never the work.
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled() and future.exception() is None and undo is not None:
            await run_shielded(undo(future.result()))
        raise


async def run_shielded(work: Awaitable[None]) -> None:
    """Finish the work even if the caller is cancelled meanwhile; the caller then does not wait for it."""
    await asyncio.shield(run_in_background(work))


def run_in_background(work: Awaitable[None]) -> "asyncio.Future[None]":
    """Start work that finishes although nobody waits for it."""
    future = asyncio.ensure_future(work)
    _background_tasks.add(future)
    future.add_done_callback(_background_tasks.discard)
    return future
