"""Connections to the control plane: HTTP/1.1, kept alive, as lean as a relay of thousands of calls a second needs."""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

import httptools

from app.outage import Outage
from worker_agent.connections.clients import advice, check_address, is_local, socket_path
from worker_agent.connections.trust import Trust

Headers = Sequence[tuple[bytes, bytes]]

CONNECT_SECONDS = 5.0
# Shorter than any proxy or server keeps a connection that nobody uses, so that it is we who close it.
_IDLE_SECONDS = 20.0
_UNREAD_BYTES = 256 << 10
_MAX_LINE_BYTES = 64 << 20


class Away(Exception):
    """The control plane cannot be reached, or hung up before it had answered; the message says which."""


class Crowded(Exception):
    """As many connections to the control plane are in use as may be."""


class Target(NamedTuple):
    """Method and address of a request, as its first line has them."""

    method: bytes
    path: bytes


class Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._has_no_body = False
        self._keeps_alive = True
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers = []
        self._has_head = self._is_whole = self._is_sent = False
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._lost: str | None = None
        self._changed: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can take a request."""
        return self._transport is not None and not self._transport.is_closing() and self._lost is None

    @property
    def is_reusable(self) -> bool:
        """Whether the answer was read to its end, and both sides keep the connection."""
        return self._is_whole and self._is_sent and self.is_open and not self._has_no_body and self._keeps_alive

    @property
    def has_answer(self) -> bool:
        """Whether the head of the answer has come."""
        return self._has_head

    def send_head(self, target: Target, headers: Headers) -> None:
        """Begin a request; its headers say how long its body is."""
        self._begin()
        self._keeps_alive = True
        self._has_no_body = target.method == b"HEAD"
        lines = [b"%s %s HTTP/1.1" % target, *[b"%s: %s" % header for header in headers], b"", b""]
        self._write(b"\r\n".join(lines))

    async def send_body(self, piece: bytes) -> None:
        """Send part of the body, and wait while the other side takes none."""
        self._write(piece)
        if self._drained is not None:
            await self._drained

    def end_body(self) -> None:
        """Note that the request is whole, without which the connection is not used again."""
        self._is_sent = True

    async def read_head(self) -> None:
        """Wait for the head of the answer. Raises Away."""
        while not self._has_head:
            await self._next_change()

    async def read(self) -> bytes:
        """The next bytes of the answer's body, none at its end. Raises Away."""
        while not self._pieces:
            if self._is_whole:
                return b""
            await self._next_change()
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._unread > _UNREAD_BYTES and self._transport is not None:
            self._transport.resume_reading()
        self._unread = 0
        return data

    async def read_lines(self) -> AsyncGenerator[bytes]:
        """The lines of the answer's body, each as soon as it is whole. Raises Away."""
        rest = bytearray()
        while data := await self.read():
            rest += data
            if b"\n" not in data:
                if len(rest) > _MAX_LINE_BYTES:
                    raise Away("the control plane sends a line without end")
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                if line:
                    yield line
        if rest:
            yield bytes(rest)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if not self.is_open or self._transport is None:
            raise Away(self._lost or "the control plane hung up")
        self._transport.write(data)

    async def _next_change(self) -> None:
        if self._lost is not None:
            raise Away(self._lost)
        self._changed = asyncio.get_running_loop().create_future()
        await self._changed

    def _change(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # Those of uvloop are transports by behaviour only.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the control plane's answer is no HTTP ({error})")
            self.close()

    def eof_received(self) -> None:
        """Called by the event loop."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._fail("the control plane hung up" if exc is None else f"the connection broke ({exc})")

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _fail(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        self.resume_writing()
        self._change()

    # Of the parser.

    def on_message_begin(self) -> None:
        """Called by the parser; the connection ends with an answer to no request, which the next one would take."""
        if self._is_whole:
            raise ValueError("an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser; interim answers are passed over."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._keeps_alive = self._parser.should_keep_alive()
        self._has_head = True
        if self._has_no_body:
            self._is_whole = True
        self._change()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._pieces.append(body)
        was_ample, self._unread = self._unread > _UNREAD_BYTES, self._unread + len(body)
        if self._unread > _UNREAD_BYTES and not was_ample and self._transport is not None:
            self._transport.pause_reading()
        self._change()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self.status < 200:
            self.headers = []
            return
        self._is_whole = True
        self._change()


class Upstream:
    """The control plane at one address, and the connections to it; never more than `max_connections`."""

    def __init__(self, address: str, trust: Trust, *, max_connections: int) -> None:
        """Raises ValueError for an address that no key may be sent to, and for an unusable proxy; OSError."""
        self.address = check_address(address, trust)
        self._path = socket_path(self.address)
        self._url = urlsplit(self.address if self._path is None else "http://localhost")
        proxy = None if trust.proxy is None or is_local(self.address) else urlsplit(trust.proxy)
        if proxy is not None and (proxy.scheme != "http" or not proxy.hostname):
            raise ValueError("CONVENER_PROXY: a relay goes through proxies like http://proxy:3128 only")
        self._proxy: SplitResult | None = proxy
        self._context = self._tls(trust) if self._url.scheme == "https" else None
        self._max_connections = max_connections
        self.outage = Outage("the control plane", str)
        self._open = 0
        self._idle: list[Connection] = []
        port = "" if self._url.port is None else f":{self._url.port}"
        host = self._url.hostname or ""
        self.host = (f"[{host}]{port}" if ":" in host else f"{host}{port}").encode()
        # A proxy is asked for a whole address where it does not only pass on bytes.
        self._prefix = f"http://{self.host.decode()}" if proxy is not None and self._context is None else ""
        self._prefix += self._url.path.rstrip("/")

    @property
    def connections(self) -> int:
        """Number of connections that are open."""
        return self._open

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for one request; hung up unless its answer was read to the end. Raises Away, Crowded."""
        try:
            connection = self._reuse() or await self._connect()
            try:
                yield connection
            finally:
                if connection.has_answer:
                    self._note(connection)
                if connection.is_reusable:
                    connection.idle_since = asyncio.get_running_loop().time()
                    self._idle.append(connection)
                else:
                    self._discard(connection)
        except Away as error:
            self.outage.note_failure(error)
            raise

    def _note(self, connection: Connection) -> None:
        # The control plane itself answers in JSON; anything else is of a proxy that finds nobody behind it.
        if connection.status >= 500 and not any(b"json" in value for _, value in connection.headers):
            self.outage.note_failure(Away(f"a proxy answers {connection.status}"))
        else:
            self.outage.note_answer()

    def target(self, method: str, path: bytes, query: bytes = b"") -> Target:
        """The request line's method and path."""
        return Target(method.encode(), self._prefix.encode() + path + (b"?" + query if query else b""))

    def close(self) -> None:
        """Hang up those that nobody uses."""
        while self._idle:
            self._discard(self._idle.pop())

    def _tls(self, trust: Trust) -> ssl.SSLContext:
        context = trust.context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _reuse(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        # The last one was used last; those at the other end are closed when nobody has needed them for a while.
        while self._idle and not _is_fresh(self._idle[0], now):
            self._discard(self._idle.pop(0))
        while self._idle:
            connection = self._idle.pop()
            if _is_fresh(connection, now):
                return connection
            self._discard(connection)
        return None

    def _discard(self, connection: Connection) -> None:
        self._open -= 1
        connection.close()

    async def _connect(self) -> Connection:
        if self._open >= self._max_connections:
            raise Crowded
        self._open += 1
        connection = Connection()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._establish(connection)
        except BaseException as error:
            self._discard(connection)
            if isinstance(error, TimeoutError):
                raise Away(f"no connection to the control plane within {CONNECT_SECONDS:.0f} s") from None
            if isinstance(error, OSError | EOFError | ValueError):
                raise Away(f"no connection to the control plane: {advice(error, self.address) or error}") from None
            raise
        return connection

    async def _establish(self, connection: Connection) -> None:
        loop, host = asyncio.get_running_loop(), self._url.hostname or ""
        if self._path is not None:
            await loop.create_unix_connection(lambda: connection, self._path)
        elif self._proxy is None or self._context is None:
            via = self._proxy or self._url
            port = via.port or (443 if via.scheme == "https" else 80)
            await loop.create_connection(
                lambda: connection,
                via.hostname or "",
                port,
                ssl=self._context,
                server_hostname=host if self._context else None,
            )
        else:
            await self._establish_through(self._proxy, self._context, connection)

    async def _establish_through(self, proxy: SplitResult, context: ssl.SSLContext, connection: Connection) -> None:
        """TLS through a proxy that passes on bytes."""
        reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port or 80)
        try:
            place = self.host if self._url.port else self.host + b":443"
            writer.write(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (place, place))
            words = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].split()
            if len(words) < 2 or words[1] != b"200":
                raise OSError(f"the proxy refused: {b' '.join(words).decode(errors='replace')}")
            transport = await asyncio.get_running_loop().start_tls(
                writer.transport, connection, context, server_hostname=self._url.hostname
            )
            if transport is None:
                raise OSError("the proxy hung up")
        except BaseException:
            writer.transport.abort()
            raise
        connection.connection_made(transport)


def _is_fresh(connection: Connection, now: float) -> bool:
    return connection.is_open and now - connection.idle_since < _IDLE_SECONDS
