"""Sends what one attempt writes: in pieces while it runs, once a second at most, and the rest before its report."""

import logging
from threading import Event, Lock

from worker_agent.client import Client
from worker_agent.local_errors import LocalErrors
from worker_agent.output_log import OutputLog
from worker_agent.threads import start_thread
from worker_agent.transport import ApiUnavailable, Problem
from worker_agent.wire import LeaseRef, LogPiece, LogStream

_PAUSE_SECONDS = 1.0
# Whoever writes for a long time is sent less often, so that its calls stay few.
_CALLS_AT_FULL_PACE = 60
_LONGEST_PAUSE_SECONDS = 30.0
_LAST_CALLS = 8
log = logging.getLogger(__name__)


class LogSender:
    """Output of one attempt; a call that fails is repeated, but nothing waits for it for long."""

    def __init__(self, client: Client, ref: LeaseRef, errors: LocalErrors) -> None:
        self.ref = ref
        self._client = client
        self._errors = errors
        self._output = OutputLog()
        self._unsent: list[LogPiece] = []
        self._send_lock = Lock()
        self._state_lock = Lock()
        self._is_running = False
        self._is_refused = False
        self._calls = 0
        self._over = Event()

    def feed(self, stream: LogStream, data: bytes) -> None:
        if self._is_refused or not data:
            return
        self._output.feed(stream, data)
        with self._state_lock:
            if self._is_running or self._over.is_set():
                return
            # Without a thread it is sent with what follows, or before the report.
            self._is_running = start_thread(self._run, "logs") is not None

    def finish(self) -> None:
        """Send what is left, as the handler has ended; gives up at the first failure."""
        self._over.set()
        for _ in range(_LAST_CALLS):
            if not self._send():
                return

    def _run(self) -> None:
        pause = _PAUSE_SECONDS
        # The first piece waits too, so that a short task costs one call.
        while not self._over.wait(pause):
            self._send()
            excess = max(0, self._calls - _CALLS_AT_FULL_PACE)
            pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * (1 + excess / 10))

    def _send(self) -> bool:
        """Make one call; False when there is nothing to send, or it failed."""
        with self._send_lock:
            self._unsent = self._unsent or self._output.take()
            if not self._unsent or self._is_refused:
                return False
            self._calls += 1
            try:
                self._client.logs(self.ref, self._unsent)
            except ApiUnavailable:
                return False
            except Problem as problem:
                # An older control plane has no such route.
                self._is_refused = True
                log.warning("output refused", extra={"fields": {"task": self.ref.task_id, "why": str(problem)}})
                self._errors.add(f"output of {self.ref.task_id} refused: {problem}")
            except Exception:  # a task is worth finishing without its output
                log.exception("sending output crashed")
            self._unsent = []
            return not self._is_refused
