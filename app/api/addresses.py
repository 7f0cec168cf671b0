"""An address that is written out in a route is that route's alone, also where an `/{id}` beside it would take it."""

from collections import defaultdict
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems


class WrittenOut:
    """Answers 405 to methods that an address does not have, before the router tries it as the id of something."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._methods: defaultdict[str, set[str]] = defaultdict(set)
        for route in routes:
            if isinstance(route, APIRoute) and not route.param_convertors:
                self._methods[route.path] |= route.methods or set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        methods = self._methods.get(scope["path"]) if scope["type"] == "http" else None
        if methods is None or scope["method"] in methods:
            await self._app(scope, receive, send)
        else:
            refusal = problems.from_status(405, headers={"Allow": ", ".join(sorted(methods))})
            await refusal(scope, receive, send)
