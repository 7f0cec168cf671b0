"""The worker's half of the contract as a state machine without IO: events in, actions out.

It knows no clock, no network and no process; times are passed in. The rules that it keeps, whatever happens in whatever
order: one call and one handler at a time; nothing is reported about a lease that was fenced off; once the worker winds
down it takes no other lease; every lease ends in one complete, fail or release, or is lost, or is left to the goodbye.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.actions import Action, ExitCode
from worker_agent.ending import Ending
from worker_agent.reports import report_of, report_of_refusal
from worker_agent.states import MOVES, Intent, State
from worker_agent.wire import Directive, Lease, Posting, Registration, WorkerState

_GOODBYE_ATTEMPTS = 3
_QUICK_ANSWERS = 3


class UnexpectedEvent(Exception):
    """An event that cannot happen in this state: a bug in the shell around the machine."""


class Machine:
    """`new_id` makes request ids; `grace_seconds` is what a task gets to finish in after a stop."""

    def __init__(self, *, new_id: Callable[[], str], grace_seconds: float) -> None:
        self.state = State.UNREGISTERED
        self.ending = Ending(grace_seconds)
        self.registration: Registration | None = None
        self.registrations = 0
        self.lease: Lease | None = None
        self.posting: Posting | None = None
        self._new_id = new_id
        self._now = 0.0
        self._renewed_at = 0.0
        self._call: act.Call | None = None
        self._report: act.Report | None = None
        self._fenced = False
        self._unproven = 0
        self._quick_answers = 0

    @property
    def wire_state(self) -> WorkerState:
        if self.ending.near:
            return "draining"
        return "ready" if self.lease is None else "busy"

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """What to do about `event`, in order; `now` is a monotonic time in seconds.

        Raises UnexpectedEvent when the event cannot happen in this state.
        """
        self._now = now
        if self.state is State.STOPPED:
            return []
        kind = type(event)
        reaction = REACTIONS.get((self.state, kind)) or ANYTIME.get(kind)
        if reaction is None:
            raise UnexpectedEvent(f"{kind.__name__} while {self.state.value}")
        if self.ending.gone is not None and isinstance(event, ev.Answer):
            return self._free()
        return reaction(self, event)

    # The one place where the state changes, and the three that use it most.

    def _move(self, to: State) -> None:
        if to is not self.state and to not in MOVES[self.state]:
            raise UnexpectedEvent(f"no move from {self.state.value} to {to.value}")
        self.state = to

    def _make(self, state: State, call: act.Call) -> list[Action]:
        self._move(state)
        self._call = call
        return [call]

    def _free(self, attempt: int = 0) -> list[Action]:
        """Nothing is held and no call is under way: what next?"""
        self.lease, self._report, self._call, self._fenced = None, None, None, False
        if self.ending.gone is not None:
            self.registration = None
        if self.registration is not None:
            if self.ending.near:
                return self._make(State.LEAVING, act.Goodbye(reason=self.ending.reason))
            return self._make(State.LEASING, act.RequestLease(request_id=self._new_id(), attempt=attempt))
        if self.ending.final:
            return self._exit(self.ending.code)
        self.ending.gone = None
        return self._make(State.UNREGISTERED, act.Register(attempt=self._unproven))

    def _exit(self, code: ExitCode, message: str = "") -> list[Action]:
        self._move(State.STOPPED)
        return [act.Exit(code, restart=self.ending.restart, message=message or self.ending.reason)]

    # Registering and leasing.

    def _go_on(self, _: ev.Begin | ev.Fenced) -> list[Action]:
        return self._free()

    def _registered(self, event: ev.Registered) -> list[Action]:
        self.registration = event.registration
        self.registrations += 1
        self._unproven += 1
        if self.ending.near:
            return self._free()
        self._move(State.READY)
        return [act.BeatNow()]

    def _registration_refused(self, event: ev.RegistrationRefused) -> list[Action]:
        return self._exit(ExitCode.KEY_REFUSED if event.key_refused else ExitCode.USAGE, event.message)

    def _leased(self, event: ev.Leased | ev.Reported) -> list[Action]:
        if event.lease is None:
            return self._free()
        self.lease, self._renewed_at, self._quick_answers = event.lease, self._now, 0
        if self.ending.near:
            return self._send(act.Release(lease=event.lease, reason=self.ending.reason))
        self._move(State.RUNNING)
        return [act.RunHandler(event.lease)]

    def _nothing_to_do(self, event: ev.NothingToDo) -> list[Action]:
        # A control plane that answers at once must not be asked in a tight loop, but should still be asked often.
        self._quick_answers = min(self._quick_answers + 1, _QUICK_ANSWERS) if event.quick else 0
        return self._free(self._quick_answers)

    def _lease_refused(self, _: ev.Refused) -> list[Action]:
        if self.ending.near:
            return self._free()
        self._move(State.READY)
        return []

    # Running and reporting.

    def _progressed(self, event: ev.Progressed) -> list[Action]:
        if self.state is not State.RUNNING or self.lease is None:
            return []
        return [act.ReportProgress(self.lease, event.progress)]

    def _handler_over(self, event: ev.HandlerOver) -> list[Action]:
        if self._fenced or self.ending.gone is not None:
            return self._free()
        assert self.lease is not None
        return self._send(report_of(event, self.lease, next_request_id=self._new_id(), reason=self.ending.reason))

    def _send(self, report: act.Report) -> list[Action]:
        """Finished work must survive an outage: after a long silence, renew the lease before it is reported."""
        assert self.registration is not None
        silent = self._now - self._renewed_at
        renew = silent > self.registration.lease_seconds / 2 and self.ending.intent < Intent.HALT
        if renew and not isinstance(report, act.Release):
            self._report = replace(report, attempt=0, wait_seconds=0.0)
            self._move(State.RENEWING)
            return [act.BeatNow()]
        return self._hand_in(report)

    def _hand_in(self, report: act.Report) -> list[Action]:
        if isinstance(report, act.ReportComplete) and self.ending.near:
            report = replace(report, next_request_id=None)
        return self._make(State.REPORTING, report)

    def _report_refused(self, event: ev.Refused) -> list[Action]:
        report = report_of_refusal(self._call, event)
        # A lease about which nothing is accepted is left to expire.
        return self._free() if report is None else self._send(report)

    # Answers that any call may get.

    def _retry(self, event: ev.ApiAway) -> list[Action]:
        assert self._call is not None
        call = replace(self._call, attempt=self._call.attempt + 1, wait_seconds=event.retry_after)
        if isinstance(call, act.Report):
            return self._free() if self.ending.intent is Intent.HALT else self._send(call)
        if isinstance(call, act.Goodbye):
            enough = self.ending.intent is Intent.HALT or call.attempt >= _GOODBYE_ATTEMPTS
            return self._exit(ExitCode.STOPPED) if enough else self._make(self.state, call)
        return self._free() if self.ending.near else self._make(self.state, call)

    def _settle(self, _: ev.CallAborted | ev.GoodbyeSaid | ev.Refused) -> list[Action]:
        return self._exit(ExitCode.STOPPED) if self.state is State.LEAVING else self._free()

    def _caller_gone(self, event: ev.CallerGone) -> list[Action]:
        self.ending.gone = event.reason
        return self._free()

    # What comes with heartbeats.

    def _beat_answered(self, event: ev.BeatAnswered) -> list[Action]:
        if event.registration != self.registrations:
            return []
        self._unproven = 0
        self._renewed_at = max(self._renewed_at, event.sent_at)
        # For the next task: the one that runs keeps what it was started with.
        self.posting = event.posting or self.posting
        orders = [action for directive in event.directives for action in self._obey(directive)]
        if self.state is State.READY:
            orders += self._free()
        elif self.state is State.RENEWING and self._report is not None:
            orders += self._hand_in(self._report)
        return orders

    def _obey(self, directive: Directive) -> list[Action]:
        match directive.kind:
            case "cancel_task":
                return self._lose(directive.task_id, directive.token)
            case "drain" | "stop" | "restart":
                self.ending.direct(directive)
                return self._wind_down(Intent.DRAIN, hurry=directive.kind != "drain")
            case _:  # a newer control plane may know more than we do
                return []

    def _lease_lost(self, event: ev.LeaseLost) -> list[Action]:
        return self._lose(event.ref.task_id, event.ref.token)

    def _lose(self, task_id: str | None, token: int | None) -> list[Action]:
        if self.lease is None or task_id != self.lease.task_id or token not in (None, self.lease.token):
            return []
        # A report under way is answered the same, or was there first.
        return [] if self.state is State.REPORTING else self._interrupt(fenced=True)

    def _written_off(self, event: ev.Gone) -> list[Action]:
        if event.registration != self.registrations or self.ending.gone is not None or self.state is State.UNREGISTERED:
            return []
        self.ending.gone = event.reason
        return self._interrupt(fenced=True)

    def _interrupt(self, *, fenced: bool) -> list[Action]:
        """Let nothing go on; `fenced` says that nothing may be reported about it either."""
        match self.state:
            case State.READY | State.RENEWING:
                return self._free()
            case State.RUNNING:
                self._fenced = fenced
                self._move(State.KILLING)
                return [act.KillHandler()]
            case State.KILLING:
                self._fenced = self._fenced or fenced
                return []
            case _:
                return [act.AbortCall()]

    # Winding down.

    def _stop_signal(self, _: ev.StopSignal) -> list[Action]:
        return self._wind_down(self.ending.signal(), hurry=True)

    def _grace_over(self, _: ev.GraceOver) -> list[Action]:
        return self._wind_down(Intent.HALT, hurry=False)

    def _wind_down(self, intent: Intent, *, hurry: bool) -> list[Action]:
        is_news = self.ending.deepen(intent)
        if intent is Intent.HALT:
            return self._interrupt(fenced=False)
        grace = self.ending.take_grace() if hurry else None
        orders: list[Action] = [] if grace is None else [act.SetAlarm(grace)]
        if not is_news:
            return orders
        match self.state:
            case State.READY:
                return orders + self._free()
            case State.UNREGISTERED | State.LEASING:
                return [*orders, act.AbortCall()]
            case _:
                return [*orders, act.BeatNow()]


# Any is the event: each key says which one its reaction receives.
_Reaction: TypeAlias = Callable[[Machine, Any], list[Action]]

_CALLING = (State.UNREGISTERED, State.LEASING, State.REPORTING, State.LEAVING)
_HANDLING = (State.RUNNING, State.KILLING)
_OVER = (ev.HandlerFinished, ev.HandlerFailed, ev.HandlerPostponed, ev.TimedOut, ev.HandlerKilled)

REACTIONS: Mapping[tuple[State, type], _Reaction] = {
    (State.UNREGISTERED, ev.Begin): Machine._go_on,
    (State.UNREGISTERED, ev.Registered): Machine._registered,
    (State.UNREGISTERED, ev.RegistrationRefused): Machine._registration_refused,
    (State.LEASING, ev.Leased): Machine._leased,
    (State.LEASING, ev.NothingToDo): Machine._nothing_to_do,
    (State.LEASING, ev.Refused): Machine._lease_refused,
    (State.REPORTING, ev.Reported): Machine._leased,
    (State.REPORTING, ev.Fenced): Machine._go_on,
    (State.REPORTING, ev.Refused): Machine._report_refused,
    (State.LEAVING, ev.GoodbyeSaid): Machine._settle,
    (State.LEAVING, ev.Refused): Machine._settle,
    **{(state, ev.ApiAway): Machine._retry for state in _CALLING},
    **{(state, ev.CallAborted): Machine._settle for state in _CALLING},
    **{(state, ev.CallerGone): Machine._caller_gone for state in _CALLING},
    **{(state, over): Machine._handler_over for state in _HANDLING for over in _OVER},
}
ANYTIME: Mapping[type, _Reaction] = {
    ev.BeatAnswered: Machine._beat_answered,
    ev.Gone: Machine._written_off,
    ev.LeaseLost: Machine._lease_lost,
    ev.Progressed: Machine._progressed,
    ev.StopSignal: Machine._stop_signal,
    ev.GraceOver: Machine._grace_over,
}
