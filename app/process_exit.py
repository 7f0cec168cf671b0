"""Waits for the exit of processes of this machine, without asking again and again."""

import asyncio
import os
from collections.abc import Callable

_POLL_SECONDS = 0.25


async def until_exit(pid: int, is_running: Callable[[], bool]) -> None:
    """Wait until a process that runs now has ended: at once by its descriptor, by polling where the system has none."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        while is_running():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_POLL_SECONDS)
        return
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, end.set)
    try:
        await end.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
