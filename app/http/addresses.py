"""Addresses of requests: in UTF-8, with few parameters, and with the methods that they have."""

import re
from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http import problems

# Each is read and checked in the loop.
MAX_PARAMETERS = 500


class AddressCheck:
    """Answers 405 to a method that a fixed address lacks, 400 to what is not UTF-8 or has too many parameters.

    And 404 to an address with a line end too many, which the router would pass over.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._methods: defaultdict[str, set[str]] = defaultdict(set)
        self._patterns: list[re.Pattern[str]] = []
        for route in routes:
            if not isinstance(route, APIRoute):
                continue
            # Fixed addresses only, and before the router, which would take the last part of one for an id.
            if not route.param_convertors:
                self._methods[route.path] |= route.methods or set()
            self._patterns.append(route.path_regex)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        methods = self._methods.get(scope["path"])
        if methods is None and not is_readable(scope):
            await problems.from_status(400, "The address is not UTF-8")(scope, receive, send)
        elif scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            detail = f"The address has more than {MAX_PARAMETERS} parameters; ask in several requests"
            await problems.from_status(400, detail)(scope, receive, send)
        elif scope["path"].endswith("\n") and not self._has(scope["path"]):
            await problems.from_status(404)(scope, receive, send)
        elif methods is None or scope["method"] in methods:
            await self._app(scope, receive, send)
        else:
            refusal = problems.from_status(405, headers={"Allow": ", ".join(sorted(methods))})
            await refusal(scope, receive, send)

    def _has(self, path: str) -> bool:
        """Whether a route has the address to its end: the id of a goal may end in a line end, which `$` lets follow."""
        return any(pattern.fullmatch(path) for pattern in self._patterns)


def is_readable(scope: Scope) -> bool:
    """Whether an address is UTF-8."""
    if "\ufffd" not in scope["path"]:
        return True
    # The server puts U+FFFD for bytes that it cannot decode, so different ids would become one. A client may also send
    # that very character, so the raw bytes decide.
    try:
        unquote_to_bytes(scope["raw_path"]).decode()
    except UnicodeDecodeError:
        return False
    return True
