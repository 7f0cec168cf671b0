"""Turns for work in the event loop that takes so long that several of it at once would keep others waiting."""

import asyncio
from collections import deque

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.shared_objects import shared_by


class Turns:
    """Lets one of those who wait go on in each turn of the event loop, so that others are served in between."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def wait(self) -> None:
        """Wait until no other has gone on in this turn of the loop."""
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._advance)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _advance(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                turn.get_loop().call_soon(self._advance)
                return
        self._is_taken = False


async def turn(connection: AsyncConnection) -> None:
    """Wait for a turn for work of some ten milliseconds: whoever is ready for it at once does it one by one."""
    await shared_by(connection, Turns).wait()
