"""The worker's half of the contract as a state machine without IO: events in, actions out.

It has no clock, no network and no process; times are passed in. Invariants, in any order of events: one call and one
handler at a time; nothing is reported about a fenced lease; once the worker winds down it takes no other lease; every
lease ends in one complete, fail or release, or is lost, or is left to the goodbye.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.actions import Action, ExitCode
from worker_agent.shutdown import Shutdown
from worker_agent.states import MOVES, Intent, State
from worker_agent.wire import Assignment, Directive, Lease, Registration, TaskError, WorkerState

_GOODBYE_ATTEMPTS = 3
_QUICK_ANSWERS = 3
# After a handler that could not be started, and doubled after each further one, before the next task is taken.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_REFUSED = "report_refused"
# In place of a detail that was refused.
_LEFT_OUT, _WHY_CHARACTERS = "left_out", 500
# Of a lease that was not renewed; as long as nobody has taken the task, a heartbeat renews it.
_EXPIRED = "lease_expired"


class UnexpectedEvent(Exception):
    """An event cannot happen in this state: a bug in the shell around the machine."""


class StateMachine:
    """State of one worker; `new_id` makes request ids, `grace_seconds` limits the running task after a stop."""

    def __init__(self, *, new_id: Callable[[], str], grace_seconds: float) -> None:
        self.state = State.UNREGISTERED
        self.shutdown = Shutdown(grace_seconds)
        self.registration: Registration | None = None
        self.registrations = 0
        self.lease: Lease | None = None
        self.assignment: Assignment | None = None
        self._new_id = new_id
        self._now = 0.0
        self._renewed_at = 0.0
        self._call: act.Call | None = None
        self._report: act.Report | None = None
        self._is_fenced = False
        self._has_renewed = False
        self._unconfirmed_registrations = 0
        self._quick_answers = 0
        self._pause_seconds = 0.0
        self._must_pause = False

    @property
    def wire_state(self) -> WorkerState:
        if self.shutdown.is_requested:
            return "draining"
        return "ready" if self.lease is None else "busy"

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Actions to take on `event` at monotonic time `now`, in order. Raises UnexpectedEvent if it cannot happen."""
        self._now = now
        if self.state is State.STOPPED:
            return []
        kind = type(event)
        reaction = REACTIONS.get((self.state, kind)) or ANYTIME_REACTIONS.get(kind)
        if reaction is None:
            raise UnexpectedEvent(f"{kind.__name__} while {self.state.value}")
        # Whatever the call was, its answer concerns a registration that is gone.
        if self.shutdown.gone_reason is not None and isinstance(event, ev.Answer):
            return self._next_step()
        return reaction(self, event)

    # The one place where the state changes, and the three that use it most.

    def _enter(self, target: State) -> None:
        if target is not self.state and target not in MOVES[self.state]:
            raise UnexpectedEvent(f"no move from {self.state.value} to {target.value}")
        self.state = target

    def _make_call(self, state: State, call: act.Call) -> list[Action]:
        self._enter(state)
        self._call = call
        return [call]

    def _next_step(self, attempt: int = 0) -> list[Action]:
        """Lease, say goodbye, register or exit: the next step when no task is held and no call is under way."""
        self.lease, self._report, self._call, self._is_fenced = None, None, None, False
        if self.shutdown.gone_reason is not None:
            self.registration = None
        if self.registration is not None:
            if self.shutdown.is_requested:
                return self._make_call(State.LEAVING, act.Goodbye(reason=self.shutdown.reason))
            pause, self._must_pause = self._pause_seconds if self._must_pause else 0.0, False
            lease_call = act.RequestLease(request_id=self._new_id(), attempt=attempt, wait_seconds=pause)
            return self._make_call(State.LEASING, lease_call)
        if self.shutdown.is_final:
            return self._exit(self.shutdown.exit_code)
        self.shutdown.gone_reason = None
        register_call = act.Register(request_id=self._new_id(), attempt=self._unconfirmed_registrations)
        return self._make_call(State.UNREGISTERED, register_call)

    def _exit(self, code: ExitCode, message: str = "") -> list[Action]:
        self._enter(State.STOPPED)
        return [act.Exit(code, restart=self.shutdown.restart, message=message or self.shutdown.reason)]

    # Registering and leasing.

    def _continue(self, _: ev.Begin) -> list[Action]:
        return self._next_step()

    def _on_registered(self, event: ev.Registered) -> list[Action]:
        self.registration = event.registration
        self.registrations += 1
        # Until a heartbeat is accepted, each further registration backs off longer.
        self._unconfirmed_registrations += 1
        if self.shutdown.is_requested:
            return self._next_step()
        self._enter(State.READY)
        return [act.SendHeartbeat()]

    def _on_registration_refused(self, event: ev.RegistrationRefused) -> list[Action]:
        return self._exit(ExitCode.KEY_REFUSED if event.key_refused else ExitCode.USAGE, event.message)

    def _on_lease(self, event: ev.LeaseGranted | ev.ReportAccepted) -> list[Action]:
        if event.lease is None:
            return self._next_step()
        self.lease, self._renewed_at, self._quick_answers = event.lease, self._now, 0
        self._has_renewed = False
        if self.shutdown.is_requested:
            return self._send_report(act.Release(lease=event.lease, reason=self.shutdown.reason))
        self._enter(State.RUNNING)
        return [act.RunHandler(event.lease)]

    def _on_no_task(self, event: ev.NoTask) -> list[Action]:
        # A control plane that answers at once must not be asked in a tight loop, but should still be asked often.
        self._quick_answers = min(self._quick_answers + 1, _QUICK_ANSWERS) if event.quick else 0
        return self._next_step(self._quick_answers)

    def _on_lease_refused(self, _: ev.CallRefused) -> list[Action]:
        if self.shutdown.is_requested:
            return self._next_step()
        self._enter(State.READY)
        return []

    # Running and reporting.

    def _on_progress(self, event: ev.ProgressMade) -> list[Action]:
        if self.state is not State.RUNNING or self.lease is None:
            return []
        return [act.ReportProgress(self.lease, event.progress)]

    def _note_start(self, event: ev.HandlerEnd) -> None:
        """Pause before the next lease where nothing can be started, as this worker would drain the queue in vain."""
        self._must_pause = isinstance(event, ev.HandlerNotStarted)
        doubled = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
        self._pause_seconds = doubled if self._must_pause else 0.0

    def _on_handler_end(self, event: ev.HandlerEnd) -> list[Action]:
        self._note_start(event)
        # Another worker may have the task by now; any report under the old token would be refused.
        if self._is_fenced or self.shutdown.gone_reason is not None:
            return self._next_step()
        assert self.lease is not None
        report = _report_of(event, self.lease, next_request_id=self._new_id(), reason=self.shutdown.reason)
        return self._send_report(report)

    def _send_report(self, report: act.Report) -> list[Action]:
        """Report the task, but renew its lease first after a long silence, as finished work must survive an outage."""
        assert self.registration is not None
        silence_seconds = self._now - self._renewed_at
        renew = silence_seconds > self.registration.lease_seconds / 2 and self.shutdown.intent < Intent.HALT
        # A release needs no valid lease: once it has expired, the task is free anyway.
        if renew and not isinstance(report, act.Release):
            self._report = replace(report, attempt=0, wait_seconds=0.0)
            self._enter(State.RENEWING)
            return [act.SendHeartbeat()]
        return self._make_report(report)

    def _on_report_fenced(self, event: ev.ReportFenced) -> list[Action]:
        """Give the task up; if its lease has only expired while the control plane was away, try to renew it, once."""
        may_renew = event.code == _EXPIRED and not self._has_renewed and self.shutdown.intent < Intent.HALT
        if not may_renew or not isinstance(self._call, act.ReportComplete | act.ReportFail):
            return self._next_step()
        self._has_renewed = True
        self._report = replace(self._call, attempt=0, wait_seconds=0.0)
        self._enter(State.RENEWING)
        return [act.SendHeartbeat()]

    def _make_report(self, report: act.Report) -> list[Action]:
        if isinstance(report, act.ReportComplete) and self.shutdown.is_requested:
            report = replace(report, next_request_id=None)
        return self._make_call(State.REPORTING, report)

    def _on_report_refused(self, event: ev.CallRefused) -> list[Action]:
        report = _report_of_refusal(self._call, event)
        # A lease about which nothing is accepted is left to expire.
        return self._next_step() if report is None else self._send_report(report)

    # Answers that any call may get.

    def _on_retry_later(self, event: ev.RetryLater) -> list[Action]:
        assert self._call is not None
        call = replace(self._call, attempt=self._call.attempt + 1, wait_seconds=event.retry_after)
        if isinstance(call, act.Report):
            return self._next_step() if self.shutdown.intent is Intent.HALT else self._send_report(call)
        if isinstance(call, act.Goodbye):
            gives_up = self.shutdown.intent is Intent.HALT or call.attempt >= _GOODBYE_ATTEMPTS
            return self._exit(ExitCode.STOPPED) if gives_up else self._make_call(self.state, call)
        return self._next_step() if self.shutdown.is_requested else self._make_call(self.state, call)

    def _on_call_settled(self, _: ev.CallAborted | ev.GoodbyeAccepted | ev.CallRefused) -> list[Action]:
        return self._exit(ExitCode.STOPPED) if self.state is State.LEAVING else self._next_step()

    def _on_caller_gone(self, event: ev.CallerGone) -> list[Action]:
        self.shutdown.gone_reason = event.reason
        return self._next_step()

    # What comes with heartbeats.

    def _on_heartbeat(self, event: ev.HeartbeatAnswered) -> list[Action]:
        if event.registration_number != self.registrations:
            return []
        self._unconfirmed_registrations = 0
        self._renewed_at = max(self._renewed_at, event.sent_at)
        # For the next task: the one that runs keeps what it was started with.
        self.assignment = event.assignment or self.assignment
        actions = [action for directive in event.directives for action in self._follow_directive(directive)]
        if self.state is State.READY:
            actions += self._next_step()
        elif self.state is State.RENEWING and self._report is not None:
            actions += self._make_report(self._report)
        return actions

    def _follow_directive(self, directive: Directive) -> list[Action]:
        match directive.kind:
            case "cancel_task":
                return self._lose_lease(directive.task_id, directive.token)
            case "drain" | "stop" | "restart":
                self.shutdown.note_directive(directive)
                return self._wind_down(Intent.DRAIN, with_deadline=directive.kind != "drain")
            case _:  # a newer control plane may know more than we do
                return []

    def _on_lease_lost(self, event: ev.LeaseLost) -> list[Action]:
        if event.code == _EXPIRED:
            # Its answer tells whether the lease is ours again, or the task is to be cancelled.
            return [act.SendHeartbeat()] if self.lease is not None and event.ref == self.lease.ref else []
        return self._lose_lease(event.ref.task_id, event.ref.token)

    def _lose_lease(self, task_id: str | None, token: int | None) -> list[Action]:
        if self.lease is None or task_id != self.lease.task_id or token not in (None, self.lease.token):
            return []
        # A report under way gets the same refusal, or was accepted before the lease was lost.
        return [] if self.state is State.REPORTING else self._interrupt(is_fenced=True)

    def _on_worker_gone(self, event: ev.WorkerGone) -> list[Action]:
        if (
            event.registration_number != self.registrations
            or self.shutdown.gone_reason is not None
            or self.state is State.UNREGISTERED
        ):
            return []
        self.shutdown.gone_reason = event.reason
        return self._interrupt(is_fenced=True)

    def _interrupt(self, *, is_fenced: bool) -> list[Action]:
        """End the call or handler under way; `is_fenced` forbids any report about the lease as well."""
        match self.state:
            case State.READY | State.RENEWING:
                return self._next_step()
            case State.RUNNING:
                self._is_fenced = is_fenced
                self._enter(State.KILLING)
                return [act.KillHandler()]
            case State.KILLING:
                self._is_fenced = self._is_fenced or is_fenced
                return []
            case _:
                return [act.AbortCall()]

    # Winding down.

    def _on_stop_signal(self, _: ev.StopSignal) -> list[Action]:
        return self._wind_down(self.shutdown.count_signal(), with_deadline=True)

    def _on_grace_expired(self, _: ev.GraceExpired) -> list[Action]:
        return self._wind_down(Intent.HALT, with_deadline=False)

    def _wind_down(self, intent: Intent, *, with_deadline: bool) -> list[Action]:
        has_changed = self.shutdown.raise_intent(intent)
        if intent is Intent.HALT:
            return self._interrupt(is_fenced=False)
        grace = self.shutdown.take_grace() if with_deadline else None
        actions: list[Action] = [] if grace is None else [act.SetAlarm(grace)]
        if not has_changed:
            return actions
        match self.state:
            case State.READY:
                return actions + self._next_step()
            # A long poll must not delay the shutdown; a report under way may finish.
            case State.UNREGISTERED | State.LEASING:
                return [*actions, act.AbortCall()]
            case _:
                return [*actions, act.SendHeartbeat()]


