"""Bounds of connections: their number, their memory, and the time that an unfinished request may take."""

import asyncio
from http import HTTPStatus
from typing import ClassVar, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.http import problems
from app.http.answers import JSON_BODY, JoinedAnswer
from app.http.security import secured
from worker_agent.connections.file_limit import ConnectionLimits, raise_file_limit

# Four times the longest address that a list of tasks needs; node.js and nginx stop at 16 and 32 KiB.
MAX_HEAD_BYTES = 64 << 10
# For the first byte and for a whole head.
IDLE_SECONDS = 10.0
# Parsed at once; 26 bytes are a request, which takes 15 us and some kilobytes.
_PIECE_BYTES = 8 << 10
# A client reads a refusal only when it has sent its body, as far as that is a body that anybody takes.
_MAX_DISCARDED_BYTES = 16 << 20
_MAX_CONNECTIONS = 20_000
_EXTENSIONS: dict[str, dict[object, object]] = {JSON_BODY: {}}
_FILES_FOR_OTHERS = 128


class BodyPace(NamedTuple):
    """The least speed of a body: seconds without a byte, in all, and free of a rate; then bytes a second."""

    gap_seconds: float = 30.0
    total_seconds: float = 120.0
    free_seconds: float = 10.0
    bytes_per_second: int = 16 << 10


class TakingPace(NamedTuple):
    """The least speed at which an answer is taken: seconds in which nothing is, and free of a rate; bytes a second."""

    gap_seconds: float = 30.0
    free_seconds: float = 60.0
    bytes_per_second: int = 4 << 10


def raise_limits() -> ConnectionLimits:
    """Let this process open as many files as it may, and share them out."""
    return connection_limits(raise_file_limit(1 << 20))


