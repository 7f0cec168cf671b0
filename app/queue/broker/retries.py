"""Calls of the broker beside its claims, which must neither wait for them nor fail with them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from app.kernel.errors import DatabaseUnavailable
from app.kernel.ids import WorkerId

# Seconds until another try; longer than a restart of the database takes.
_PAUSES = (0.1, 0.3, 1, 3, 10, 30, 60)
_FINISH_SECONDS = 1.0

log = logging.getLogger(__name__)


class Retries:
    """Calls that are tried again until they succeed, a limited number of times."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, attempt: Callable[[], Awaitable[bool]], purpose: str, worker_ids: Collection[WorkerId]) -> None:
        """Try until `attempt` returns True; the purpose and the workers are for the log."""
        task = asyncio.create_task(_keep_trying(attempt, purpose, worker_ids))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait a moment for the calls that are under way."""
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=_FINISH_SECONDS)
            for task in unfinished:
                task.cancel()


async def _keep_trying(attempt: Callable[[], Awaitable[bool]], purpose: str, worker_ids: Collection[WorkerId]) -> None:
    for pause in _PAUSES:
        try:
            if await attempt():
                return
        except DatabaseUnavailable:
            pass
        except Exception:
            log.exception("could not %s, trying again", purpose)
        await asyncio.sleep(pause)
    log.warning("gave up to %s of %s", purpose, ", ".join(map(str, worker_ids)))
