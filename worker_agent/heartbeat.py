"""The heartbeat: a thread with a connection of its own, which no handler and no long poll can hold up."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

from worker_agent import events as ev
from worker_agent.backoff import full_jitter
from worker_agent.client import Client
from worker_agent.local_errors import LocalErrors
from worker_agent.outage import Outage
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.usage import UsageSampler
from worker_agent.wire import LeaseRef, Registration, WorkerState, read_gone_reason

_MAX_RETRY_SECONDS = 1.0
_MAX_ANSWER_SECONDS = 5.0
# For a control plane that needs longer, as one that is never waited for has no use of this worker.
_MAX_LATE_ANSWER_SECONDS = 10.0
_STOP_SECONDS = 1.0
_HEARTBEAT = "heartbeat"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """State of the daemon that a heartbeat reports; `assignment` is the version of the limits in force."""

    registration_number: int = 0
    registration: Registration | None = None
    state: WorkerState = "ready"
    lease: LeaseRef | None = None
    handler_pid: int | None = None
    not_ready_reason: str | None = None
    assignment: str | None = None


class HeartbeatSender:
    """Thread that reads `status` before each heartbeat and posts the answer as an event."""

    def __init__(
        self,
        transport: Transport,
        *,
        status: Callable[[], DaemonStatus],
        post: Callable[[ev.Event], None],
        errors: LocalErrors,
        outage: Outage,
    ) -> None:
        self._transport = transport
        self._status = status
        self._post = post
        self._errors = errors
        self._outage = outage
        self._wake = Event()
        self._stop_requested = Event()
        self._failures = 0
        self._late_seconds = 0.0  # to wait for an answer, as the last ones came late
        self._gone_registration = 0
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send_now(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stop_requested.set()
        self._wake.set()
        self._transport.abort()
        self._thread.join(_STOP_SECONDS)
        self._transport.close()

    def _run(self) -> None:
        sampler = UsageSampler()
        while not self._stop_requested.is_set():
            self._wake.wait(self._send_if_registered(sampler))
            self._wake.clear()

    def _send_if_registered(self, sampler: UsageSampler) -> float | None:
        """Send a heartbeat if registered; return the seconds until the next, None to wait for a wake-up."""
        status = self._status()
        registration = status.registration
        # A registration that is gone gets no further heartbeat, until the machine has a new one.
        if registration is None or status.registration_number == self._gone_registration:
            return None
        started_at = time.monotonic()
        try:
            self._send(status, registration, sampler)
        except Exception as error:  # without heartbeats the worker counts as lost
            return self._note_failure(error, registration.heartbeat_interval_seconds)
        self._failures = 0
        self._outage.note_answer(_HEARTBEAT)
        return max(0.0, registration.heartbeat_interval_seconds - (time.monotonic() - started_at))

    def _note_failure(self, error: Exception, interval: float) -> float:
        self._failures += 1
        if self._stop_requested.is_set():
            return 0.0
        if isinstance(error, ApiUnavailable):
            self._outage.note_failure(_HEARTBEAT, error)
        else:
            is_refusal = isinstance(error, Problem)
            log.log(
                logging.WARNING if is_refusal else logging.ERROR,
                "heartbeat failed",
                extra={"fields": {"why": str(error)}},
                exc_info=not is_refusal,
            )
            self._errors.add(f"heartbeat: {error}")
        return _pause_after(error, self._failures, interval)

    def _send(self, status: DaemonStatus, registration: Registration, sampler: UsageSampler) -> None:
        cpu_percent, memory_mb = sampler.sample(status.handler_pid)
        errors = self._errors.take()
        seconds = max(1.0, min(registration.heartbeat_interval_seconds, _MAX_ANSWER_SECONDS), self._late_seconds)
        # Before the call, as the control plane renews the lease at some moment during it.
        sent_at = time.monotonic()
        try:
            directives, assignment = Client(self._transport, registration).heartbeat(
                state=status.state,
                lease=status.lease,
                cpu_percent=cpu_percent,
                memory_mb=memory_mb,
                errors=errors,
                not_ready_reason=status.not_ready_reason,
                assignment=status.assignment,
                timeout=seconds,
            )
        except ApiUnavailable as unavailable:
            if unavailable.is_late:
                self._late_seconds = min(2 * seconds, _MAX_LATE_ANSWER_SECONDS)
            # Not after a refusal, as these errors may be its reason.
            self._errors.put_back(errors)
            raise
        except Problem as problem:
            if not _means_worker_gone(problem):
                raise
            log.warning("written off", extra={"fields": {"why": str(problem), "reason": problem.reason}})
            self._gone_registration = status.registration_number
            self._post(ev.WorkerGone(status.registration_number, read_gone_reason(problem.reason)))
        else:
            # Twice what this one took, so that the limit comes down again with the trouble.
            self._late_seconds = min(self._late_seconds, 2 * (time.monotonic() - sent_at))
            self._post(ev.HeartbeatAnswered(status.registration_number, sent_at, directives, assignment))


def _pause_after(error: Exception, failures: int, interval: float) -> float:
    """Seconds until the next heartbeat: an outage may end at any moment, but whoever names a time means it."""
    if isinstance(error, Problem):
        return interval  # it will repeat itself until something changes
    if not isinstance(error, ApiUnavailable):
        return full_jitter(failures, cap=_MAX_RETRY_SECONDS)
    cap = interval if error.is_foreign_refusal else _MAX_RETRY_SECONDS
    return max(min(error.retry_after, interval), full_jitter(failures, cap=cap))


def _means_worker_gone(problem: Problem) -> bool:
    """Whether the worker must register again; an unknown key or worker is treated like a lost one."""
    return problem.code == "worker_gone" or problem.is_of_key or problem.status == 404
