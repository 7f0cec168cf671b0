"""The ASGI application of a relay: joins the frequent calls of workers, and passes on all others."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from app.http.security import names_one_host
from app.relay import calls
from app.relay.calls import Answer, Item, Operation, problem, read_item, read_operation, shutting_down
from app.relay.exchange import Exchange, ExchangePolicy, Refused
from app.relay.passing import AnswerBroken, PassThrough, send_answer
from app.relay.upstream import Upstream

log = logging.getLogger(__name__)
_PATH = b"/leases/exchange"
_JSON = (b"content-type", b"application/json")
_MAX_REFUSAL_BYTES = 64 << 10


class Gateway:
    """One per process."""

    def __init__(self, upstream: Upstream, policy: ExchangePolicy) -> None:
        self._upstream = upstream
        self._passing = PassThrough(upstream)
        self.exchange = Exchange(self._send, policy, upstream.outage)
        self.is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        try:
            await self._serve(scope, receive, send)
        except AnswerBroken as error:
            # The server hangs up on an answer without an end.
            log.warning("an answer broke off: %s", error)

    async def stop(self, seconds: float) -> None:
        """Refuse new requests, answer leases that wait, and give other calls some seconds to end."""
        self.is_stopping = True
        await self.exchange.stop(seconds)
        self._upstream.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.is_stopping:
            await send_answer(send, shutting_down(), must_close=True)
        elif not names_one_host(scope):
            refusal = problem(400, "malformed_request", "a request has one Host header")
            await send_answer(send, refusal, must_close=True)
        elif scope["path"] == "/livez" and scope["method"] == "GET":
            await send_answer(send, Answer(200, b'{"status":"alive"}'))
        elif scope["method"] == "POST" and (operation := read_operation(scope["path"])) is not None:
            await self._join(operation, scope, receive, send)
        else:
            await self._passing.serve(scope, receive, send)

    async def _join(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> None:
        authorization = _authorization(scope["headers"])
        if authorization is None or scope["query_string"] or not self.exchange.is_usable:
            await self._passing.serve(scope, receive, send)
            return
        body, is_whole = await _read_body(receive)
        item = read_item(operation, authorization, body, asyncio.get_running_loop().time()) if is_whole else None
        if authorization in self.exchange.admitted_keys:
            # By this the server keeps the connection where strangers open many.
            scope["state"]["principal"] = True
        answer = None if item is None else await self._answer(item, receive)
        if answer is not None:
            await send_answer(send, answer)
        elif item is None or not item.is_abandoned:
            await self._passing.serve(scope, receive, send, body, is_whole)

    async def _answer(self, item: Item, receive: Receive) -> Answer | None:
        """The answer of the exchange; None where the call was given up, or has to go by the plain route."""
        if self.exchange.is_full:
            return problem(503, "relay_busy", "too many calls are under way here", "1")
        self.exchange.submit(item)
        try:
            # Watching a connection costs more than most calls; only a wait is long enough for the worker to hang up.
            if item.wait_seconds:
                watching = asyncio.ensure_future(receive())
                await asyncio.wait((item.answer, watching), return_when=asyncio.FIRST_COMPLETED)
                watching.cancel()
                if not item.answer.done():
                    self.exchange.abandon(item)
                    return None
            return await item.answer
        finally:
            self.exchange.forget(item)

    @asynccontextmanager
    async def _send(self, key: bytes, body: bytes) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Send an exchange. Raises Refused, Away, Crowded."""
        async with self._upstream.connection() as connection:
            length = (b"content-length", b"%d" % len(body))
            headers = [(b"host", self._upstream.host), (b"authorization", key), _JSON, length]
            connection.send_head(self._upstream.target("POST", _PATH), headers)
            await connection.send_body(body)
            connection.end_body()
            await connection.read_head()
            if connection.status == 200:
                yield connection.read_lines()
                return
            text = b""
            while (piece := await connection.read()) and len(text) < _MAX_REFUSAL_BYTES:
                text += piece
            raise Refused(Answer(connection.status, text, _retry_after(connection.headers)))


async def _read_body(receive: Receive) -> tuple[bytes, bool]:
    """A body up to the length that is joined with others, and whether that is all of it."""
    body = b""
    while len(body) <= calls.MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body, False
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body, len(body) <= calls.MAX_BODY_BYTES
    return body, False


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one key of a request; None where there is none, or where its body is not plain JSON."""
    keys = []
    for name, value in headers:
        if name == b"authorization":
            keys.append(value)
        elif name == b"content-encoding":
            return None
    return keys[0] if len(keys) == 1 else None


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    return next((value.decode("latin-1") for name, value in headers if name == b"retry-after"), None)
