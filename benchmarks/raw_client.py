"""Clients that cost the load generator as little as Python allows: no futures, no tasks, no JSON.

An answer is cut where the needed bytes are, and the next request is written from there.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

_HEAD_ENDS = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH, _CHUNKED = b"content-length: ", b"transfer-encoding: chunked"
_TASK, _TOKEN, _NEXT = b'"task_id":"', b'"token":', b'"lease":'
_UUID_LENGTH = 36
# Of an answer all that the next request needs, and how a completion begins.
_LEASE = re.compile(rb'\{"index":(\d+),"status":200,"body":\{[^{}]*?(?:"lease":\{)?"task_id":"([^"]+)","token":(\d+),')
_ACCEPTED = b'"state":"completed"'
RESULT = b'{"hypotheses":["Orbits are ellipses with the sun in one focus"],"confidence":0.87}'


@dataclass(slots=True)
class Window:
    """Answers are counted while it is open; whoever gets one after it is over finishes and stops."""

    is_open: bool = False
    is_over: bool = False
    latencies: list[float] = field(default_factory=list)
    leased_tasks: list[bytes] = field(default_factory=list)
    completed_count: int = 0


class Loop(asyncio.Protocol):
    """A connection that sends its next request as soon as it has the answer to the one before."""

    def __init__(self, key: str, window: Window) -> None:
        head = f" HTTP/1.1\r\nHost: benchmark\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self._head = f"{head}Content-Length: ".encode()
        self._buffer = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.window = window
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        """Send the first request."""
        raise NotImplementedError

    def take(self, answer: bytes, body_begins: int) -> None:
        """Take a successful answer, and send the next request or stop."""
        raise NotImplementedError

    def post(self, path: bytes, body: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._transport.write(b"POST %b%b%d\r\n\r\n%b" % (path, self._head, len(body), body))
        self._sent_at = time.perf_counter()

    def count(self, times: int = 1) -> None:
        """Count what the answer that has come stands for, if it is to be counted."""
        if self.window.is_open:
            self.window.latencies += [time.perf_counter() - self._sent_at] * times

    def stop(self, error: Exception | None = None) -> None:
        """Hang up, in order or with an error."""
        if not self.end.done():
            if error is None:
                self.end.set_result(None)
            else:
                self.end.set_exception(error)
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.stop(exc or ConnectionError("the service hung up"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        answer = self._buffer + data
        head_ends = answer.find(_HEAD_ENDS)
        length_begins = answer.find(_LENGTH, 0, head_ends) + len(_LENGTH)
        body_begins = head_ends + len(_HEAD_ENDS)
        if length_begins >= len(_LENGTH):
            is_whole = len(answer) >= body_begins + int(answer[length_begins : answer.find(b"\r", length_begins)])
        else:
            # An exchange comes in chunks where some of its answers are late.
            is_whole = answer.endswith(_LAST_CHUNK) or answer.find(_CHUNKED, 0, head_ends) < 0
        if head_ends < 0 or not is_whole:
            self._buffer = answer
            return
        self._buffer = b""
        if answer[9:12] == b"200":
            self.take(answer, body_begins)
        elif answer[9:12] == b"204":
            self.stop(RuntimeError("the backlog is used up: give more --tasks or fewer --seconds"))
        else:
            self.stop(RuntimeError(f"refused: {answer[:1000].decode(errors='replace')}"))


class Cycle(Loop):
    """A worker that completes each task and leases the next in the same request."""

    _request = 0
    _task = b""

    def __init__(self, key: str, window: Window) -> None:
        super().__init__(key, window)
        self._start = time.monotonic_ns() >> 10 & 0xFFFFFFFF

    def begin(self) -> None:
        """Lease the first task."""
        self.post(b"/lease", b'{"request_id":"%b","acknowledge":true}' % self._next_id())

    def take(self, answer: bytes, body_begins: int) -> None:
        """Complete the task that has been leased; without another one when the measurement is over."""
        if self._task:
            self.count()
            self.window.completed_count += 1
            body_begins = answer.find(_NEXT, body_begins)
        task_begins = answer.find(_TASK, body_begins) + len(_TASK)
        if task_begins < len(_TASK):
            if self.window.is_over:
                self.stop()
            else:
                self.stop(RuntimeError("the backlog is used up: give more --tasks or fewer --seconds"))
            return
        self._task = answer[task_begins : task_begins + _UUID_LENGTH]
        token_begins = answer.find(_TOKEN, task_begins) + len(_TOKEN)
        token = answer[token_begins : answer.find(b",", token_begins)]
        self.window.leased_tasks.append(self._task)
        following = b"" if self.window.is_over else b',"next":{"request_id":"%b","acknowledge":true}' % self._next_id()
        body = b'{"token":%b,"result":%b%b}' % (token, RESULT, following)
        self.post(b"/leases/%b/complete" % self._task, body)

    def _next_id(self) -> bytes:
        # They need only differ among those of one worker, which may have been here in an earlier measurement.
        self._request += 1
        return b"%08x-0000-4000-8000-%012x" % (self._start, self._request)


class ExchangeCycle(Loop):
    """A connection that speaks for many workers, all of which complete and lease in every request."""

    def __init__(self, keys: Sequence[str], window: Window) -> None:
        super().__init__(keys[0], window)
        self._heads = [b'{"authorization":"Bearer %b","operation":' % key.encode() for key in keys]
        self._leases: list[tuple[bytes, bytes]] = []
        self._requests = time.monotonic_ns() >> 10

    def begin(self) -> None:
        """Lease the first tasks."""
        ask = b'"lease","body":{"request_id":"%b","acknowledge":true}}' % self._next_id()
        self._exchange(head + ask for head in self._heads)

    def take(self, answer: bytes, body_begins: int) -> None:
        """Complete the tasks that have been leased; without others when the measurement is over."""
        if self._leases:
            self.count(len(self._heads))
            self.window.completed_count += answer.count(_ACCEPTED, body_begins)
        leases = {int(index): (task, token) for index, task, token in _LEASE.findall(answer, body_begins)}
        if not leases and self.window.is_over:
            self.stop()
            return
        if len(leases) < len(self._heads):
            self.stop(RuntimeError("the backlog is used up: give more --tasks or fewer --seconds"))
            return
        self._leases = [leases[place] for place in range(len(self._heads))]
        self.window.leased_tasks += [task for task, _ in self._leases]
        following = b',"next":{"request_id":"%b","acknowledge":true}' % self._next_id()
        end = b"" if self.window.is_over else following
        self._exchange(
            b'%b"complete","task_id":"%b","body":{"token":%b,"result":%b%b}}' % (head, task, token, RESULT, end)
            for head, (task, token) in zip(self._heads, self._leases, strict=True)
        )

    def _exchange(self, items: Iterable[bytes]) -> None:
        self.post(b"/leases/exchange", b'{"items":[%b]}' % b",".join(items))

    def _next_id(self) -> bytes:
        # The same for all: it tells only the requests of one worker apart.
        self._requests += 1
        return b"00000000-0000-4000-8000-%012x" % (self._requests & 0xFFFFFFFFFFFF)


class Ping(Loop):
    """A client that sends the same request again and again."""

    def begin(self) -> None:
        """Send it for the first time."""
        self.post(b"/", b'{"token":1,"result":%b}' % RESULT)

    def take(self, answer: bytes, body_begins: int) -> None:
        """Send it again, until the measurement is over."""
        self.count()
        if self.window.is_over:
            self.stop()
        else:
            self.begin()
