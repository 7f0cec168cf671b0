"""A small HTTP server on loopback whose every answer a test writes, down to the bytes."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """A request that has come in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Json


class ResponseWriter:
    """The way back to the caller."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        # Before the last byte: whoever has got that may be back before the next line here runs.
        self.on_answer: Callable[[], None] = lambda: None

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._handler.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self._handler.send_header(name, value)
        self._handler.send_header("content-length", str(len(content)))
        self._handler.end_headers()
        self.on_answer()
        self._handler.wfile.write(content)

    def deny(self, status: int, code: str, headers: dict[str, str] | None = None, **members: object) -> None:
        """A problem of the control plane."""
        kind = {"content-type": "application/problem+json"}
        self.answer(status, {"code": code, "title": code, **members}, {**kind, **(headers or {})})

    def begin(self, headers: dict[str, str], status: int = 200) -> None:
        """A body whose end is the end of the connection."""
        self._handler.close_connection = True
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def write(self, text: str) -> None:
        self._handler.wfile.write(text.encode())
        self._handler.wfile.flush()

    def has_hung_up(self) -> bool:
        """Whether the caller has closed the connection by now."""
        try:
            return not self._handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def sees_hang_up(self, seconds: float) -> bool:
        """Wait until the caller closes the connection; false when it does not within that time."""
        self._handler.close_connection = True
        self._handler.connection.settimeout(seconds)
        try:
            return not self._handler.connection.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True


Respond = Callable[[ReceivedRequest, ResponseWriter], None]


@dataclass(slots=True)
class Loopback:
    """A running server, and what it was asked."""

    url: str
    requests: list[ReceivedRequest] = field(default_factory=list)


@contextmanager
def serving(respond: Respond) -> Iterator[Loopback]:
    """Serve until the block ends; `respond` is called in a thread of its own for each request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = ReceivedRequest(
                method=self.command, path=self.path, headers=headers, body=json.loads(content or b"{}")
            )
            server.requests.append(request)
            try:
                respond(request, ResponseWriter(self))
            except OSError:  # the caller has hung up, as some tests want
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - names of the standard library

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Loopback(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
