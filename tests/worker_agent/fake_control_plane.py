"""A control plane over real HTTP on loopback, scripted by the test and remembering every call."""

import json
import socket
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.worker_agent.waiting import until

Json = dict[str, Any]
POOL_KEY = "cvn_pool_verysecret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that arrived; `kind` is its path without the ids."""

    kind: str
    path: str
    body: Json
    key: str
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to answer instead of the usual; `lost` does the usual and then drops the connection."""

    status: int = 200
    body: Json | None = None
    headers: tuple[tuple[str, str], ...] = ()
    lost: bool = False


LOST = Answer(lost=True)


def problem(status: int, code: str, **more: Any) -> Answer:
    body = {"code": code, "title": code, "status": status, **more}
    return Answer(status=status, body=body, headers=(("content-type", "application/problem+json"),))


def foreign(status: int) -> Answer:
    """A refusal by something on the way to the control plane."""
    return Answer(status=status, body={"message": "no such host"}, headers=(("content-type", "application/json"),))


class FakeControlPlane:
    """Answers as the contract says unless `script` has something else for the next calls of a kind."""

    def __init__(self, *, beat_seconds: float = 0.2, lease_seconds: float = 15.0, longest_wait: float = 1.0) -> None:
        self.beat_seconds = beat_seconds
        self.lease_seconds = lease_seconds
        self.longest_wait = longest_wait
        self.calls: list[Call] = []
        self.tasks: deque[Json] = deque()
        self.directives: deque[Json] = deque()
        self.script: dict[str, deque[Answer]] = defaultdict(deque)
        self.assignment: Json | None = None
        self.away = False
        self.incarnations = 0
        self._granted: dict[str, Json] = {}
        self._changed = threading.Condition()
        self._is_over = False
        self._tokens = 0

    # What a test does.

    def submit(self, payload: Json, *, timeout_seconds: float = 60.0, **more: Any) -> str:
        """One more task; its id."""
        task_id = str(uuid.uuid4())
        with self._changed:
            self._tokens += 1
            task = {"task_id": task_id, "token": self._tokens, "attempt": 1, "agent_type": "generation"}
            self.tasks.append(task | {"payload": payload, "timeout_seconds": timeout_seconds} | more)
            self._changed.notify_all()
        return task_id

    def direct(self, kind: str, *, task_id: str | None = None, token: int | None = None) -> None:
        self.directives.append({"kind": kind, "reason": "the test says so", "task_id": task_id, "token": token})

    def of(self, kind: str) -> list[Call]:
        return [call for call in self.calls if call.kind == kind]

    def wait_for(self, kind: str, count: int = 1) -> list[Call]:
        """The first `count` calls of that kind, once they are there."""
        until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[:count]

    def begin(self) -> None:
        """Let calls wait for a task."""
        self._is_over = False

    def end(self) -> None:
        """Let no call wait any longer."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    # What the worker sees.

    def answer(self, call: Call) -> Answer:
        self.calls.append(call)
        scripted = self.script[call.kind].popleft() if self.script[call.kind] else None
        if scripted is not None and not scripted.lost:
            return scripted
        usual: Callable[[Call], Answer] = getattr(self, f"_{call.kind}")
        answer = usual(call)
        return LOST if scripted is not None or self.away else answer

    def _register(self, call: Call) -> Answer:
        self.incarnations += 1
        body = {
            "worker_id": f"w-{self.incarnations}",
            "name": call.body["name"],
            "incarnation": self.incarnations,
            "key": f"cvn_worker{self.incarnations}_verysecret",
            "heartbeat_interval_seconds": self.beat_seconds,
            "lost_after_seconds": 15,
            "lease_seconds": self.lease_seconds,
            "acknowledge_within_seconds": 5,
        }
        return Answer(status=201, body=body)

    def _heartbeat(self, call: Call) -> Answer:
        if self.away:
            return LOST
        directives = []
        while self.directives:
            directives.append(self.directives.popleft())
        body: Json = {"worker_id": "w", "state": "ready", "directives": directives, "lease_expires_at": None}
        if self.assignment is not None and self.assignment["version"] != call.body.get("assignment"):
            body["assignment"] = self.assignment
        return Answer(body=body)

    def _lease(self, call: Call) -> Answer:
        request_id = call.body["request_id"]
        limit = time.monotonic() + min(call.body["wait_seconds"], self.longest_wait)
        with self._changed:
            while request_id not in self._granted and not self._grant(request_id):
                if self._is_over or not self._changed.wait(limit - time.monotonic()):
                    return Answer(status=204)
        return Answer(body=self._granted[request_id])

    def _grant(self, request_id: str) -> bool:
        if self.tasks:
            self._granted[request_id] = self.tasks.popleft()
        return request_id in self._granted

    def _start(self, call: Call) -> Answer:
        return Answer(body={"state": "executing"})

    def _progress(self, call: Call) -> Answer:
        return Answer(body={"state": "executing"})

    def _complete(self, call: Call) -> Answer:
        lease = None
        if "next" in call.body:
            request_id = call.body["next"]["request_id"]
            with self._changed:
                lease = self._granted[request_id] if self._grant(request_id) else None
        return Answer(body={"state": "completed", "lease": lease})

    def _fail(self, call: Call) -> Answer:
        return Answer(body={"state": "pending", "run_at": None})

    def _logs(self, call: Call) -> Answer:
        return Answer(status=204)

    def _release(self, call: Call) -> Answer:
        return Answer(body={"state": "pending"})

    def _samples(self, call: Call) -> Answer:
        return Answer(status=201, body={"accepted": len(call.body["samples"]), "repeated": False})

    def _goodbye(self, call: Call) -> Answer:
        return Answer(body={"state": "stopped"})


def _kind(path: str) -> str:
    return "register" if path == "/workers" else path.rsplit("/", 1)[-1]


def _handler(plane: FakeControlPlane) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers["authorization"].removeprefix("Bearer ")
            answer = plane.answer(Call(kind=_kind(self.path), path=self.path, body=body, key=key))
            if answer.lost:
                self.close_connection = True
                return
            content = b"" if answer.body is None else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    """Leaves neither threads nor connections to the next test, which may count them."""

    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, plane: FakeControlPlane, port: int) -> None:
        super().__init__(("127.0.0.1", port), _handler(plane))
        self._connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


@contextmanager
def served(plane: FakeControlPlane, port: int = 0) -> Iterator[str]:
    """The address under which the plane answers."""
    plane.begin()
    server = _Server(plane, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        plane.end()
        server.server_close()
        thread.join()
