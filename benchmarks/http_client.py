"""An HTTP/1.1 keep-alive connection that costs the load generator little: raw bytes, one request at a time."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, cast

_HEAD_ENDS = b"\r\n\r\n"
_LENGTH = b"content-length:"
_NO_CONTENT = 204


class Refused(Exception):
    """The service answered with an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the bytes of a body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON. Raises Refused when the status is an error."""
        if self.status >= 400:
            raise Refused(f"{self.status}: {self.body.decode(errors='replace')}")
        return json.loads(self.body) if self.body else None


class Connection(asyncio.Protocol):
    """A connection with the key of one caller, for answers with a content length, as this service sends them."""

    def __init__(self, key: str) -> None:
        self._fields = f"Host: benchmark\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self._buffer = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None

    async def post(self, path: str, value: object) -> Answer:
        """Send JSON and wait for the answer. Raises ConnectionError when the service hangs up."""
        body = json.dumps(value).encode()
        return await self._exchange(f"POST {path} HTTP/1.1\r\n{self._fields}Content-Length: {len(body)}\r\n\r\n", body)

    async def get(self, path: str) -> Answer:
        """Send a request and wait for the answer. Raises ConnectionError when the service hangs up."""
        return await self._exchange(f"GET {path} HTTP/1.1\r\n{self._fields}\r\n", b"")

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    async def _exchange(self, head: str, body: bytes) -> Answer:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head.encode() + body)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # Those of uvloop are transports by behaviour only, so nothing can be asserted.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        answer = _complete(self._buffer)
        if answer is not None:
            self._buffer.clear()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the service hung up"))


async def connect(port: int, key: str) -> Connection:
    """A connection to a service on this machine."""
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(key), "127.0.0.1", port)
    return connection


def _complete(buffer: bytearray) -> Answer | None:
    """The answer, once all of it has arrived."""
    head_ends = buffer.find(_HEAD_ENDS)
    if head_ends < 0:
        return None
    status = int(buffer[9:12])
    body_begins = head_ends + len(_HEAD_ENDS)
    body_ends = body_begins + (0 if status == _NO_CONTENT else _length(bytes(buffer[:head_ends])))
    return Answer(status, bytes(buffer[body_begins:body_ends])) if len(buffer) >= body_ends else None


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(_LENGTH)
    if not rest:
        raise ConnectionError("the answer does not say how long it is")
    return int(rest.partition(b"\r\n")[0])
