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
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.usage import UsageSampler
from worker_agent.wire import LeaseRef, Registration, WorkerState, read_gone_reason

_MAX_RETRY_SECONDS = 1.0
_MAX_ANSWER_SECONDS = 5.0
_STOP_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """What the daemon is about, as a heartbeat tells it.

    `number` counts the registrations; `posting` is the version of the limits that are applied.
    """

    registration_number: int = 0
    registration: Registration | None = None
    state: WorkerState = "ready"
    lease: LeaseRef | None = None
    handler_pid: int | None = None
    assignment: str | None = None


class HeartbeatSender:
    """`standing` is read before every beat; what comes back is posted as an event."""

    def __init__(
        self,
        transport: Transport,
        *,
        status: Callable[[], DaemonStatus],
        post: Callable[[ev.Event], None],
        errors: LocalErrors,
    ) -> None:
        self._transport = transport
        self._status = status
        self._post = post
        self._errors = errors
        self._wake = Event()
        self._stop_requested = Event()
        self._failures = 0
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
        """Beat once if there is anyone to beat for; the seconds until the next turn, None until woken."""
        status = self._status()
        registration = status.registration
        if registration is None or status.registration_number == self._gone_registration:
            return None
        started_at = time.monotonic()
        try:
            self._send(status, registration, sampler)
        except Exception as error:  # a heart that stops costs the worker its life
            return self._note_failure(error, registration.heartbeat_interval_seconds)
        self._failures = 0
        return max(0.0, registration.heartbeat_interval_seconds - (time.monotonic() - started_at))

    def _note_failure(self, error: Exception, interval: float) -> float:
        self._failures += 1
        if self._stop_requested.is_set():
            return 0.0
        if not isinstance(error, ApiUnavailable | Problem):
            log.exception("heartbeat crashed")
        log.warning("heartbeat missed", extra={"fields": {"failures": self._failures, "why": str(error)}})
        self._errors.add(f"heartbeat: {error}")
        # What was refused will be refused again; what was not answered may be answered at any moment.
        return interval if isinstance(error, Problem) else full_jitter(self._failures, cap=_MAX_RETRY_SECONDS)

    def _send(self, status: DaemonStatus, registration: Registration, sampler: UsageSampler) -> None:
        cpu_percent, memory_mb = sampler.sample(status.handler_pid)
        errors = self._errors.take()
        sent_at = time.monotonic()
        try:
            directives, assignment = Client(self._transport, registration).heartbeat(
                state=status.state,
                lease=status.lease,
                cpu_percent=cpu_percent,
                memory_mb=memory_mb,
                errors=errors,
                assignment=status.assignment,
                timeout=max(1.0, min(registration.heartbeat_interval_seconds, _MAX_ANSWER_SECONDS)),
            )
        except ApiUnavailable:
            self._errors.put_back(errors)
            raise
        except Problem as problem:
            if not _means_worker_gone(problem):
                raise
            log.warning("written off", extra={"fields": {"why": str(problem), "reason": problem.reason}})
            self._gone_registration = status.registration_number
            self._post(ev.WorkerGone(status.registration_number, read_gone_reason(problem.reason)))
        else:
            self._post(ev.HeartbeatAnswered(status.registration_number, sent_at, directives, assignment))


def _means_worker_gone(problem: Problem) -> bool:
    """An unknown key or worker is no better than a lost one: the remedy, to register again, is the same."""
    return problem.code == "worker_gone" or problem.status in (401, 404)