def connection_limits(files: int) -> ConnectionLimits:
    """The share of connections in the number of files that a process may open."""
    # All that wait are taken in at once, before the first of the others can be closed.
    waiting = min(2048, files // 4)
    return ConnectionLimits(open=max(16, min(_MAX_CONNECTIONS, files - waiting - _FILES_FOR_OTHERS)), waiting=waiting)


class _Flow(FlowControl):
    """uvicorn's control of reading, which goes on only when what was read before is worked on."""

    def __init__(self, protocol: "BoundedHeads", transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Read on, first what is held; not while requests wait for the answers to those before.

        Until then nobody sees the client hang up: a call that waits for a task, with other requests behind it on its
        connection, waits its time out. Clients send none behind a call that waits, and a lease without a holder ends.
        """
        if not self.read_paused or self._protocol.pipeline:
            return
        if self._protocol.holds_bytes:
            self.read_paused = False
            self._protocol.loop.call_soon(self._protocol.parse_held)
        else:
            super().resume_reading()


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with bounds on connections, heads, and the time that a request stays unfinished."""

    idle_seconds = IDLE_SECONDS
    pace = BodyPace()
    taking_pace = TakingPace()
    max_connections: ClassVar[int] = _MAX_CONNECTIONS
    max_unread_bytes: ClassVar[int] = 256 << 20
    # Bytes of answers that clients have still to take, the oldest first.
    _unread: ClassVar[dict["BoundedHeads", int]] = {}
    _unread_bytes: ClassVar[int] = 0
    # Connections that may be made until others are closed for them again.
    _room: ClassVar[int] = 0
    _began_at = 0.0
    _pending = 0
    _held = b""
    _in_head = True
    _is_whole = True
    _body_bytes = 0
    _body_since = 0.0
    _last_piece_at = 0.0
    _giving_up: asyncio.TimerHandle | None = None
    _watching: asyncio.TimerHandle | None = None
    _untaken = 0
    _taken = 0
    _taken_at = 0.0
    _answered_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request, and make room for this connection."""
        super().connection_made(transport)
        self.flow = _Flow(self, transport)
        self._began_at = self.loop.time()
        self._wait()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._wait_no_longer()
        self._watch_no_longer()
        self._held = b""
        self._forget_unread()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn keeps it, and all that it holds, where the client has reset

    def pause_writing(self) -> None:
        """Count an answer that its client does not take at once, and cut off who takes longest when it is too much."""
        super().pause_writing()
        self._watch_taking()
        size = self.transport.get_write_buffer_size()
        self._forget_unread()
        BoundedHeads._unread[self] = size
        BoundedHeads._unread_bytes += size
        while BoundedHeads._unread_bytes > self.max_unread_bytes and len(self._unread) > 1:
            slowest = next(iter(self._unread))
            slowest._forget_unread()
            slowest.transport.abort()

    def resume_writing(self) -> None:
        """Count an answer no longer, and what follows anew."""
        self._forget_unread()
        self._watch_no_longer()
        self._watch_taking()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """See that the end of an answer is taken too: a connection that is closed stays until then."""
        super().on_response_complete()
        self._watch_taking()

    def _watch_taking(self) -> None:
        """Look every second whether the client takes what was written, until it has taken all."""
        size = self.transport.get_write_buffer_size()
        if size and self._watching is None:
            self._untaken, self._taken, self._answered_at = size, 0, self.loop.time()
            self._taken_at = self._answered_at
            self._watching = self.loop.call_later(1.0, self._check_taking)

    def _watch_no_longer(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _check_taking(self) -> None:
        now, pace, size = self.loop.time(), self.taking_pace, self.transport.get_write_buffer_size()
        self._watching = None
        if not size:
            return
        if size < self._untaken:
            self._taken, self._taken_at = self._taken + self._untaken - size, now
        self._untaken = size
        due = (now - self._answered_at - pace.free_seconds) * pace.bytes_per_second
        if now - self._taken_at > pace.gap_seconds or self._taken < due:
            self.transport.abort()
        else:
            self._watching = self.loop.call_later(1.0, self._check_taking)

    def _forget_unread(self) -> None:
        BoundedHeads._unread_bytes -= self._unread.pop(self, 0)

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes have been read that were not parsed yet."""
        return bool(self._held)

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and hold those behind a request that has to wait."""
        if self._held or len(data) > _PIECE_BYTES:
            self._held += data
            self.parse_held()
        else:
            self._parse(data)

    def parse_held(self) -> None:
        """Parse what is held, until a request has to wait."""
        start = 0
        while start < len(self._held) and not self.flow.read_paused and not self.transport.is_closing():
            self._parse(self._held[start : start + _PIECE_BYTES])
            start += _PIECE_BYTES
        self._held = self._held[start:]
        if self._held:
            self.transport.pause_reading()
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        """Pass bytes to the parser, and refuse a head that it only accumulates."""
        # The parser keeps an unfinished head in memory; the callbacks below reset the count when a part is complete.
        self._pending += len(data)
        self._feed(data)
        if self._pending > MAX_HEAD_BYTES:
            self.logger.warning("the head of a request is larger than %s bytes", MAX_HEAD_BYTES)
            self.send_400_response("The head of the request is too large.")
        if self._pending == 0 and self._is_whole:
            # Most requests are whole when they come; no timer is made for those.
            self._wait_no_longer()
            cycle: RequestResponseCycle | None = self.cycle
            if self.timeout_keep_alive_task is None and cycle is not None and cycle.response_complete:
                self._keep_alive()
        elif not self._in_head:
            self._watch_body()
        elif self._giving_up is None:
            self._wait()

    def _keep_alive(self) -> None:
        """Let the connection idle from the end of a request that was answered before; uvicorn does so for others."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

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

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._in_head, self._is_whole, self._body_bytes, self._body_since = True, False, 0, 0.0
        self._began_at = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._pending, self._in_head = 0, False
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
        self._pending = 0
        self._body_bytes += len(body)
        if self._body_bytes > _MAX_DISCARDED_BYTES and self.cycle.response_complete:
            self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is complete; what comes behind it is given its own time."""
        if self._body_since:
            self._wait_no_longer()
        self._pending, self._in_head, self._is_whole = 0, True, True
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

    def _wait(self) -> None:
        self._giving_up = self.loop.call_later(self.idle_seconds, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _watch_body(self) -> None:
        """Look at an unfinished body every second, from its first piece on."""
        self._last_piece_at = self.loop.time()
        if not self._body_since:
            self._wait_no_longer()
            self._body_since = self._last_piece_at
            self._giving_up = self.loop.call_later(1.0, self._check_pace)

    def _check_pace(self) -> None:
        now, pace = self.loop.time(), self.pace
        if self._is_whole or self._in_head or self.transport.is_closing():
            return
        if self.flow.read_paused:
            # The client waits for room in our memory.
            self._body_since += 1.0
            self._last_piece_at = now
        seconds = now - self._body_since
        is_late = seconds > pace.total_seconds or now - self._last_piece_at > min(
            pace.gap_seconds, 3 * self.idle_seconds
        )
        if is_late or self._body_bytes < (seconds - pace.free_seconds) * pace.bytes_per_second:
            self.transport.close()
        else:
            self._giving_up = self.loop.call_later(1.0, self._check_pace)

    def _give_up(self) -> None:
        self._giving_up = None
        if self.transport.is_closing():
            return
        # Here the client waits for the service: for room in its memory, or for the answer to the request before.
        if self.flow.read_paused or (self._in_head and not _is_answered(self.cycle)):
            self._wait()
            return
        if self._in_head and (self._pending or not self._is_whole):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not come in time.")
        self.transport.close()

    def _make_room(self) -> None:
        """Close connections that nobody has used with a key, then those that idle, the oldest first."""
        if BoundedHeads._room > 0:
            BoundedHeads._room -= 1
            return
        others = [c for c in self.connections if isinstance(c, BoundedHeads) and not c.transport.is_closing()]
        closable = [c for c in others if not c._is_admitted() or _is_answered(c.cycle)]
        # Many at once, so that a flood of connections does not sort all of them again for each one.
        count = max(1, self.max_connections // 16)
        for connection in sorted(closable, key=lambda c: (c._is_admitted(), c._began_at))[:count]:
            connection.transport.abort()
        BoundedHeads._room = min(count, len(closable))

    def _is_admitted(self) -> bool:
        """Whether the last request came with a key that let it in."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and "principal" in cycle.scope.get("state", ())


def _is_answered(cycle: RequestResponseCycle | None) -> bool:
    """Whether the last request has been answered; true before the first one."""
    return cycle is None or cycle.response_complete
