"""The protocol of all our servers: uvicorn's, with bounds on connections, their memory and their time."""

import asyncio
from http import HTTPStatus
from typing import ClassVar

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http import problems
from app.http.answers import JSON_BODY, JoinedAnswer
from app.http.connection_room import MAX_CONNECTIONS, ConnectionRoom
from app.http.flow_control import PIECE_BYTES, HoldingFlowControl
from app.http.paces import BodyPace, BodyWatch, TakingPace, TakingWatch
from app.http.security import secured
from app.http.untaken_answers import UntakenAnswers

# Four times the longest address that a list of tasks needs; node.js and nginx stop at 16 and 32 KiB.
MAX_HEAD_BYTES = 64 << 10
# A client reads a refusal only when it has sent its body, as far as that is a body that anybody takes.
_MAX_DISCARDED_BYTES = 16 << 20
_EXTENSIONS: dict[str, dict[object, object]] = {JSON_BODY: {}}


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with bounds on connections, heads, and the time that a request stays unfinished.

    A request that comes whole costs no timer and no watch, and neither does an answer that is taken at once.
    """

    # For the first byte and for a whole head.
    idle_seconds = 10.0
    pace = BodyPace()
    taking_pace = TakingPace()
    # Of all connections of the process.
    room: ClassVar = ConnectionRoom(MAX_CONNECTIONS)
    untaken_answers: ClassVar = UntakenAnswers(max_bytes=256 << 20)

    # Python keeps up to 30 attributes in a short form, and uvicorn has 28: with ours a connection took 1.2 KB more.
    __slots__ = (
        "_body_bytes",
        "_body_watch",
        "_head_timer",
        "_in_body",
        "_in_head",
        "_pending_bytes",
        "_taking_watch",
        "began_at",
    )
    flow: HoldingFlowControl
    began_at: float
    _head_timer: asyncio.TimerHandle | None
    _body_watch: BodyWatch | None
    _taking_watch: TakingWatch | None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, and make room for this connection."""
        super().connection_made(transport)
        self.flow = HoldingFlowControl(self, transport)
        self.began_at = self.loop.time()
        self._in_head = self._in_body = False
        self._pending_bytes = self._body_bytes = 0
        self._body_watch = self._taking_watch = None
        self._wait_for_head()
        if len(self.connections) > self.room.max_connections:
            self.room.make(c for c in self.connections if isinstance(c, BoundedHeads))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and forget what was held and counted."""
        self._cancel_head_timer()
        self._end_body_watch()
        self._forget_untaken()
        self.flow.held = b""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn keeps it, and all that it holds, where the client has reset

    def eof_received(self) -> None:
        """See that what was written is taken: the transport closes when it is."""
        self._watch_taking()

    def pause_writing(self) -> None:
        """Count an answer that its client does not take at once."""
        super().pause_writing()
        self._watch_taking()
        self.untaken_answers.add(self.transport)

    def resume_writing(self) -> None:
        """Count an answer no longer, and what follows anew."""
        self._forget_untaken()
        self._watch_taking()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """See that the end of an answer is taken too: a connection that is closed stays until then."""
        super().on_response_complete()
        self._watch_taking()

    def _watch_taking(self) -> None:
        if self.transport.get_write_buffer_size():
            if self._taking_watch is None:
                self._taking_watch = TakingWatch(self.transport, self.loop, self.taking_pace)
            self._taking_watch.start()

    def _forget_untaken(self) -> None:
        self.untaken_answers.remove(self.transport)
        if self._taking_watch is not None:
            self._taking_watch.stop()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and hold those behind a request that has to wait."""
        if self.flow.held or len(data) > PIECE_BYTES:
            self.flow.hold(data)
        else:
            self.parse(data)

    def parse(self, data: bytes) -> None:
        """Pass bytes to the parser, refuse a head that it only accumulates, and see that a request becomes whole."""
        # The parser keeps an unfinished head in memory; the callbacks below reset the count when a part is complete.
        self._pending_bytes += len(data)
        self._feed(data)
        if self._pending_bytes > MAX_HEAD_BYTES:
            self.logger.warning("the head of a request is larger than %s bytes", MAX_HEAD_BYTES)
            self.send_400_response("The head of the request is too large.")
        if self._in_body:
            self._watch_body()
        elif self._in_head or self._pending_bytes:
            if self._head_timer is None:
                self._wait_for_head()
        elif self.timeout_keep_alive_task is None and self.is_answered:
            # The body of a request that was answered before; after other answers uvicorn does this.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.idle_seconds, self._give_up)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        # Here the client waits for the service: for room in its memory, or for the answer to the request before.
        if self.flow.read_paused or not self.is_answered:
            self._wait_for_head()
            return
        if self._in_head or self._pending_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not come in time.")
        self.transport.close()

    def _watch_body(self) -> None:
        if self._body_watch is None:
            self._body_watch = BodyWatch(self.transport, self.flow, self.loop, self.pace)
        self._body_watch.note_piece(self._body_bytes)

    def _end_body_watch(self) -> None:
        if self._body_watch is not None:
            self._body_watch.stop()
            self._body_watch = None

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._in_head, self._in_body, self._body_bytes = True, False, 0
        self.began_at = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head, self._in_body, self._pending_bytes = False, True, 0
        if self._head_timer is not None:
            self._cancel_head_timer()
        self.scope["extensions"] = _EXTENSIONS
        super().on_headers_complete()
        # Trailers come from here on, which are no headers, and which nobody asks for (RFC 9110, 6.5.1): a key or an
        # address among them has passed no proxy's check.
        self.headers = []
        if self.cycle is not None:
            self.cycle.__class__ = JoinedAnswer  # uvicorn asks nobody of which class to make it
        # A request behind one that has closed the connection, as every one does while the service stops.
        if self.transport.is_closing() and self.cycle is not None:
            self.cycle.disconnected = True

    def on_body(self, body: bytes) -> None:
        """Note that part of the body was passed on; trailers that follow count as a head again."""
        self._pending_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > _MAX_DISCARDED_BYTES and self.cycle.response_complete:
            self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._in_body, self._pending_bytes = False, 0
        if self._body_watch is not None:
            self._end_body_watch()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request with a problem, as everything else is answered, and close."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        response = secured(problems.from_status(status, detail))
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode()), b"connection: close"]
        lines += [b"%s: %s" % header for header in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.close()
        self._watch_taking()

    def _feed(self, data: bytes) -> None:
        """Do as uvicorn's `data_received`, but with a request that offers to go on in another protocol."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
                return
            except HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])

    def _should_upgrade(self) -> bool:
        """Let uvicorn make nothing of a head with such an offer, as it comes a second time without."""
        return True

    def _without_upgrade(self, following: bytes) -> bytes:
        """The head that has just come without its offer, which a server may ignore (RFC 9110, 7.8), and what follows.

        A parser that has seen the offer takes the body for the next request, so there is a new one for them.
        """
        method, version, headers = self.scope["method"], self.scope["http_version"], self.scope["headers"]
        if method == "CONNECT":
            self.send_400_response("This is no proxy, which CONNECT is for.")
            return b""
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        lines = [b"%b %b HTTP/%b" % (method.encode(), self.url, version.encode())]
        lines += [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", following])

    @property
    def is_admitted(self) -> bool:
        """Whether the last request came with a key that let it in."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and "principal" in cycle.scope.get("state", ())

    @property
    def is_answered(self) -> bool:
        """Whether the last request has been answered; true before the first one."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete
