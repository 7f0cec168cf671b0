"""Runs one handler: collects what its process writes, ends it in time, and posts how it ended."""

import contextlib
import logging
import math
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable
from threading import Lock, Thread
from typing import IO, Protocol

from worker_agent import events as ev
from worker_agent.child import MAX_RESULT_BYTES
from worker_agent.exitwatch import ExitWatch
from worker_agent.mailbox import Mailbox
from worker_agent.spawning import Child
from worker_agent.streams import Lines, Tail, Whole
from worker_agent.usage import bill
from worker_agent.verdicts import Evidence, verdict
from worker_agent.wire import JsonObject

TERM_TO_KILL_SECONDS = 2.0
_NOISE_BYTES = 4096
_LINE_BYTES = MAX_RESULT_BYTES + 1024
_READ_BYTES = 65536
_DRAIN_SECONDS = 2.0
log = logging.getLogger(__name__)


class Sink(Protocol):
    def feed(self, data: bytes) -> None: ...


class Run:
    """One started handler; posts its progress, and then exactly one end, when its whole process group is dead."""

    def __init__(
        self,
        child: Child,
        timeout_seconds: float,
        post: Callable[[ev.Event], None],
        measured: Callable[[JsonObject], None] = lambda _: None,
    ) -> None:
        self.pid = child.process.pid
        self._child = child
        self._post = post
        self._timeout_seconds = timeout_seconds
        self._started = time.monotonic()
        self._deadline = self._started + timeout_seconds
        self._timed_out = False
        self._killed = False
        self._reaped = False
        self._lock = Lock()
        self._mailbox = Mailbox(measured)
        self._messages = Lines(_LINE_BYTES, self._mailbox.receive)
        self._noise = Tail(_NOISE_BYTES)
        self._output = Whole(MAX_RESULT_BYTES)
        self._sinks: list[tuple[IO[bytes], Sink]] = [(child.messages, self._messages), (child.noise, self._noise)]
        if child.output is not None:
            self._sinks.append((child.output, self._output))
        Thread(target=self._collect, name="handler", daemon=True).start()

    def kill(self) -> None:
        """Kill the whole process group now; the end that is posted says so."""
        self._killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._reaped:  # afterwards the number may be another's
                os.killpg(self.pid, number)

    def _collect(self) -> None:
        try:
            self._follow()
        except Exception:  # whatever it is, the machine must hear of an end
            log.exception("collecting crashed", extra={"fields": {"pid": self.pid}})
        # What the handler left running must not outlive it, nor hold the pipes open.
        self._signal(signal.SIGKILL)
        self._drain()
        self._conclude()

    def _follow(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.closing(ExitWatch(self.pid, selector)) as watch:
            for stream, sink in self._sinks:
                selector.register(stream, selectors.EVENT_READ, sink)
            while not watch.has_exited():
                self._step(selector, watch.longest_wait)

    def _step(self, selector: selectors.BaseSelector, longest_wait: float) -> None:
        for key, _ in selector.select(min(longest_wait, max(0.0, self._deadline - time.monotonic()))):
            if key.data is not None and not _read(key.fd, key.data):
                selector.unregister(key.fileobj)
        self._tell_progress()
        if self._messages.is_full or self._output.is_full:
            self._signal(signal.SIGKILL)
        if time.monotonic() >= self._deadline:
            self._run_out()

    def _run_out(self) -> None:
        if self._timed_out:
            self._signal(signal.SIGKILL)
            self._deadline = math.inf
        else:
            self._timed_out = True
            self._signal(signal.SIGTERM)
            self._deadline = time.monotonic() + TERM_TO_KILL_SECONDS

    def _drain(self) -> None:
        """What the process wrote before it ended is in the pipes; whoever escaped the group may write for ever."""
        enough = time.monotonic() + _DRAIN_SECONDS
        for stream, sink in self._sinks:
            with contextlib.suppress(BlockingIOError):
                while time.monotonic() < enough and _read(stream.fileno(), sink):
                    pass
            stream.close()

    def _conclude(self) -> None:
        with self._lock:
            _, status, rusage = os.wait4(self.pid, 0)
            self._reaped = True
        exit_code = os.waitstatus_to_exitcode(status)
        self._child.process.returncode = exit_code  # reaped here, so Popen must not try
        self._tell_progress()
        self._post(verdict(self._evidence(exit_code, rusage)))

    def _evidence(self, exit_code: int, rusage: resource.struct_rusage) -> Evidence:
        wall_seconds = time.monotonic() - self._started
        return Evidence(
            exit_code=exit_code,
            usage=bill(rusage, wall_seconds, self._mailbox.peak_memory_mb),
            mailbox=self._mailbox,
            output=None if self._child.output is None else bytes(self._output.data),
            noise=self._noise.text,
            is_too_large=self._messages.is_full or self._output.is_full,
            killed=self._killed,
            timed_out_after=self._timeout_seconds if self._timed_out else None,
        )

    def _tell_progress(self) -> None:
        progress = self._mailbox.take_progress()
        if progress is not None:
            self._post(ev.Progressed(progress))


def _read(fd: int, sink: Sink) -> bool:
    """Whether there may be more. Raises BlockingIOError when there is nothing now."""
    data = os.read(fd, _READ_BYTES)
    sink.feed(data)
    return bool(data)
