"""Pages that are a list of the API each, kept up to date: workers, alerts and decisions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer, here
from app.dashboard.feed import CSRF_PLACE, Feeds, Look, NewLook, News, shown
from app.dashboard.rendering import page, present, render
from app.db import notify
from app.http.services import Services
from app.http.streaming import EventStream
from app.kernel.access import Scope
from app.kernel.errors import Forbidden
from app.queue.api.event_stream import EventReaders

_LIMIT = 100
_FEEDS = f"{HOME}/feeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list of the API, the query that each choice of its page stands for, and what it is looked at again for."""

    path: str
    template: str
    api: str
    choices: Mapping[str, Mapping[str, Any]]
    scope: Scope
    topics: frozenset[str]
    idle_seconds: float

    @property
    def feed_path(self) -> str:
        """The address that keeps the list up to date."""
        return f"{_FEEDS}{self.path}"

    async def show(self, viewer: Viewer) -> Response:
        """A page of the list. Raises Refused."""
        query = viewer.request.query_params
        choice = self._choice(query.get("show", ""))
        values = await self._values(viewer, choice, query.get("after"))
        # What is not the newest does not change.
        stream = None if query.get("after") else f"{self.feed_path}?{urlencode({'show': choice})}"
        address = here(viewer.request) if query.get("after") else self._address(choice)
        region = shown(render_list(viewer, self.template, values, address), viewer.csrf)
        return page(viewer, f"{self.template}.html", values | {"stream": stream, "region": region})

    async def stream(self, viewer: Viewer) -> Response:
        """The newest page of the list again whenever it has changed."""
        if viewer.principal.is_confined:
            raise Forbidden("this page is about the whole service; the key belongs to a namespace")
        choice = self._choice(viewer.request.query_params.get("show", ""))
        return follow(
            viewer,
            f"{self.feed_path}?{choice}",
            lambda _: self._look(choice),
            scopes=(self.scope,),
            topics=self.topics,
            idle_seconds=self.idle_seconds,
        )

    def _choice(self, asked: str) -> str:
        return asked if asked in self.choices else next(iter(self.choices))

    def _address(self, choice: str, **place: str) -> str:
        return f"{HOME}{self.path}?{urlencode({'show': choice} | place)}"

    def _look(self, choice: str) -> Look:
        async def look(viewer: Viewer, news: News) -> dict[str, str]:
            values = await self._values(viewer, choice, None)
            return {"list": render_list(viewer, self.template, values, self._address(choice))}

        return look

    async def _values(self, viewer: Viewer, choice: str, after: str | None) -> dict[str, Any]:
        answer = await viewer.api.get(self.api, self.choices[choice], after=after, limit=_LIMIT)
        following = answer.get("next")
        return {
            "answer": answer,
            "items": answer["items"],
            "choice": choice,
            "choices": [(name, self._address(name)) for name in self.choices],
            "first": self._address(choice) if after else None,
            "following": self._address(choice, after=following) if following else None,
        }


def follow(
    viewer: Viewer,
    name: str,
    new_look: NewLook,
    *,
    scopes: Collection[Scope],
    topics: frozenset[str],
    idle_seconds: float,
) -> Response:
    """The stream of a page for those whose keys include all of the scopes. Raises Forbidden, TooManyRequests."""
    services: Services = viewer.request.app.state.services
    if not viewer.may(*scopes):
        raise Forbidden(f"the key of a {viewer.principal.role} may not look at this")
    services[EventReaders].check(viewer.principal.key_id)
    feed = services[Feeds].of(viewer, name, new_look, topics=topics, idle_seconds=idle_seconds)
    return EventStream("0", feed.follow(viewer))


def render_list(viewer: Viewer, template: str, values: Mapping[str, Any], address: str) -> str:
    """The text of a list for all viewers with the same rights, whose forms lead back to this address."""
    context = {"csrf": CSRF_PLACE, "may": viewer.may, "here": address, "at": present()}
    return render(f"lists/{template}.html", context | dict(values))


LISTINGS = (
    Listing(
        path="/workers",
        template="workers",
        api="/workers",
        choices={
            "live": {},
            **{state: {"state": state} for state in ("starting", "ready", "busy", "draining")},
            "failed": {"state": ["failed", "lost"]},
            "all": {"all": True},
        },
        scope=Scope.READ,
        topics=frozenset({notify.FLEET, notify.LAUNCHES, notify.EVENTS}),
        # Heartbeats are not announced.
        idle_seconds=2.0,
    ),
    Listing(
        path="/alerts",
        template="alerts",
        api="/alerts",
        choices={"unresolved": {}, "resolved": {"state": "resolved"}},
        scope=Scope.READ,
        topics=frozenset({notify.STATUS}),
        idle_seconds=5.0,
    ),
    Listing(
        path="/decisions",
        template="decisions",
        api="/scaling/decisions",
        choices={"changes": {"changes": True}, "all": {}},
        scope=Scope.MONITOR,
        topics=frozenset({notify.FLEET, notify.LAUNCHES}),
        idle_seconds=3.0,
    ),
)
