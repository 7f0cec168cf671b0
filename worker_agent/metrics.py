"""Pushes metrics that handlers measure, in batches and from a thread of its own."""

import logging
import uuid
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread

from worker_agent.local_errors import LocalErrors
from worker_agent.threads import start_thread
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.wire import JsonObject

# A batch is as many as the control plane accepts; while it is away the oldest beyond five batches are dropped.
_BATCH = 1000
_BUFFER_LIMIT = 5 * _BATCH
_INTERVAL_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_STOP_SECONDS = 1.0
log = logging.getLogger(__name__)


class MetricsPusher:
    """Buffer and thread of one worker's metrics; safe to use from several threads."""

    def __init__(
        self,
        connect: Callable[[], Transport],
        *,
        key: Callable[[], str | None],
        errors: LocalErrors,
        interval_seconds: float = _INTERVAL_SECONDS,
    ) -> None:
        self._connect = connect
        self._transport: Transport | None = None
        self._key = key
        self._errors = errors
        self._interval_seconds = interval_seconds
        self._lock = Lock()
        self._samples: deque[JsonObject] = deque()
        self._dropped_count = 0
        self._batch: JsonObject | None = None
        self._refused_key: str | None = None
        self._wake = Event()
        self._stop_requested = False
        self._thread: Thread | None = None

    def add(self, sample: JsonObject) -> None:
        with self._lock:
            if len(self._samples) >= _BUFFER_LIMIT:
                self._samples.popleft()
                self._dropped_count += 1
            self._samples.append(sample)
            # Started by the first measurement, as most agents make none.
            if self._thread is None and not self._stop_requested:
                self._thread = start_thread(self._run, "metrics")

    def push_now(self) -> None:
        """Push without waiting for the interval, as at the end of a task."""
        self._wake.set()

    def stop(self) -> None:
        """Push the remaining samples if that takes no longer than a second."""
        self._stop_requested = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        if self._transport is not None:
            self._transport.abort()
            self._transport.close()

    def _run(self) -> None:
        self._transport = self._connect()
        is_last = False
        while not is_last:
            self._wake.wait(self._interval_seconds)
            self._wake.clear()
            # Read before the push, so that samples which came before the stop are pushed as well.
            is_last = self._stop_requested
            while self._push(self._transport):
                continue

    def _push(self, transport: Transport) -> bool:
        """Push a batch; return whether there may be another to push at once."""
        key, batch = self._key(), self._next_batch()
        if key is None or batch is None or key == self._refused_key:
            return False
        try:
            transport.post("/metrics/samples", batch, key=key, timeout=_ANSWER_SECONDS)
        except ApiUnavailable as unavailable:
            log.debug("metrics wait", extra={"fields": {"why": str(unavailable)}})
            return False
        except Problem as problem:
            if problem.is_of_key or problem.code == "worker_gone":
                # The worker registers anew, and the batch goes with its next key.
                self._refused_key = key
                return False
            self._errors.add(f"metrics refused: {problem}")
        except Exception as error:  # whatever it is, the same batch would fail again
            log.exception("metrics could not be pushed")
            self._errors.add(f"metrics: {error}")
        self._batch = None
        return True

    def _next_batch(self) -> JsonObject | None:
        with self._lock:
            # A batch that was sent keeps its id and its samples until it is answered.
            if self._batch is None and self._samples:
                count = min(_BATCH, len(self._samples))
                samples = [self._samples.popleft() for _ in range(count)]
                self._batch = {"batch_id": str(uuid.uuid4()), "samples": samples}
            dropped_count, self._dropped_count = self._dropped_count, 0
        if dropped_count:
            self._errors.add(f"{dropped_count} measurements were dropped while the control plane was away")
        return self._batch
