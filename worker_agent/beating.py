"""The heartbeat: a thread with a connection of its own, which no handler and no long poll can hold up."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

from worker_agent import events as ev
from worker_agent.backoff import full_jitter
from worker_agent.client import Client
from worker_agent.errors import LocalErrors
from worker_agent.transport import Away, Problem, Transport
from worker_agent.usage import Sampler
from worker_agent.wire import LeaseRef, Registration, WorkerState, read_gone_reason

_LONGEST_RETRY_SECONDS = 1.0
_LONGEST_ANSWER_SECONDS = 5.0
_LAST_SECONDS = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the daemon is about, as a heartbeat tells it.

    `number` counts the registrations; `posting` is the version of the limits that are applied.
    """

    number: int = 0
    registration: Registration | None = None
    state: WorkerState = "ready"
    lease: LeaseRef | None = None
    handler_pid: int | None = None
    posting: str | None = None


class Heart:
    """`standing` is read before every beat; what comes back is posted as an event."""

    def __init__(
        self,
        transport: Transport,
        *,
        standing: Callable[[], Standing],
        post: Callable[[ev.Event], None],
        errors: LocalErrors,
    ) -> None:
        self._transport = transport
        self._standing = standing
        self._post = post
        self._errors = errors
        self._wake = Event()
        self._stopped = Event()
        self._failures = 0
        self._written_off = 0
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def beat_now(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()
        self._transport.abort()
        self._thread.join(_LAST_SECONDS)
        self._transport.close()

    def _run(self) -> None:
        sampler = Sampler()
        while not self._stopped.is_set():
            self._wake.wait(self._turn(sampler))
            self._wake.clear()

    def _turn(self, sampler: Sampler) -> float | None:
        """Beat once if there is anyone to beat for; the seconds until the next turn, None until woken."""
        standing = self._standing()
        registration = standing.registration
        if registration is None or standing.number == self._written_off:
            return None
        started = time.monotonic()
        try:
            self._beat(standing, registration, sampler)
        except Exception as error:  # a heart that stops costs the worker its life
            return self._missed(error, registration.heartbeat_interval_seconds)
        self._failures = 0
        return max(0.0, registration.heartbeat_interval_seconds - (time.monotonic() - started))

    def _missed(self, error: Exception, interval: float) -> float:
        self._failures += 1
        if self._stopped.is_set():
            return 0.0
        if not isinstance(error, Away | Problem):
            log.exception("heartbeat crashed")
        log.warning("heartbeat missed", extra={"fields": {"failures": self._failures, "why": str(error)}})
        self._errors.add(f"heartbeat: {error}")
        # What was refused will be refused again; what was not answered may be answered at any moment.
        return interval if isinstance(error, Problem) else full_jitter(self._failures, cap=_LONGEST_RETRY_SECONDS)

    def _beat(self, standing: Standing, registration: Registration, sampler: Sampler) -> None:
        cpu_percent, memory_mb = sampler.sample(standing.handler_pid)
        errors = self._errors.take()
        sent_at = time.monotonic()
        try:
            directives, posting = Client(self._transport, registration).heartbeat(
                state=standing.state,
                lease=standing.lease,
                cpu_percent=cpu_percent,
                memory_mb=memory_mb,
                errors=errors,
                posting=standing.posting,
                timeout=max(1.0, min(registration.heartbeat_interval_seconds, _LONGEST_ANSWER_SECONDS)),
            )
        except Away:
            self._errors.put_back(errors)
            raise
        except Problem as refused:
            if not _means_gone(refused):
                raise
            log.warning("written off", extra={"fields": {"why": str(refused), "reason": refused.reason}})
            self._written_off = standing.number
            self._post(ev.Gone(standing.number, read_gone_reason(refused.reason)))
        else:
            self._post(ev.BeatAnswered(standing.number, sent_at, directives, posting))


def _means_gone(refused: Problem) -> bool:
    """An unknown key or worker is no better than a lost one: the remedy, to register again, is the same."""
    return refused.code == "worker_gone" or refused.status in (401, 404)
