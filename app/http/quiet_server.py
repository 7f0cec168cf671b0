"""uvicorn's server without its ten looks a second."""

import asyncio

import uvicorn

# As often as the date in the head of an answer changes.
_TICK_SECONDS = 1.0
# Ticks of uvicorn are tenths of a second, and at every tenth it renews that date.
_TICK_OF_DATE = 0


class QuietServer(uvicorn.Server):
    """Wakes once a second and when it is stopped, where uvicorn looks ten times a second whether it is.

    Each look wakes a processor that has nothing else to do.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._is_stopped = False
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether it is to stop; whoever sets this, a handler of signals as well, wakes it."""
        return self._is_stopped

    @should_exit.setter
    def should_exit(self, is_stopped: bool) -> None:
        self._is_stopped = is_stopped
        if is_stopped and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def main_loop(self) -> None:
        """Serve until it is stopped."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(_TICK_OF_DATE):
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._stop.wait()
            except TimeoutError:
                continue
