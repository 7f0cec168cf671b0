"""The regions of the first page, looked at once for all who look at them, and only while somebody does."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Hashable
from contextlib import suppress

from app.dashboard.access import Viewer
from app.dashboard.api_calls import Refused
from app.db import notify
from app.http.callers import Authenticator
from app.http.services import Services
from app.http.streaming import Batch, Message
from app.kernel.errors import ConvenerError, TooManyRequests
from app.queue.api.event_stream import EventReaders

log = logging.getLogger(__name__)
# Between two looks while much happens, and while nothing does.
_SHORT_SECONDS, _LONG_SECONDS = 0.25, 1.0
_TOPICS = frozenset({notify.EVENTS, notify.FLEET, notify.CONFIG, notify.WEIGHTS, notify.GOALS})
# In the regions, which viewers share, in place of the word of the forms of each.
CSRF_PLACE = "csrf-of-the-viewer"
Look = Callable[[Viewer], Awaitable[dict[str, str]]]


class Feed:
    """Regions as viewers with the same rights see them."""

    def __init__(self, services: Services, look: Look) -> None:
        self._services, self._look = services, look
        self._viewers: list[Viewer] = []
        self._regions: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._changed = asyncio.Condition()
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def follow(self, viewer: Viewer) -> AsyncGenerator[Batch, None]:
        """Yield the regions that have changed, and at least every second, until one side closes or the session ends."""
        key_id, version = viewer.principal.key_id, 0
        # Somebody else may have begun since this viewer was let in, who is refused at the next try.
        with suppress(TooManyRequests):
            self._services[EventReaders].add(key_id)
            try:
                self._join(viewer)
                while await self._may_continue(viewer):
                    messages = [
                        Message(id=str(number), kind=name, data=html.replace(CSRF_PLACE, viewer.csrf))
                        for name, (number, html) in sorted(self._regions.items(), key=lambda item: item[1][0])
                        if number > version
                    ]
                    version = self._version
                    yield Batch(messages=messages, cursor=str(version))
                    await self._wait(version)
            finally:
                self._leave(viewer)
                self._services[EventReaders].remove(key_id)

    async def _may_continue(self, viewer: Viewer) -> bool:
        if self._services.stopping or await viewer.request.is_disconnected():
            return False
        try:
            await self._services[Authenticator].recognise(viewer.session)
        except ConvenerError:
            return False
        return True

    async def _wait(self, version: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONG_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._version > version or self._services.stopping)

    def _join(self, viewer: Viewer) -> None:
        self._viewers.append(viewer)
        if self._looking is None:
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
            self._news.set()

    async def _keep_looking(self) -> None:
        task = self._looking
        while self._looking is task and not self._services.stopping:
            self._news.clear()
            began_at = time.monotonic()
            try:
                await self._read()
            except Refused:
                pass  # of the viewer that it was read for, whose own stream finds that out
            except Exception:
                log.exception("the dashboard could not be looked at")
            await asyncio.sleep(max(0.0, _SHORT_SECONDS - (time.monotonic() - began_at)))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _LONG_SECONDS - _SHORT_SECONDS)

    async def _read(self) -> None:
        regions = await self._look(self._viewers[-1])
        changes = {name: html for name, html in regions.items() if self._regions.get(name, (0, ""))[1] != html}
        if changes:
            async with self._changed:
                self._version += 1
                self._regions |= {name: (self._version, html) for name, html in changes.items()}
                self._changed.notify_all()

    def _hear(self, topics: Collection[str]) -> None:
        if not _TOPICS.isdisjoint(topics):
            self._news.set()


class Feeds:
    """The feed of each set of rights."""

    def __init__(self) -> None:
        self._by_rights: dict[Hashable, Feed] = {}

    def of(self, viewer: Viewer, new_look: Callable[[], Look]) -> Feed:
        """The feed that a viewer shares with all whose keys may see and do the same."""
        principal = viewer.principal
        rights = (principal.role, principal.withheld, principal.namespace, principal.is_confined)
        if rights not in self._by_rights:
            self._by_rights[rights] = Feed(viewer.request.app.state.services, new_look())
        return self._by_rights[rights]