def _report_of(end: ev.HandlerEnd, lease: Lease, *, next_request_id: str, reason: str) -> act.Report:
    """Report on an ended handler; `reason` explains why a killed one was killed."""
    match end:
        case ev.HandlerFinished(result, usage, quality):
            return act.ReportComplete(
                lease=lease, result=result, usage=usage, quality=quality, next_request_id=next_request_id
            )
        case ev.HandlerFailed(error, usage):
            return act.ReportFail(lease=lease, error=error, usage=usage)
        case ev.HandlerNotStarted(why):
            return act.Release(lease=lease, reason=why)
        case ev.HandlerPostponed(postponement):
            return act.Release(
                lease=lease,
                reason=postponement.reason,
                delay_seconds=postponement.seconds,
                waits_for_model=postponement.model,
            )
        case ev.HandlerTimedOut(seconds, usage):
            error = TaskError(code="timeout", message=f"killed after {seconds:g} s", retryable=True)
            return act.ReportFail(lease=lease, error=error, usage=usage)
        case ev.HandlerKilled():
            return act.Release(lease=lease, reason=reason)


def _report_of_refusal(refused_call: act.Call | None, refusal: ev.CallRefused) -> act.ReportFail | None:
    """Failure to report in place of a report that was refused for good; None when that was refused as well."""
    if not isinstance(refused_call, act.ReportComplete | act.ReportFail):
        return None
    why = refusal.message
    if isinstance(refused_call, act.ReportComplete):
        error = TaskError(code="invalid_result", message=f"the service refused the result: {why}", retryable=False)
    elif refused_call.error.code == _REFUSED:
        return None
    elif refused_call.error.detail.keys() - {_LEFT_OUT}:
        # Its detail is the only part that a handler shapes freely: a passing failure must not end its task for that.
        error = replace(refused_call.error, detail={_LEFT_OUT: why[:_WHY_CHARACTERS]})
    else:
        error = TaskError(code=_REFUSED, message=why, retryable=False)
    return act.ReportFail(lease=refused_call.lease, error=error, usage=refused_call.usage)


