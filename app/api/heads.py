"""Refuses a request whose head does not end: the parser would keep all of it, before anybody looks at a key."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Far above what any client sends; node.js and nginx stop at 16 and 32 KiB.
MOST_BYTES = 1 << 20


class BoundedHeads(HttpToolsProtocol):
    """The HTTP protocol of uvicorn, which counts what comes between one thing that is complete and the next."""

    _pending = 0

    def data_received(self, data: bytes) -> None:
        """Pass it on to the parser, and refuse what it only piles up."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MOST_BYTES:
            self.logger.warning("the head of a request is larger than %s bytes", MOST_BYTES)
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body is passed on; what may follow it are trailers, which are a head again."""
        self._pending = 0
        super().on_body(body)
