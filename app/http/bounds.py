"""Bounds of requests: size of head and body, and the time that an unfinished request may hold a connection."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http import problems

# Far above what any client sends; node.js and nginx stop at 16 and 32 KiB.
MAX_HEAD_BYTES = 1 << 20
# For a whole head, and for each next piece of a body; both wait a minute in node.js and nginx too.
IDLE_SECONDS = 60.0


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with bounds on the bytes of a head and on the time that a request stays unfinished."""

    idle_seconds = IDLE_SECONDS
    _pending = 0
    _in_head = True
    _is_whole = True
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the parser, and refuse a head that it only accumulates."""
        # The parser keeps an unfinished head in memory; the callbacks below reset the count when a part is complete.
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MAX_HEAD_BYTES:
            self.logger.warning("the head of a request is larger than %s bytes", MAX_HEAD_BYTES)
            self.send_400_response("The head of the request is too large.")
        # Most requests are whole when they come; no timer is made for those.
        more_expected = self._pending > 0 or not self._is_whole
        if not (more_expected and self._in_head):
            self._wait_no_longer()
        if more_expected and self._giving_up is None:
            self._wait()

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._in_head, self._is_whole = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._pending, self._in_head = 0, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that part of the body was passed on; trailers that follow count as a head again."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._pending, self._in_head, self._is_whole = 0, True, True
        super().on_message_complete()

    def _wait(self) -> None:
        self._giving_up = self.loop.call_later(self.idle_seconds, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        if self.transport.is_closing():
            return
        # Here the client waits for the service: for room in its memory, or for the answer to the request before.
        if self.flow.read_paused or (self._in_head and not _is_answered(self.cycle)):
            self._wait()
            return
        if self._in_head and (self._pending or not self._is_whole):
            status = HTTPStatus.REQUEST_TIMEOUT
            head = f"HTTP/1.1 {status} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()


def _is_answered(cycle: RequestResponseCycle | None) -> bool:
    """Whether the last request has been answered; true before the first one."""
    return cycle is None or cycle.response_complete


class AddressCheck:
    """Answers 405 to a method that a fixed address does not have, and 400 to an address that is not UTF-8."""

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


class BodyLimit:
    """Answers 413 as a problem: at once when the length is announced, else as soon as too much has arrived."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        content_length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if content_length.isdigit() and int(content_length) > self._max_bytes:
            await problems.from_status(413)(scope, receive, send)
            return
        # The server enforces an announced length itself; only bodies in chunks need to be counted.
        await self._app(scope, receive if content_length else self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        received_bytes = 0

        async def count_received() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise HTTPException(413)
            return message

        return count_received
