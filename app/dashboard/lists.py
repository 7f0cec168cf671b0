"""Pages that are a list of the API each: workers, alerts and decisions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer
from app.dashboard.rendering import page

_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A list of the API, and the query that each choice of its page stands for."""

    path: str
    template: str
    api: str
    choices: Mapping[str, Mapping[str, Any]]

    async def show(self, viewer: Viewer) -> Response:
        """A page of the list. Raises Refused."""
        query = viewer.request.query_params
        choice = query.get("show", "")
        choice = choice if choice in self.choices else next(iter(self.choices))
        answer = await viewer.api.get(self.api, self.choices[choice], after=query.get("after"), limit=_LIMIT)
        here = {"show": choice}
        following = answer.get("next")
        values = {
            "answer": answer,
            "items": answer["items"],
            "choice": choice,
            "choices": [(name, f"{HOME}{self.path}?{urlencode({'show': name})}") for name in self.choices],
            "first": f"{HOME}{self.path}?{urlencode(here)}" if query.get("after") else None,
            "following": f"{HOME}{self.path}?{urlencode(here | {'after': following})}" if following else None,
        }
        return page(viewer, self.template, values)


LISTINGS = (
    Listing(path="/workers", template="workers.html", api="/workers", choices={"live": {}, "all": {"all": True}}),
    Listing(
        path="/alerts",
        template="alerts.html",
        api="/alerts",
        choices={"unresolved": {}, "resolved": {"state": "resolved"}},
    ),
    Listing(
        path="/decisions",
        template="decisions.html",
        api="/scaling/decisions",
        choices={"changes": {"changes": True}, "all": {}},
    ),
)
