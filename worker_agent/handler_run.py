"""Runs one handler: collects its output, enforces its time limit, and posts how it ended."""

import contextlib
import logging
import math
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable
from functools import partial
from threading import Lock, Thread
from typing import IO, Protocol

from worker_agent import events as ev
from worker_agent.child import MAX_RESULT_BYTES
from worker_agent.child_process import ChildProcess
from worker_agent.exit_watcher import ExitWatcher
from worker_agent.handler_messages import HandlerMessages
from worker_agent.handler_outcomes import Evidence, handler_end
from worker_agent.memory_watch import MemoryWatch
from worker_agent.orphans import end_orphans
from worker_agent.output_buffers import HeadBuffer, LineBuffer, Pace, TailBuffer
from worker_agent.usage import measure_usage
from worker_agent.wire import JsonObject, LogStream

TERM_TO_KILL_SECONDS = 2.0
_CONSOLE_BYTES = 4096
_LINE_BYTES = MAX_RESULT_BYTES + 1024
_READ_BYTES = 65536
_DRAIN_SECONDS = 2.0
# systemd, PBS and some Slurm signal the processes of a worker one by one.
_SIGNAL_SECONDS, _SIGNAL_LOOK_SECONDS = 3.0, 0.05
log = logging.getLogger(__name__)


class Sink(Protocol):
    def feed(self, data: bytes) -> None: ...


class _Tee:
    """Feeds the end of a stream that errors show, and whoever keeps more of it."""

    def __init__(self, console: TailBuffer, keep: Callable[[bytes], None]) -> None:
        self._console = console
        self._keep = keep

    def feed(self, data: bytes) -> None:
        self._console.feed(data)
        self._keep(data)


