"""Followers of events: they read page after page and wait in between without holding a connection."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf

from app.db import notify
from app.http.services import Services
from app.kernel.errors import TooManyRequests
from app.kernel.events import EventKind
from app.queue.service import cursors
from app.queue.store import events
from app.queue.store.events import Cursor, Event

_POLL_SECONDS = 1.0
# Announcements of one burst of events are waited for, so that it is read as one page.
_BURST_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """A selection of events by namespace, goal (by its stored name), kinds and age; an empty one selects all."""

    namespace: str | None = None
    goal_id: str | None = None
    kinds: Collection[EventKind] = ()
    since: datetime | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether it may leave out events of those that are read."""
        return bool(self.goal_id is not None or self.kinds or self.since)

    def select(self, events: Sequence[Event]) -> list[Event]:
        """The events that match."""
        return [
            event
            for event in events
            if (self.goal_id is None or event.goal_id == self.goal_id)
            and (not self.kinds or event.kind in self.kinds)
            and (self.since is None or event.at >= self.since)
        ]


class EventReaders:
    """Limits on concurrent reads of events, and on the followers of a key: each of them reads every second."""

    def __init__(self, max_concurrency: int = 3, max_followers: int = 100) -> None:
        # Fewer than the connections of the pool, so that other requests get one meanwhile.
        self.slots = asyncio.Semaphore(max_concurrency)
        self.max_followers = max_followers
        self._followers: Counter[str] = Counter()

    def check(self, key_id: str) -> None:
        """Refuse another follower of a key that has enough. Raises TooManyRequests."""
        if self._followers[key_id] >= self.max_followers:
            raise TooManyRequests

    def add(self, key_id: str) -> None:
        """Count a follower. Raises TooManyRequests."""
        self.check(key_id)
        self._followers[key_id] += 1

    def remove(self, key_id: str) -> None:
        """Count a follower no longer."""
        self._followers[key_id] -= 1
        if not self._followers[key_id]:
            del self._followers[key_id]


class Follower:
    """A reader of the events after a cursor; inside its `with` block it is woken by announcements."""

    def __init__(self, services: Services, key_id: str, cursor: Cursor, namespace: str | None) -> None:
        self.cursor = cursor
        self.is_behind = True
        self.is_held = False
        self._namespace = namespace
        self._services = services
        self._key_id = key_id
        self._wake = asyncio.Event()

    def __enter__(self) -> "Follower":
        """Raises TooManyRequests."""
        self._services[EventReaders].add(self._key_id)
        self._services.database.announcer.subscribe(self._on_announcement)
        return self

    def __exit__(self, *exception: object) -> None:
        self._services[EventReaders].remove(self._key_id)
        self._services.database.announcer.unsubscribe(self._on_announcement)

    async def read_page(self, limit: int, max_bytes: int | None = None) -> Sequence[Event]:
        """Read up to `limit` of the next events, as far as `max_bytes` hold them, and move the cursor behind them.

        Raises DatabaseUnavailable, CursorAhead.
        """
        async with self._services[EventReaders].slots, self._services.database.reading() as connection:
            batch = await events.read_batch(connection, self.cursor, self._namespace, limit, max_bytes)
            # A horizon may go back for a moment, so this alone is no proof.
            if batch.is_ahead:
                await cursors.check(connection, self.cursor)
        self.cursor, self.is_behind, self.is_held = batch.next, batch.has_more, batch.is_held
        return batch.items

    async def wait(self, seconds: float = inf) -> None:
        """Wait for an announcement of events, but no longer than a second or `seconds`."""
        try:
            await asyncio.wait_for(self._wake.wait(), min(seconds, _POLL_SECONDS))
            await asyncio.sleep(_BURST_SECONDS)
        except TimeoutError:
            pass
        # Cleared before the next read, which finds everything that was announced until now.
        self._wake.clear()

    def _on_announcement(self, topics: Collection[str]) -> None:
        if notify.EVENTS in topics:
            self._wake.set()
