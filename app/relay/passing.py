"""Requests that are not joined, passed through the relay one by one, as they come and within bounds."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from app.http.security import SECURE_HEADERS
from app.relay.calls import Answer, problem
from app.relay.upstream import Away, Connection, Crowded, Headers, Upstream

log = logging.getLogger(__name__)
# The control plane refuses much shorter ones, with a better reason.
MAX_BODY_BYTES = 64 << 20
# Of one connection (RFC 9110, 7.6.1), and what only the server on this side may say of its client.
_NOT_PASSED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect host x-forwarded-for x-forwarded-proto x-forwarded-host forwarded".split()
)


class TooLong(Exception):
    """The body of a request is longer than anybody takes."""


class AnswerBroken(Exception):
    """The control plane hung up in the middle of an answer, which nobody may take for a whole one."""


class PassThrough:
    """Passes single requests to the control plane, and its answers back."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, begun: bytes = b"", is_whole: bool = False
    ) -> None:
        """Pass a request whose body has `begun` already, or was read whole."""
        sender = _Sender(send)
        try:
            headers, is_chunked = _request_headers(scope["headers"], self._upstream.host)
            target = self._upstream.target(scope["method"], scope["raw_path"], scope["query_string"])
            async with self._upstream.connection() as connection:
                connection.send_head(target, headers)
                pump = asyncio.create_task(_send_body(connection, receive, begun, is_whole, is_chunked))
                try:
                    await _pass_answer(connection, pump, sender)
                finally:
                    pump.cancel()
                    with suppress(asyncio.CancelledError, Away, TooLong):
                        await pump
        except TooLong:
            detail = f"the body is longer than {MAX_BODY_BYTES >> 20} MiB"
            await sender.refuse(problem(413, "body_too_large", detail))
        except Crowded:
            await sender.refuse(problem(503, "relay_busy", "the relay has no connection left", "1"))
        except Away as error:
            await sender.refuse(problem(502, "control_plane_away", str(error)))


class _Sender:
    """Sends the answer to one request, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def start(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def add(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def refuse(self, answer: Answer) -> None:
        """Answer instead of the control plane. Raises AnswerBroken where its own has begun."""
        if self.has_begun:
            raise AnswerBroken(answer.body.decode())
        await send_answer(self._send, answer)


async def send_answer(send: Send, answer: Answer, *, must_close: bool = False) -> None:
    """Send a whole answer with the headers that the control plane's own have."""
    status, body, retry_after = answer
    headers = list(SECURE_HEADERS)
    if status != 204:
        kind = b"application/json" if status < 400 else b"application/problem+json"
        headers += [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if retry_after is not None:
        headers.append((b"retry-after", retry_after.encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if must_close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_body(connection: Connection, receive: Receive, begun: bytes, is_whole: bool, is_chunked: bool) -> None:
    """Send the body as it comes; then hang up when the client does. Raises TooLong, Away."""
    size, piece = 0, begun
    while True:
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise TooLong
        if piece:
            await connection.send_body(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
        if is_whole:
            break
        message = await receive()
        if message["type"] == "http.disconnect":
            connection.close()
            return
        piece, is_whole = message.get("body", b""), not message.get("more_body", False)
    if is_chunked:
        await connection.send_body(b"0\r\n\r\n")
    connection.end_body()
    while (await receive())["type"] != "http.disconnect":
        pass
    connection.close()


async def _pass_answer(connection: Connection, pump: "asyncio.Task[None]", sender: _Sender) -> None:
    head = asyncio.ensure_future(connection.read_head())
    try:
        # A body that cannot be passed on ends it, but not one of which the control plane does not want the rest.
        await asyncio.wait((head, pump), return_when=asyncio.FIRST_COMPLETED)
        if not head.done() and pump.done() and pump.exception() is not None and not connection.has_answer:
            await pump
        await head
    finally:
        head.cancel()
    await sender.start(connection.status, _answer_headers(connection.headers))
    while piece := await connection.read():
        await sender.add(piece, more=True)
    await sender.add(b"", more=False)


def _request_headers(headers: Iterable[tuple[bytes, bytes]], host: bytes) -> tuple[Headers, bool]:
    """The headers to send on, and whether the body goes in chunks. Raises TooLong."""
    # Where the body ends is said here, also where `Connection` names its length: a body without one is a request.
    dropped, lengths, is_chunked = _dropped(headers) | {b"content-length"}, [], False
    passed = [(b"host", host)]
    for name, value in headers:
        if name == b"content-length":
            if int(value) > MAX_BODY_BYTES:
                raise TooLong
            lengths.append((name, value))
        if name == b"transfer-encoding":
            is_chunked = True
        if name not in dropped:
            passed.append((name, value))
    return passed + ([(b"transfer-encoding", b"chunked")] if is_chunked else lengths), is_chunked


def _answer_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    dropped = _dropped(headers)
    # The server on this side writes its own date.
    return [(name, value) for name, value in headers if name not in dropped and name != b"date"]


def _dropped(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    named = [value for name, value in headers if name == b"connection"]
    if not named:
        return _NOT_PASSED
    return _NOT_PASSED | {word.strip().lower() for value in named for word in value.split(b",")}
