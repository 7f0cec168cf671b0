"""Runs the calls that the state machine asks for, each on its own thread, and posts one answer for each."""

import logging
from collections.abc import Callable
from functools import partial
from threading import Event, Lock

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.backoff import CAP_SECONDS, full_jitter
from worker_agent.client import Client, register
from worker_agent.lifetime import Lifetime
from worker_agent.local_errors import LocalErrors
from worker_agent.log_sender import LogSender
from worker_agent.outage import Outage
from worker_agent.progress import ProgressSender
from worker_agent.threads import start_thread
from worker_agent.transport import ApiUnavailable, Problem, Transport
from worker_agent.wire import JsonObject, Lease, LeaseRef, LogStream, Progress, read_gone_reason

_QUICK_SECONDS = 1.0
# Between tries while nobody answers, at most: whoever answers, be it to say "later", is not to be pressed.
_OUTAGE_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_CALLS = "calls"
log = logging.getLogger(__name__)

PostEvent = Callable[[ev.Event], None]


class _PendingCall:
    """Call under way; the thread that first sets `answered_event`, under the lock, posts the answer."""

    def __init__(self, call: act.Call) -> None:
        self.call = call
        self.answered_event = Event()


class CallRunner:
    """Calls to the control plane; `profile` is the body of a registration, `pool_key` gives its credential."""

    def __init__(
        self,
        transport: Transport,
        *,
        profile: JsonObject,
        pool_key: Callable[[], str],
        post: PostEvent,
        errors: LocalErrors,
        outage: Outage,
        lifetime: Lifetime | None = None,
    ) -> None:
        self._transport = transport
        self._lifetime = lifetime
        self._profile = profile
        self._pool_key = pool_key
        self._post = post
        self._errors = errors
        self._outage = outage
        self._client: Client | None = None
        self._progress: ProgressSender | None = None
        self._log: LogSender | None = None
        self._pending: _PendingCall | None = None
        self._lock = Lock()
        self._is_unanswered = False

    def start_call(self, call: act.Call) -> None:
        self._pending = pending = _PendingCall(call)
        if start_thread(partial(self._run_call, pending), type(call).__name__) is None:
            self._go_on_without_thread(pending)

    def abort(self) -> None:
        """Answer the call under way, if any, with CallAborted, and stop waiting for it."""
        if self._pending is not None and self._post_answer(self._pending, ev.CallAborted()):
            self._transport.abort()

    def report_progress(self, lease: Lease, progress: Progress) -> None:
        if self._progress is None or self._progress.ref != lease.ref:
            self._close_progress()
            self._progress = ProgressSender(self._registered_client, lease.ref, self._post, self._errors)
        self._progress.put(progress)

    def open_log(self, lease: Lease) -> Callable[[LogStream, bytes], None]:
        """Begin to send the output of an attempt; return whom it is to be fed to."""
        self._log = LogSender(self._registered_client, lease.ref, self._errors)
        return self._log.feed

    def finish_log(self) -> None:
        """Send the last output of a handler that has ended, beside whatever else is under way."""
        if self._log is not None:
            # Where no thread can be started, whoever reports the end of the attempt sends it first.
            start_thread(self._log.finish, "last output")

    def close(self) -> None:
        self.abort()
        self._close_progress()
        self._transport.abort()
        self._transport.close()

    @property
    def _registered_client(self) -> Client:
        assert self._client is not None, "the machine registers before it makes any other call"
        return self._client

    def _close_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()

    def _go_on_without_thread(self, pending: _PendingCall) -> None:
        """Make the call on this thread, or, as no handler could be watched either, put off leasing for a second."""
        if isinstance(pending.call, act.RequestLease):
            self._errors.add("no thread can be started here, so no task is taken")
            pending.answered_event.wait(_PAUSE_SECONDS)
            self._post_answer(pending, ev.RetryLater())
        else:
            self._run_call(pending)

    def _run_call(self, pending: _PendingCall) -> None:
        call = pending.call
        cap = _OUTAGE_SECONDS if self._is_unanswered else CAP_SECONDS
        # An abort sets the event, which ends the backoff without making the call.
        if not pending.answered_event.wait(call.wait_seconds + full_jitter(call.attempt, cap=cap)):
            self._post_answer(pending, self._answer_to(pending))

    def _post_answer(self, pending: _PendingCall, answer: ev.Answer) -> bool:
        # An abort may race with the answer; the machine must get exactly one of them.
        with self._lock:
            if pending.answered_event.is_set():
                return False
            pending.answered_event.set()
        self._post(answer)
        return True

    def _answer_to(self, pending: _PendingCall) -> ev.Answer:
        try:
            answer = self._make_call(pending.call)
        except ApiUnavailable as unavailable:
            if self._client is None and unavailable.is_foreign_refusal:
                # Until the first registration a wrong address is likelier than a trouble that passes.
                self._note_error(pending, unavailable)
                return ev.RegistrationRefused(False, str(unavailable))
            self._is_unanswered = unavailable.status is None
            if not pending.answered_event.is_set():  # else an abort cut it off
                self._outage.note_failure(_CALLS, unavailable)
            return ev.RetryLater(unavailable.retry_after)
        except Problem as problem:
            self._is_unanswered = False
            self._outage.note_answer(_CALLS)
            self._note_error(pending, problem)
            return _refusal(pending.call, problem)
        except Exception as error:  # whatever it is, the machine waits for an answer
            self._note_error(pending, error, exc_info=True)
            if isinstance(pending.call, act.Report):
                # One that could not even be encoded would fail in every further attempt.
                return ev.CallRefused(f"unsendable: {error!r}")
            return ev.RetryLater()
        self._is_unanswered = False
        self._outage.note_answer(_CALLS)
        return answer

    def _note_error(self, pending: _PendingCall, error: Exception, *, exc_info: bool = False) -> None:
        if pending.answered_event.is_set():  # an abort cut it off
            return
        call, name = pending.call, type(pending.call).__name__
        fields = {"call": name, "attempt": call.attempt, "why": str(error)}
        log.warning("call failed", extra={"fields": fields}, exc_info=exc_info)
        self._errors.add(f"{name}: {error}")

    def _make_call(self, call: act.Call) -> ev.Answer:
        match call:
            case act.Register(request_id=request_id):
                # By the member, so that a control plane too old to know it serves workers without an end.
                end = {} if self._lifetime is None else {"seconds_left": round(self._lifetime.seconds_left, 1)}
                body = self._profile | end | {"request_id": request_id}
                registration = register(self._transport, body, self._pool_key())
                self._client = Client(self._transport, registration)
                return ev.Registered(registration)
            case act.RequestLease():
                lease, seconds = self._registered_client.lease(call.request_id)
                return ev.NoTask(quick=seconds < _QUICK_SECONDS) if lease is None else ev.LeaseGranted(lease)
            case act.Goodbye():
                self._registered_client.goodbye(call.reason)
                return ev.GoodbyeAccepted()
            case _:
                return self._send_report(call)

    def _send_report(self, call: act.Report) -> ev.Answer:
        lost_code = self._flush_progress(call.lease.ref)
        if lost_code is not None:
            return ev.ReportFenced(lost_code)
        if self._log is not None and self._log.ref == call.lease.ref:
            self._log.finish()
        client, ref, next_lease = self._registered_client, call.lease.ref, None
        match call:
            case act.ReportComplete(result=result, usage=usage, quality=quality, next_request_id=next_id):
                next_lease = client.complete(ref, result, usage=usage, quality=quality, next_request_id=next_id)
            case act.ReportFail(error=error, usage=usage):
                client.fail(ref, error, usage=usage)
            case act.Release(reason=reason, delay_seconds=delay, waits_for_model=model):
                client.release(ref, reason, delay_seconds=delay, waits_for_model=model)
        return ev.ReportAccepted(next_lease)

    def _flush_progress(self, ref: LeaseRef) -> str | None:
        """Send the last progress, as the next attempt may need its checkpoint; return a code when the lease is lost."""
        if self._progress is None or self._progress.ref != ref:
            return None
        lost_code = self._progress.flush()
        self._progress.close()
        return lost_code


def _refusal(call: act.Call, problem: Problem) -> ev.Answer:
    if isinstance(call, act.Register):
        return _registration_refusal(problem)
    if problem.code == "worker_gone":
        return ev.CallerGone(read_gone_reason(problem.reason))
    if problem.is_of_key:
        return ev.CallerGone("lost")
    if isinstance(call, act.Report) and problem.status in (404, 409):
        return ev.ReportFenced(problem.code)
    return ev.CallRefused(str(problem))


def _registration_refusal(problem: Problem) -> ev.Answer:
    """Event for a refused registration; a worker that is gone, or whose name another has, must not register again."""
    if problem.code in ("worker_gone", "name_taken"):
        return ev.CallerGone("stopped" if problem.reason == "stopped" else "superseded")
    return ev.RegistrationRefused(problem.is_of_key or problem.status == 403, str(problem))