# Any stands for the event, whose type is in the key.
_Reaction: TypeAlias = Callable[[StateMachine, Any], list[Action]]

_CALLING = (State.UNREGISTERED, State.LEASING, State.REPORTING, State.LEAVING)
_HANDLING = (State.RUNNING, State.KILLING)
_HANDLER_ENDS = (
    ev.HandlerNotStarted,
    ev.HandlerFinished,
    ev.HandlerFailed,
    ev.HandlerPostponed,
    ev.HandlerTimedOut,
    ev.HandlerKilled,
)

REACTIONS: Mapping[tuple[State, type], _Reaction] = {
    (State.UNREGISTERED, ev.Begin): StateMachine._continue,
    (State.UNREGISTERED, ev.Registered): StateMachine._on_registered,
    (State.UNREGISTERED, ev.RegistrationRefused): StateMachine._on_registration_refused,
    (State.LEASING, ev.LeaseGranted): StateMachine._on_lease,
    (State.LEASING, ev.NoTask): StateMachine._on_no_task,
    (State.LEASING, ev.CallRefused): StateMachine._on_lease_refused,
    (State.REPORTING, ev.ReportAccepted): StateMachine._on_lease,
    (State.REPORTING, ev.ReportFenced): StateMachine._on_report_fenced,
    (State.REPORTING, ev.CallRefused): StateMachine._on_report_refused,
    (State.LEAVING, ev.GoodbyeAccepted): StateMachine._on_call_settled,
    (State.LEAVING, ev.CallRefused): StateMachine._on_call_settled,
    **{(state, ev.RetryLater): StateMachine._on_retry_later for state in _CALLING},
    **{(state, ev.CallAborted): StateMachine._on_call_settled for state in _CALLING},
    **{(state, ev.CallerGone): StateMachine._on_caller_gone for state in _CALLING},
    **{(state, end): StateMachine._on_handler_end for state in _HANDLING for end in _HANDLER_ENDS},
}
ANYTIME_REACTIONS: Mapping[type, _Reaction] = {
    ev.HeartbeatAnswered: StateMachine._on_heartbeat,
    ev.WorkerGone: StateMachine._on_worker_gone,
    ev.LeaseLost: StateMachine._on_lease_lost,
    ev.ProgressMade: StateMachine._on_progress,
    ev.StopSignal: StateMachine._on_stop_signal,
    ev.GraceExpired: StateMachine._on_grace_expired,
}
