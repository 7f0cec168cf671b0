"""Reading events as they come: a look at a time, with a wait in between that holds no connection."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
from types import TracebackType

from app.db import notify
from app.http.services import Services
from app.queue.rules.events import EventKind
from app.queue.store import events
from app.queue.store.events import Cursor, Event

_LOOK_AGAIN_SECONDS = 1.0
# A burst is read as one page.
_BURST_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events are wanted; without a goal or kinds, all of them."""

    goal_id: str | None = None
    kinds: Collection[EventKind] = ()

    def among(self, found: Sequence[Event]) -> list[Event]:
        """Those of the events that are wanted."""
        return [
            event
            for event in found
            if (self.goal_id is None or event.goal_id == self.goal_id) and (not self.kinds or event.kind in self.kinds)
        ]


class EventReaders:
    """Lets a few requests at a time look for events: those who begin far back read page after page."""

    def __init__(self, at_once: int = 3) -> None:
        # Fewer than the connections that there are, so that others get one meanwhile.
        self.turn = asyncio.Semaphore(at_once)


class Follower:
    """Reads on from a cursor; it hears when something has happened for as long as it is entered."""

    def __init__(self, services: Services, cursor: Cursor) -> None:
        self.cursor = cursor
        self._services = services
        self._rung = asyncio.Event()

    def __enter__(self) -> "Follower":
        self._services.database.announcer.subscribe(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services.database.announcer.unsubscribe(self._hear)

    async def look(self, limit: int) -> Sequence[Event]:
        """The events that follow, up to `limit`; the cursor passes over them. Raises DatabaseUnavailable."""
        async with self._services[EventReaders].turn, self._services.database.transaction() as connection:
            found = await events.read(connection, self.cursor, limit)
        if found:
            self.cursor = found[-1].cursor
        return found

    async def wait(self, seconds: float = inf) -> None:
        """Until something has happened, but no longer than a second or `seconds`."""
        try:
            await asyncio.wait_for(self._rung.wait(), min(seconds, _LOOK_AGAIN_SECONDS))
            await asyncio.sleep(_BURST_SECONDS)
        except TimeoutError:
            pass
        self._rung.clear()

    def _hear(self, topics: Collection[str]) -> None:
        if notify.EVENTS in topics:
            self._rung.set()
