"""Answers that are whole at once go to the client in one write: a second one costs a twelfth of a request."""

import re

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

# As uvicorn has them, for all headers of an answer together.
_BAD_NAMES = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')
_BAD_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = b"content-length"


class JoinedAnswer(RequestResponseCycle):
    """uvicorn's request with its answer, whose head waits for the body where its length is known by then."""

    _head: Message | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]  # the same, by its older name
        """ASGI."""
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
        await super().send(message)  # type: ignore[arg-type]

    def _write_whole(self, head: Message, message: Message) -> bool:
        """Write the answer if it is whole and the client takes it; return whether that was done."""
        body: bytes = message.get("body", b"")
        headers: list[tuple[bytes, bytes]] = head["headers"]
        if (
            message["type"] != "http.response.body"
            or message.get("more_body", False)
            or self.flow.write_paused
            or self.disconnected
            or self.default_headers
            or self.access_log
            or self.scope["method"] == "HEAD"
            or not _are_plain(headers, len(body))
        ):
            return False
        lines = [STATUS_LINE[head["status"]]]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", body)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"".join(lines))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


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
