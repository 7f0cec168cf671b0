"""Sends one task's progress: the newest only, one call at a time, and always before the task's report."""

import logging
from collections.abc import Callable
from threading import Event, Lock

from worker_agent import events as ev
from worker_agent.backoff import full_jitter
from worker_agent.client import Client
from worker_agent.local_errors import LocalErrors
from worker_agent.threads import start_thread
from worker_agent.transport import ApiUnavailable, Problem
from worker_agent.wire import LeaseRef, Progress

PAUSE_SECONDS = 0.5
log = logging.getLogger(__name__)


class ProgressSender:
    """Holds unsent progress; newer progress replaces it, but a checkpoint stays until a newer one comes."""

    def __init__(self, client: Client, ref: LeaseRef, post: Callable[[ev.Event], None], errors: LocalErrors) -> None:
        self.ref = ref
        self._client = client
        self._post = post
        self._errors = errors
        self._slot: Progress | None = None
        self._slot_lock = Lock()
        self._send_lock = Lock()
        self._task_over = Event()
        self._lost_code: str | None = None
        self._is_running = False

    def put(self, progress: Progress) -> None:
        with self._slot_lock:
            self._slot = progress.replacing(self._slot)
            if self._is_running or self._task_over.is_set():
                return
            # Without a thread it is sent with what follows, or before the report.
            self._is_running = start_thread(self._run, "progress") is not None

    def close(self) -> None:
        """Drop unsent progress, as the task is over."""
        self._task_over.set()

    def flush(self) -> str | None:
        """Send unsent progress now; return the error code when the lease is lost. Raises ApiUnavailable."""
        with self._send_lock:
            with self._slot_lock:
                progress, self._slot = self._slot, None
            if progress is None or self._task_over.is_set():
                return self._lost_code
            try:
                self._send(progress)
            except ApiUnavailable:
                self._put_back(progress)
                raise
            except Exception:  # a task is worth finishing without progress
                log.exception("sending progress crashed")
            return self._lost_code

    def _put_back(self, unsent_progress: Progress) -> None:
        with self._slot_lock:
            self._slot = unsent_progress if self._slot is None else self._slot.replacing(unsent_progress)

    def _run(self) -> None:
        attempt = 0
        while self._has_more():
            try:
                self.flush()
                attempt = 0
            except ApiUnavailable:
                attempt += 1
            self._task_over.wait(PAUSE_SECONDS + full_jitter(attempt))

    def _has_more(self) -> bool:
        with self._slot_lock:
            self._is_running = self._slot is not None and not self._task_over.is_set()
            return self._is_running

    def _send(self, progress: Progress) -> None:
        try:
            self._client.progress(self.ref, progress)
        except Problem as problem:
            if problem.code == "lease_expired":
                # The daemon finds out whether it can be renewed; this waits for that, or for the end of the task.
                self._put_back(progress)
                self._post(ev.LeaseLost(self.ref, problem.code))
                return
            if problem.status in (404, 409):
                self._lost_code = problem.code
                self.close()
                self._post(ev.LeaseLost(self.ref, problem.code))
                return
            log.warning("progress refused", extra={"fields": {"task": self.ref.task_id, "why": str(problem)}})
            self._errors.add(f"progress of {self.ref.task_id} refused: {problem}")
