"""Regions of pages, looked at once for all who look at them, only while somebody does, and for little of the time."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from app.dashboard.access import Viewer
from app.dashboard.api_calls import Refused
from app.dashboard.assets import edition
from app.http.callers import Authenticator
from app.http.services import Services
from app.http.streaming import Batch, Message
from app.kernel.errors import ConvenerError, TooManyRequests
from app.queue.api.event_stream import EventReaders

log = logging.getLogger(__name__)
# From the beginning of a look to the next one where much happens.
_SHORT_SECONDS = 0.2
# Between two looks at whether a viewer is still there and may look on.
_CHECK_SECONDS = 1.0
# Between two signs of life, by which a page knows that what it shows is not old.
_ALIVE_SECONDS = 5.0
# Looks of all feeds at once.
_MAX_LOOKS = 2
# Feeds that are kept though nobody may follow them.
_MAX_KEPT = 100
# In the regions, which viewers share, in place of the word of the forms of each.
CSRF_PLACE = "csrf-of-the-viewer"
# Ages go on by themselves in the browser: a region of which only these have changed is not sent again.
_AGE = re.compile(r'(<span class="age"[^>]*>)[^<]*')
# Topics that were announced since the last look; all of them at the first, which is None.
News = Collection[str] | None
Look = Callable[[Viewer, News], Awaitable[Mapping[str, str]]]
_MAX_PAUSE_SECONDS = 5.0


def shown(html: str, csrf: str) -> str:
    """A region as a viewer gets it, with a mark that is the same while nothing but ages differs.

    A page names its marks when it connects, so that what it shows is not sent again.
    """
    return _marked(html, _mark_of(html)).replace(CSRF_PLACE, csrf)


def _marked(html: str, mark: str) -> str:
    return f'{html}<i hidden data-mark="{mark}"></i>' if html.strip() else html


def _mark_of(html: str) -> str:
    return hashlib.sha256(_AGE.sub(r"\1", html).encode()).hexdigest()[:16]


def _marks_in(request: Request) -> dict[str, str]:
    """The marks of the regions that a page shows; none where the same connection has begun anew after other changes."""
    if "last-event-id" in request.headers:
        return {}
    marks = (text.partition(":") for text in request.query_params.getlist("mark"))
    return {name: mark for name, _, mark in marks}


@dataclass(slots=True, kw_only=True)
class Budget:
    """Time that looks may take: a share of all time in the long run, and some of it at once; a pause has a longest.

    So a change is seen at once, and what changes all the time is looked at the more seldom the more it costs.
    """

    share: float = 1 / 150
    at_once_seconds: float = 1.1
    longest_seconds: float = float("inf")
    _debt: float = 0.0
    _at: float | None = None
    _exempt: float = 0.0

    def exempt(self, seconds: float) -> None:
        """Leave so many seconds out of the cost of this look: another budget bounds them."""
        self._exempt += seconds

    def pause(self, cost: float, now: float) -> float:
        """Seconds until the next look may begin, after one that has taken so many."""
        earned = 0.0 if self._at is None else (now - self._at) * self.share
        cost, self._exempt = max(0.0, cost - self._exempt), 0.0
        # No more is owed than the longest pause makes good, or looks that were dear once would come seldom for long.
        largest_debt = self.at_once_seconds + self.share * self.longest_seconds
        self._debt, self._at = min(largest_debt, max(0.0, self._debt - earned) + cost), now
        return max(0.0, (self._debt - self.at_once_seconds) / self.share)


@dataclass(slots=True)
class Stopwatch:
    """Time since it was made, in seconds: of the clock, and what our process and PostgreSQL have worked meanwhile."""

    _began_at: float = field(default_factory=time.monotonic)
    _used: float = field(default_factory=time.process_time)

    @property
    def elapsed(self) -> float:
        """Seconds by the clock."""
        return time.monotonic() - self._began_at

    @property
    def cost(self) -> float:
        """Seconds of work at most: on a busy machine most of it is waiting, and PostgreSQL takes less than we do."""
        return min(self.elapsed, 2 * (time.process_time() - self._used))


# Makes the look of a feed, whose looks have this budget.
NewLook = Callable[[Budget], Look]


class Feed:
    """Regions as viewers with the same rights see them."""

    def __init__(
        self,
        services: Services,
        new_look: NewLook,
        *,
        topics: Collection[str],
        idle_seconds: float,
        slots: asyncio.Semaphore,
    ) -> None:
        """It looks again once one of the topics is announced, and after so long without any."""
        self._budget = Budget(longest_seconds=_MAX_PAUSE_SECONDS)
        self._services, self._look, self._slots = services, new_look(self._budget), slots
        self._topics, self._idle_seconds = frozenset(topics), idle_seconds
        self._viewers: list[Viewer] = []
        # Version, mark and text of each, once for all viewers.
        self._regions: dict[str, tuple[int, str, str]] = {}
        self._version = 0
        # Whether the last look has come to its end: of one that fails or hangs, pages show what was before.
        self._is_current = False
        self._changed = asyncio.Condition()
        self._news: set[str] | None = None
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_followed(self) -> bool:
        """Whether anybody looks."""
        return bool(self._viewers)

    async def follow(self, viewer: Viewer) -> AsyncGenerator[Batch, None]:
        """Yield the regions that have changed, and at least every second, until one side closes or the session ends."""
        key_id, version, marks = viewer.principal.key_id, 0, _marks_in(viewer.request)
        # Somebody else may have begun since this viewer was let in, who is refused at the next try.
        with suppress(TooManyRequests):
            self._services[EventReaders].add(key_id)
            try:
                self._join(viewer)
                checked_at = alive_at = float("-inf")
                while not self._services.stopping:
                    if time.monotonic() - checked_at >= _CHECK_SECONDS:
                        if not await self._may_continue(viewer):
                            break
                        checked_at = time.monotonic()
                    messages = [
                        Message(id=str(number), kind=name, data=html.replace(CSRF_PLACE, viewer.csrf))
                        for name, (number, mark, html) in sorted(self._regions.items(), key=lambda item: item[1][0])
                        if number > version and marks.pop(name, None) != mark
                    ]
                    version = self._version
                    if self._is_current and time.monotonic() - alive_at >= _ALIVE_SECONDS:
                        messages.append(Message(id=str(version), kind="alive", data=edition()))
                        alive_at = time.monotonic()
                    yield Batch(messages=messages, cursor=str(version))
                    await self._wait(version)
            finally:
                self._leave(viewer)
                self._services[EventReaders].remove(key_id)

    async def _may_continue(self, viewer: Viewer) -> bool:
        if await viewer.request.is_disconnected():
            return False
        try:
            principal = await self._services[Authenticator].recognise(viewer.session)
        except ConvenerError:
            return False
        # A key of `default` is confined by the first one of another namespace: its page is another one then.
        return replace(viewer, principal=principal).rights == viewer.rights

    async def _wait(self, version: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._version > version or self._services.stopping)

    def _join(self, viewer: Viewer) -> None:
        self._viewers.append(viewer)
        if self._looking is None:
            self._news = None
            self._services.database.announcer.subscribe(self._hear)
            self._looking = asyncio.create_task(self._keep_looking(), name="dashboard")

    def _leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)
        if not self._viewers and self._looking is not None:
            self._services.database.announcer.unsubscribe(self._hear)
            # Not cancelled, which might be in the middle of a query: it ends by itself after this look.
            self._looking = None
            self._regions = {}
            self._wake.set()

    async def _keep_looking(self) -> None:
        task = self._looking
        while self._looking is task and not self._services.stopping:
            self._is_current = False
            async with self._slots:
                self._wake.clear()
                news, self._news = self._news, set()
                watch = Stopwatch()
                try:
                    await self._read(news)
                    self._is_current = True
                except Refused:
                    pass  # for want of the database, or of the viewer that it was read for, whose stream finds that out
                except Exception:
                    log.exception("the dashboard could not be looked at")
                took = watch.elapsed
            pause = self._budget.pause(watch.cost, time.monotonic())
            await asyncio.sleep(max(_SHORT_SECONDS - took, pause))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._idle_seconds)

    async def _read(self, news: News) -> None:
        if not self._viewers:
            return
        viewer = self._viewers[-1]
        regions = await self._look(replace(viewer, api=viewer.api.repeating()), news)
        marks = {name: _mark_of(html) for name, html in regions.items()}
        changes = [name for name in regions if name not in self._regions or self._regions[name][1] != marks[name]]
        if changes:
            async with self._changed:
                self._version += 1
                for name in changes:
                    self._regions[name] = (self._version, marks[name], _marked(regions[name], marks[name]))
                self._changed.notify_all()

    def _hear(self, topics: Collection[str]) -> None:
        if heard := self._topics.intersection(topics):
            if self._news is not None:
                self._news |= heard
            self._wake.set()


class Feeds:
    """The feed of each page for each set of rights."""

    def __init__(self) -> None:
        self._feeds: dict[Hashable, Feed] = {}
        self._slots = asyncio.Semaphore(_MAX_LOOKS)

    def of(
        self,
        viewer: Viewer,
        page: Hashable,
        new_look: NewLook,
        *,
        topics: Collection[str],
        idle_seconds: float,
    ) -> Feed:
        """The feed of a page that a viewer shares with all whose keys may see and do the same."""
        # There are as many pages as people make up filters: those that nobody looks at any more are not kept for ever.
        if len(self._feeds) >= _MAX_KEPT:
            self._feeds = {key: feed for key, feed in self._feeds.items() if feed.is_followed}
        key = (page, viewer.rights)
        if key not in self._feeds:
            services = viewer.request.app.state.services
            self._feeds[key] = Feed(services, new_look, topics=topics, idle_seconds=idle_seconds, slots=self._slots)
        return self._feeds[key]
