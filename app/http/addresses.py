"""Addresses of requests: UTF-8, of few parameters, and with the method of their own."""

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
    """Answers 405 to a method that a fixed address lacks, 400 to what is not UTF-8 or has too many parameters."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._methods: defaultdict[str, set[str]] = defaultdict(set)
        for route in routes:
            # Fixed addresses only, and before the router, which would take the last part of one for an id.
            if isinstance(route, APIRoute) and not route.param_convertors:
                self._methods[route.path] |= route.methods or set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        methods = self._methods.get(scope["path"]) if scope["type"] == "http" else None
        if methods is None and not _is_readable(scope):
            await problems.from_status(400, "The address is not UTF-8")(scope, receive, send)
        elif scope["type"] == "http" and scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            detail = f"The address has more than {MAX_PARAMETERS} parameters; ask in several requests"
            await problems.from_status(400, detail)(scope, receive, send)
        elif methods is None or scope["method"] in methods:
            await self._app(scope, receive, send)
        else:
            refusal = problems.from_status(405, headers={"Allow": ", ".join(sorted(methods))})
            await refusal(scope, receive, send)


def _is_readable(scope: Scope) -> bool:
    if scope["type"] != "http" or "\ufffd" not in scope["path"]:
        return True
    # The server puts U+FFFD for bytes that it cannot decode, so different ids would become one. A client may also send
    # that very character, so the raw bytes decide.
    try:
        unquote_to_bytes(scope["raw_path"]).decode()
    except UnicodeDecodeError:
        return False
    return True