class HandlerRun:
    """One started handler; posts its progress, and exactly one end when its whole process group is dead."""

    def __init__(
        self,
        child: ChildProcess,
        timeout_seconds: float,
        post: Callable[[ev.Event], None],
        on_measurement: Callable[[JsonObject], None] = lambda _: None,
        on_output: Callable[[LogStream, bytes], None] = lambda _stream, _data: None,
        *,
        adopts_orphans: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`adopts_orphans`: this process is the parent of whatever leaves the handler's, as no namespace ends that.

        `is_stopping` tells whether this worker was told to stop. Raises OSError where nobody can watch the handler,
        which then has ended.
        """
        self._adopts_orphans = adopts_orphans
        self._is_stopping = is_stopping
        self.pid = child.process.pid
        self._child = child
        self._post = post
        self._timeout_seconds = timeout_seconds
        self._started_at = time.monotonic()
        self._deadline = self._started_at + timeout_seconds
        self._memory = MemoryWatch(os.getpid() if adopts_orphans else self.pid, child.memory_bytes, child.group)
        self._timed_out = False
        self._is_killed = False
        self._is_reaped = False
        self._lock = Lock()
        self._pace = Pace()
        self._messages = HandlerMessages(on_measurement)
        self._message_lines = LineBuffer(_LINE_BYTES, self._messages.receive)
        self._console = TailBuffer(_CONSOLE_BYTES)
        self._output = HeadBuffer(MAX_RESULT_BYTES)
        self._sinks: list[tuple[IO[bytes], Sink]] = [
            (child.messages, self._message_lines),
            (child.stdout, self._output if child.is_program else _Tee(self._console, partial(on_output, "stdout"))),
            (child.stderr, _Tee(self._console, partial(on_output, "stderr"))),
        ]
        try:
            Thread(target=self._collect, name="handler", daemon=True).start()
        except RuntimeError as error:
            self._end_unwatched()
            raise OSError(f"no thread to watch it: {error}") from error

    def kill(self) -> None:
        """Kill the whole process group now; the posted end says so."""
        self._is_killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._is_reaped:  # afterwards the pid may belong to another process
                os.killpg(self.pid, number)

    def _collect(self) -> None:
        try:
            self._read_until_exit()
        except Exception:  # whatever it is, the machine waits for an end
            log.exception("collecting crashed", extra={"fields": {"pid": self.pid}})
        # What the handler left running must not outlive it, nor hold the pipes open.
        self._signal(signal.SIGKILL)
        if self._adopts_orphans:
            end_orphans(self.pid)
        self._drain_pipes()
        self._reap()

    def _read_until_exit(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.closing(ExitWatcher(self.pid, selector)) as watcher:
            for stream, sink in self._sinks:
                selector.register(stream, selectors.EVENT_READ, sink)
            while not watcher.has_exited():
                self._read_ready(selector, watcher.max_wait_seconds)

    def _read_ready(self, selector: selectors.BaseSelector, max_wait_seconds: float) -> None:
        pause = 0.0
        next_turn = min(self._deadline, self._memory.next_look_at)
        for key, _ in selector.select(min(max_wait_seconds, max(0.0, next_turn - time.monotonic()))):
            if key.data is not None:
                data = _read_into(key.fd, key.data)
                # Only messages are read line by line.
                line_count = data.count(b"\n") if key.data is self._message_lines else 0
                pause = max(pause, self._pace.pause_after(len(data), line_count))
                if not data:
                    selector.unregister(key.fileobj)
        # A handler that writes without end waits at its full pipe, and the heartbeat gets its turn.
        if pause:
            time.sleep(pause)
        self._post_progress()
        # A result beyond the limit is lost already, so the handler need not finish it.
        if self._message_lines.is_full or self._output.is_full:
            self._signal(signal.SIGKILL)
        self._enforce_memory_limit()
        if time.monotonic() >= self._deadline:
            self._enforce_deadline()

    def _enforce_memory_limit(self) -> None:
        if time.monotonic() >= self._memory.next_look_at:
            self._memory.look()
            if self._memory.excess:
                self._signal(signal.SIGKILL)

    def _enforce_deadline(self) -> None:
        if self._timed_out:
            self._signal(signal.SIGKILL)
            self._deadline = math.inf
        else:
            # SIGTERM first, so that a handler about to finish can still send its result.
            self._timed_out = True
            self._signal(signal.SIGTERM)
            self._deadline = time.monotonic() + TERM_TO_KILL_SECONDS

    def _end_unwatched(self) -> None:
        self.kill()
        if self._adopts_orphans:
            end_orphans(self.pid)
        for stream, _ in self._sinks:
            stream.close()
        self._child.process.wait()
        self._child.temporary.close()

    def _drain_pipes(self) -> None:
        """Read the rest of the pipes for a limited time, as a process that left the group may write forever."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        for stream, sink in self._sinks:
            with contextlib.suppress(BlockingIOError):
                while time.monotonic() < deadline and _read_into(stream.fileno(), sink):
                    pass
            stream.close()

    def _reap(self) -> None:
        with self._lock:
            # Reaped under the lock, as the pid may be reused from here on: `_signal` must not hit its next owner.
            _, status, rusage = os.wait4(self.pid, 0)
            self._is_reaped = True
        exit_code, wall_seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self._started_at
        self._child.process.returncode = exit_code  # reaped here, so Popen must not try
        self._memory.look_at_group()
        self._child.temporary.close()
        self._post_progress()
        self._is_killed = self._is_killed or self._ended_with_the_worker(exit_code)
        self._post(handler_end(self._evidence(exit_code, rusage, wall_seconds)))

    def _ended_with_the_worker(self, exit_code: int) -> bool:
        """Whether somebody has sent SIGTERM to all processes of this worker, of which we may hear a moment later."""
        deadline = time.monotonic() + _SIGNAL_SECONDS
        while exit_code == -signal.SIGTERM and not self._timed_out and time.monotonic() < deadline:
            time.sleep(_SIGNAL_LOOK_SECONDS)
            if self._is_stopping():
                return True
        return False

    def _evidence(self, exit_code: int, rusage: resource.struct_rusage, wall_seconds: float) -> Evidence:
        return Evidence(
            exit_code=exit_code,
            usage=measure_usage(rusage, wall_seconds, self._messages.peak_memory_mb),
            messages=self._messages,
            output=bytes(self._output.data) if self._child.is_program else None,
            console=self._console.text,
            is_too_large=self._message_lines.is_full or self._output.is_full,
            is_killed=self._is_killed,
            memory_excess=self._memory.excess,
            timed_out_after=self._timeout_seconds if self._timed_out else None,
        )

    def _post_progress(self) -> None:
        progress = self._messages.take_progress()
        if progress is not None:
            self._post(ev.ProgressMade(progress))


def _read_into(fd: int, sink: Sink) -> bytes:
    """Read once into the sink; return it, empty at the end. Raises BlockingIOError when nothing is there."""
    data = os.read(fd, _READ_BYTES)
    sink.feed(data)
    return data
