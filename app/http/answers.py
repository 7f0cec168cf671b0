"""Answers that are whole at once go to the client in one write: a second one costs a twelfth of a request.

Those of the calls that come thousands of times a second are handed over as bodies, and their heads are made once a
second.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.http.security import SECURE_HEADERS

# The extension of ASGI, and the type of its message, by which a usual answer of JSON is handed over as its body.
JSON_BODY = "convener.json"
_USUAL_HEADERS = b"".join(b"%b: %b\r\n" % line for line in [(b"content-type", b"application/json"), *SECURE_HEADERS])
# As uvicorn has them, for all headers of an answer together.
_BAD_NAMES = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')
_BAD_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = b"content-length"


class JoinedAnswer(RequestResponseCycle):
    """uvicorn's request with its answer, whose head waits for the body where its length is known by then."""

    _head: Message | None = None
    # The beginning of usual answers, with the headers of the server that it was made for.
    _usual: ClassVar[tuple[Sequence[tuple[bytes, bytes]], bytes]] = (), b""

    async def send(self, message: Message) -> None:  # type: ignore[override]  # the same, by its older name
        """ASGI."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        # Of several requests in a row uvicorn tells only the last that the client is gone, and uvloop lets nobody write
        # to it any more. From here to the write nothing waits, so this is true of the write too.
        if self.disconnected or self.transport.is_closing():
            self.disconnected = True
            return
        if message["type"] == JSON_BODY:
            self._send_json(message["body"])
            return
        head, self._head = self._head, None
        if message["type"] == "http.response.start":
            # A head that is still held is replaced, by that of the answer to an error that came after it.
            if not self.response_started and _has_length(message):
                self._head = message
                return
        elif head is not None:
            if self._write_whole(head, message):
                return
            await super().send(head)  # type: ignore[arg-type]
            await self.send(message)  # the client may not have taken the head yet
            return
        await super().send(message)  # type: ignore[arg-type]

    async def receive(self) -> Message:  # type: ignore[override]  # the same, by its older name
        """ASGI: what has come of the body, and where that is not all of it or nothing is new as uvicorn does."""
        is_new = self.message_event.is_set() and not self.more_body
        if not is_new or self.waiting_for_100_continue or self.disconnected or self.response_complete:
            return await super().receive()  # type: ignore[return-value]
        self.flow.resume_reading()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": False}

    def _send_json(self, body: bytes) -> None:
        # uvicorn makes a new list when the date changes, so whether it is the same one tells whether it says the same.
        if JoinedAnswer._usual[0] is not self.default_headers:
            start = STATUS_LINE[200] + _lines_of_server(tuple(self.default_headers)) + b"content-length: "
            JoinedAnswer._usual = self.default_headers, start
        self._write(JoinedAnswer._usual[1], b"%d\r\n" % len(body), _USUAL_HEADERS, self._last_lines(), body)

    def _write_whole(self, head: Message, message: Message) -> bool:
        """Write the answer if it is whole; return whether that was done."""
        body: bytes = message.get("body", b"")
        headers: list[tuple[bytes, bytes]] = head["headers"]
        if (
            message["type"] != "http.response.body"
            or message.get("more_body", False)
            or self.access_log
            or self.scope["method"] == "HEAD"
            or not _are_plain(headers, len(body))
        ):
            return False
        lines = [STATUS_LINE[head["status"]], _lines_of_server(tuple(self.default_headers))]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        self._write(*lines, self._last_lines(), body)
        return True

    def _last_lines(self) -> bytes:
        return b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"

    def _write(self, *parts: bytes) -> None:
        """Write an answer, and do what comes after one."""
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"".join(parts))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


# The server has the date only, which changes once a second.
@lru_cache(maxsize=2)
def _lines_of_server(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _has_length(head: Message) -> bool:
    return any(name == _LENGTH for name, _ in head.get("headers", ()))


def _are_plain(headers: list[tuple[bytes, bytes]], length: int) -> bool:
    """Whether these are headers that uvicorn would pass on as they are, for a body of this length."""
    names, values = zip(*headers, strict=True)
    return (
        values[names.index(_LENGTH)] == b"%d" % length
        and names.count(_LENGTH) == 1
        and b"connection" not in names
        and b"transfer-encoding" not in names
        and not _BAD_NAMES.search(b"".join(names))
        and not _BAD_VALUES.search(b"".join(values))
    )
