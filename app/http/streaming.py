"""Server-sent events: how an endless answer is written, kept alive, and ended in order.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

HEARTBEAT_SECONDS = 15.0
_RECONNECT_AFTER_MILLISECONDS = 2000
# How much later than what was passed over a client may be told so: it is read again after a broken connection.
_PLACE_SECONDS = 1.0


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event: its cursor, its kind, and its JSON."""

    id: str
    kind: str
    data: str

    def written(self) -> bytes:
        """As it goes over the wire."""
        return format_sse_event(id=self.id, event=self.kind, data_str=self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one look has brought: what the client wants of it, and the place behind all that was looked at."""

    wanted: Sequence[Message]
    place: str


class EventStream(EventSourceResponse):
    """An answer that goes on until its turns end.

    A turn is sent before the next is asked for, so a slow client slows down its own reading, and nothing piles up.
    Nobody is cancelled when the client hangs up, for that could be in the middle of a query: the turns must see it.
    """

    def __init__(self, start: str, turns: AsyncGenerator[Turn, None]) -> None:
        self._parts = (turns, _written(start, turns))
        # A proxy must hand on at once what it receives.
        super().__init__(self._parts[1], headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; whatever ends it, nothing of the stream is left behind."""
        turns, text = self._parts
        async with aclosing(turns), aclosing(text):
            await self.stream_response(send)


async def _written(start: str, turns: AsyncGenerator[Turn, None]) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream.

    A message without data is not shown to a client, but its id is remembered and sent when it connects again. So it
    tells where the stream begins, and what has been passed over because a filter left it out.
    """
    yield format_sse_event(id=start, retry=_RECONNECT_AFTER_MILLISECONDS)
    clock = asyncio.get_running_loop().time
    told, sent_at = start, clock()
    async for turn in turns:
        silent = clock() - sent_at
        if turn.wanted:
            told = turn.wanted[-1].id
            yield b"".join(message.written() for message in turn.wanted)
        elif turn.place != told and silent >= _PLACE_SECONDS:
            told = turn.place
            yield format_sse_event(id=told)
        elif silent >= HEARTBEAT_SECONDS:
            yield KEEPALIVE_COMMENT
        else:
            continue
        sent_at = clock()


async def until_gone(request: Request, work: Coroutine[Any, Any, T | None]) -> T | None:
    """The outcome of `work`, or None as soon as the client hangs up: nobody would hear the answer."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
