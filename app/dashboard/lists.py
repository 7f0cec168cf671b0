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
    # Parameters of the API that its page takes, too.
    filters: tuple[str, ...] = ()

    @property
    def feed_path(self) -> str:
        """The address that keeps the list up to date."""
        return f"{_FEEDS}{self.path}"

    async def show(self, viewer: Viewer) -> Response:
        """A page of the list. Raises Refused."""
        query = viewer.request.query_params
        chosen = self._chosen(query)
        values = await self._values(viewer, chosen, query.get("after"))
        # What is not the newest does not change.
        stream = None if query.get("after") else f"{self.feed_path}?{urlencode(chosen)}"
        address = here(viewer.request) if query.get("after") else self._address(chosen)
        region = shown(render_list(viewer, self.template, values, address), viewer.csrf)
        return page(viewer, f"{self.template}.html", values | {"stream": stream, "region": region})

    async def stream(self, viewer: Viewer) -> Response:
        """The newest page of the list again whenever it has changed."""
        if viewer.principal.is_confined:
            raise Forbidden("this page is about the whole service; the key belongs to a namespace")
        chosen = self._chosen(viewer.request.query_params)
        return follow(
            viewer,
            f"{self.feed_path}?{urlencode(chosen)}",
            lambda _: self._look(chosen),
            scopes=(self.scope,),
            topics=self.topics,
            idle_seconds=self.idle_seconds,
        )

    def _chosen(self, query: Mapping[str, str]) -> dict[str, str]:
        asked = query.get("show", "")
        show = asked if asked in self.choices else next(iter(self.choices))
        return {"show": show} | {name: query[name] for name in self.filters if query.get(name)}

    def _address(self, chosen: Mapping[str, str], **place: str) -> str:
        return f"{HOME}{self.path}?{urlencode({**chosen, **place})}"

    def _look(self, chosen: Mapping[str, str]) -> Look:
        async def look(viewer: Viewer, news: News) -> dict[str, str]:
            values = await self._values(viewer, chosen, None)
            return {"list": render_list(viewer, self.template, values, self._address(chosen))}

        return look

    async def _values(self, viewer: Viewer, chosen: Mapping[str, str], after: str | None) -> dict[str, Any]:
        filters = {name: chosen[name] for name in self.filters if name in chosen}
        query = {**self.choices[chosen["show"]], **filters}
        answer = await viewer.api.get(self.api, query, after=after, limit=_LIMIT)
        following = answer.get("next")
        return {
            "answer": answer,
            "items": answer["items"],
            "chosen": chosen,
            "choice": chosen["show"],
            "choices": [(name, self._address(chosen, show=name)) for name in self.choices],
            "first": self._address(chosen) if after else None,
            "following": self._address(chosen, after=following) if following else None,
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
        filters=("name",),
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
