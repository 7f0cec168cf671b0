"""An address that is written out in a route is that route's alone, also where an `/{id}` beside it would take it."""

from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems


class WrittenOut:
    """Answers 405 to methods that an address does not have, before the router tries it as the id of something.

    And 400 to an address that is not UTF-8: the server replaces what it cannot read, so that many would be one.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._methods: defaultdict[str, set[str]] = defaultdict(set)
        for route in routes:
            if isinstance(route, APIRoute) and not route.param_convertors:
                self._methods[route.path] |= route.methods or set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        methods = self._methods.get(scope["path"]) if scope["type"] == "http" else None
        if methods is None and not _is_readable(scope):
            await problems.from_status(400, "The address is not UTF-8")(scope, receive, send)
        elif methods is None or scope["method"] in methods:
            await self._app(scope, receive, send)
        else:
            refusal = problems.from_status(405, headers={"Allow": ", ".join(sorted(methods))})
            await refusal(scope, receive, send)


def _is_readable(scope: Scope) -> bool:
    if scope["type"] != "http" or "\ufffd" not in scope["path"]:
        return True
    try:
        unquote_to_bytes(scope["raw_path"]).decode()
    except UnicodeDecodeError:
        return False
    return True
