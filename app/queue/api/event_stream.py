"""Followers of events: they read page after page and wait in between without holding a connection."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf

from app.db import notify
from app.db.database import Database
from app.http.services import Services
from app.kernel.errors import TooManyRequests
from app.kernel.events import EventKind
from app.queue.errors import CursorAhead
from app.queue.service import cursors
from app.queue.store import events
from app.queue.store.events import BEGINNING, Cursor, Event, EventBatch

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


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A page of events, of one namespace if one is given, after a cursor."""

    cursor: Cursor
    namespace: str | None
    limit: int
    max_bytes: int | None


class EventReaders:
    """Reads pages for all followers of this process, the same one once, with limits on reads and followers of a key."""

    def __init__(self, max_concurrency: int = 3, max_followers: int = 100) -> None:
        # Fewer than the connections of the pool, so that other requests get one meanwhile.
        self.slots = asyncio.Semaphore(max_concurrency)
        self.max_followers = max_followers
        self._followers: Counter[str] = Counter()
        self._queued: dict[PageRequest, asyncio.Task[EventBatch]] = {}
        self._end = BEGINNING

    async def read(self, database: Database, request: PageRequest) -> EventBatch:
        """A page that is read from now on, once for all who ask for it before it is.

        Raises DatabaseUnavailable, CursorAhead.
        """
        task = self._queued.get(request)
        if task is None:
            task = self._queued[request] = asyncio.create_task(self._read(database, request))
            # Where all have hung up, nobody else asks how it ended, and its error would be logged with a traceback.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Whoever hangs up takes the page from nobody else.
        return await asyncio.shield(task)

    async def _read(self, database: Database, request: PageRequest) -> EventBatch:
        async with self.slots:
            # Whoever asks from here on may have heard of events that this read does not see.
            del self._queued[request]
            async with database.reading() as connection:
                batch = await events.read_batch(
                    connection, request.cursor, request.namespace, request.limit, request.max_bytes
                )
                # A horizon may go back for a moment, so this alone is no proof.
                if batch.is_ahead:
                    await cursors.check(connection, request.cursor)
        return batch

    def common_end(self, batch: EventBatch) -> Cursor:
        """The cursor of all that have read everything: those that began apart ask for the same page from there on."""
        self._end = max(batch.next, self._end)
        return self._end if self._end.transaction < batch.complete_until else batch.next

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
        self._start = cursor
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
        readers = self._services[EventReaders]
        request = PageRequest(self._start, self._namespace, limit, max_bytes)
        try:
            batch = await readers.read(self._services.database, request)
        except CursorAhead:
            # After a failover the common end may be ahead where all that the client was given is there.
            if self._start == self.cursor:
                raise
            self._start, self.is_behind = self.cursor, True
            return ()
        # A client is told of the end of what it was given, not of where all read on.
        if batch.next != self._start:
            self.cursor = batch.next
        is_at_end = not batch.items and not batch.has_more
        self._start = readers.common_end(batch) if is_at_end else batch.next
        self.is_behind, self.is_held = batch.has_more, batch.is_held
        return batch.items

    async def wait(self, seconds: float = inf) -> None:
        """Wait for an announcement of events, but no longer than `seconds` or until the next second of the clock."""
        # All followers look at the same moment, so that one read serves them.
        poll_seconds = _POLL_SECONDS - asyncio.get_running_loop().time() % _POLL_SECONDS
        try:
            await asyncio.wait_for(self._wake.wait(), min(seconds, poll_seconds))
            await asyncio.sleep(_BURST_SECONDS)
        except TimeoutError:
            pass
        # Cleared before the next read, which finds everything that was announced until now.
        self._wake.clear()

    def _on_announcement(self, topics: Collection[str]) -> None:
        if notify.EVENTS in topics:
            self._wake.set()
