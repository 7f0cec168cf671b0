"""Answers that go on: lines, and server-sent events, which are kept alive and ended in order.

Source of the format of events: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEARTBEAT_SECONDS = 15.0
_RECONNECT_AFTER_MILLISECONDS = 2000
# How long the cursor of a client may lag behind events that its filter leaves out; they are read again after a broken
# connection.
_CURSOR_SECONDS = 1.0


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event: its cursor, its kind, and its JSON."""

    id: str
    kind: str
    data: str

    def encode(self) -> bytes:
        """The event in the format of server-sent events."""
        return format_sse_event(id=self.id, event=self.kind, data_str=self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Result of one read: the messages that the client selects, and the cursor behind everything that was read."""

    messages: Sequence[Message]
    cursor: str


class LineStream(Response):
    """An answer that goes on line by line; the lines have to notice themselves when the client hangs up."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], media_type: str) -> None:
        # As for event streams, a proxy must pass on at once what it receives.
        super().__init__(media_type=media_type, headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; closes the lines however the stream ends."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._rest) as lines:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class EventStream(EventSourceResponse):
    """A response that goes on until its batches end; they have to notice themselves when the client hangs up.

    A batch is sent before the next one is read, so a slow client slows down its own reading, and nothing piles up.
    """

    def __init__(self, start: str, batches: AsyncGenerator[Batch, None]) -> None:
        self._parts: list[AsyncGenerator[Any, None]] = [batches, _encode(start, batches)]
        # A proxy must pass on at once what it receives; the second header says so to nginx.
        super().__init__(self._parts[1], headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    def compress(self, level: int) -> None:
        """Send it compressed by gzip, each message at once."""
        self.headers["Content-Encoding"] = "gzip"
        self.body_iterator = _compress(self._parts[1], level)
        self._parts.append(self.body_iterator)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; closes the batches however the stream ends."""
        # Not the inherited method, which may cancel the stream at a disconnect, in the middle of a query.
        async with AsyncExitStack() as stack:
            for part in self._parts:
                await stack.enter_async_context(aclosing(part))
            await self.stream_response(send)


async def _encode(start: str, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream: events, bare cursors, and comments that keep the connection alive."""
    # A client does not see a message without data, but remembers its id and sends it when it connects again. Such
    # messages tell where the stream begins, and move the cursor over events that the filter leaves out.
    yield format_sse_event(id=start, retry=_RECONNECT_AFTER_MILLISECONDS)
    clock = asyncio.get_running_loop().time
    last_id, sent_at = start, clock()
    async for batch in batches:
        silent = clock() - sent_at
        messages, cursor = batch.messages, batch.cursor
        # Not held while the client takes the text, or the next ones are waited for.
        del batch
        if messages:
            last_id, text = messages[-1].id, b"".join(message.encode() for message in messages)
            del messages
            yield text
            del text
        elif cursor != last_id and silent >= _CURSOR_SECONDS:
            last_id = cursor
            yield format_sse_event(id=last_id)
        elif silent >= HEARTBEAT_SECONDS:
            yield KEEPALIVE_COMMENT
        else:
            continue
        sent_at = clock()


async def _compress(parts: AsyncGenerator[bytes, None], level: int) -> AsyncGenerator[bytes, None]:
    packer = zlib.compressobj(level, wbits=zlib.MAX_WBITS | 16)
    async for part in parts:
        yield packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


async def until_disconnect(
    request: Request, work: Coroutine[Any, Any, T | None], discard: Callable[[T], None] | None = None
) -> T | None:
    """The result of `work`, or None as soon as the client disconnects: nobody would read the answer.

    A result that comes together with that is handed to `discard`.
    """
    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        result = task.result() if task.done() else None
        if discard is None or result is None or not disconnect.done():
            return result
        discard(result)
        return None
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
