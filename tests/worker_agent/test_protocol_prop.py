"""What must never happen to the worker's state machine, whatever happens to it in whatever order."""

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.worker_agent.machines import (
    FAILED,
    FINISHED,
    GRACE,
    KILLED,
    LEASE_SECONDS,
    USAGE,
    cancel,
    machine,
    registration,
)
from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.states import State
from worker_agent.wire import Directive, Lease, LeaseRef, Progress

ENDINGS = ("drain", "stop", "restart")
GONE = st.sampled_from([*["lost"] * 8, "stopped", "superseded"])
# What ends the worker must be rare, or it never lives long enough to do anything wrong.
MOODS = st.sampled_from([*["kind"] * 7, "away", "gone", "refusing"])
RARELY = st.integers(0, 11).map(lambda number: number == 11)


class Shell(RuleBasedStateMachine):
    """Obeys the machine, and checks every order that it gets.

    Events wait in one queue, as they do in the daemon, so that any two of them can cross.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = machine()
        self.now = 0.0
        self.queue: deque[ev.Event] = deque()
        self.call: act.Call | None = None
        self.running: Lease | None = None
        self.handler_is_over = False
        self.alarm = False
        self.signals = 0
        self.winding_down = False
        self.halted = False
        self.exited = False
        self.lost: set[LeaseRef] = set()
        self.over: set[LeaseRef] = set()
        self.deliver(ev.Begin())

    def deliver(self, event: ev.Event) -> None:
        before = self.machine.lease
        self.foresee(event)
        for action in self.machine.handle(event, self.now):
            self.perform(action)
        if before is not None and before != self.machine.lease:
            self.let_go(before, event)

    def foresee(self, event: ev.Event) -> None:
        """Note what the event forbids, before the machine hears of it."""
        held, state = self.machine.lease, self.machine.state
        if isinstance(event, ev.HandlerOver):
            self.running, self.handler_is_over = None, False
        if isinstance(event, ev.StopSignal):
            self.signals += 1
        self.halted |= self.signals > 1 or isinstance(event, ev.GraceOver)
        self.winding_down |= self.halted or self.signals > 0 or self.names(event, *ENDINGS)
        if held is not None and state is not State.REPORTING and self.says_lost(event, held):
            self.lost.add(held.ref)
        if held is not None and self.is_current(event, ev.Gone):
            self.lost.add(held.ref)

    def is_current(self, event: ev.Event, kind: type) -> bool:
        return isinstance(event, kind) and getattr(event, "registration", 0) == self.machine.registrations

    def names(self, event: ev.Event, *kinds: str) -> bool:
        if not isinstance(event, ev.BeatAnswered) or not self.is_current(event, ev.BeatAnswered):
            return False
        return any(each.kind in kinds for each in event.directives)

    def says_lost(self, event: ev.Event, held: Lease) -> bool:
        if isinstance(event, ev.LeaseLost):
            return event.ref == held.ref
        return (
            isinstance(event, ev.BeatAnswered) and self.names(event, "cancel_task") and cancel(held) in event.directives
        )

    def let_go(self, lease: Lease, event: ev.Event) -> None:
        """Every lease ends once: by an accepted report, because it was lost, or by the goodbye of a halted worker."""
        assert lease.ref not in self.over
        self.over.add(lease.ref)
        accepted = isinstance(event, ev.Reported | ev.Fenced | ev.Refused | ev.CallerGone)
        assert accepted or lease.ref in self.lost or self.halted, f"{event} made the worker forget its lease"

    def perform(self, action: act.Action) -> None:
        assert not self.exited, f"{action} after the exit"
        match action:
            case act.RunHandler(lease):
                self.run(lease)
            case act.KillHandler():
                assert self.running is not None
                self.end_handler_with(KILLED)
            case act.AbortCall():
                self.abort()
            case act.SetAlarm(seconds):
                assert (seconds, self.alarm) == (GRACE, False)
                self.alarm = True
            case act.ReportProgress(lease=lease):
                assert self.running == lease
                assert lease.ref not in self.lost
            case act.Exit():
                assert (self.call, self.running) == (None, None)
                self.exited = True
            case act.BeatNow():
                pass
            case _:
                self.make(action)

    def run(self, lease: Lease) -> None:
        assert self.running is None, "two tasks at once"
        assert not self.winding_down, "a task begun while winding down"
        assert self.call is None
        self.running = lease

    def abort(self) -> None:
        if self.call is not None:
            self.answer(ev.CallAborted())

    def make(self, call: act.Call) -> None:
        assert self.call is None, f"{call} beside {self.call}"
        assert not any(isinstance(event, ev.Answer) for event in self.queue), "a call before the last one's answer"
        assert self.running is None, f"{call} beside a running task"
        if isinstance(call, act.RequestLease):
            assert not self.winding_down, "a lease asked for while winding down"
        if isinstance(call, act.Report):
            assert call.lease.ref not in self.over, "reported after its end"
            assert call.lease.ref not in self.lost, "reported after it was lost"
        if isinstance(call, act.ReportComplete) and self.winding_down:
            assert call.next_request_id is None
        self.call = call

    def answer(self, event: ev.Answer) -> None:
        self.call = None
        self.queue.append(event)

    def end_handler_with(self, end: ev.HandlerOver) -> None:
        if not self.handler_is_over:
            self.handler_is_over = True
            self.queue.append(end)


class World(Shell):
    """A control plane, a handler and an operator that do as they please."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = 0
        self.registered = 0
        self.slow = 0

    def calling(self, *kinds: type) -> bool:
        return isinstance(self.call, kinds)

    def new_lease(self) -> Lease:
        self.leases += 1
        return Lease(task_id=f"t-{self.leases % 3}", token=self.leases, agent_type="ranking")

    @precondition(lambda self: self.call is not None)
    @rule(mood=MOODS, more=st.booleans(), reason=GONE)
    def answer_call(self, mood: str, more: bool, reason: Any) -> None:
        match mood:
            case "kind":
                self.answer_kindly(more=more)
            case "away":
                self.answer(ev.ApiAway())
            case "gone":
                self.answer(ev.CallerGone(reason))
            case _:
                self.answer(self.refusal(fenced=more))

    def answer_kindly(self, *, more: bool) -> None:
        match self.call:
            case act.Register():
                self.registered += 1
                self.answer(ev.Registered(registration(self.registered)))
            case act.RequestLease():
                self.answer(ev.Leased(self.new_lease()) if more else ev.NothingToDo(quick=True))
            case act.Goodbye():
                self.answer(ev.GoodbyeSaid())
            case act.ReportComplete(next_request_id=str()) if more:
                self.answer(ev.Reported(self.new_lease()))
            case _:
                self.answer(ev.Reported())

    def refusal(self, *, fenced: bool) -> ev.Answer:
        if fenced and isinstance(self.call, act.Report):
            return ev.Fenced("lease_expired")
        if isinstance(self.call, act.Register):
            return ev.RegistrationRefused(key_refused=True, message="no")
        return ev.Refused("invalid", "no")

    @precondition(lambda self: self.running is not None)
    @rule(end=st.sampled_from([FINISHED, FAILED, ev.TimedOut(1.0, USAGE)]))
    def end_handler(self, end: Any) -> None:
        self.end_handler_with(end)

    @precondition(lambda self: self.running is not None and not self.handler_is_over)
    @rule()
    def progress(self) -> None:
        self.queue.append(ev.Progressed(Progress(percent=50.0)))

    @rule(is_late=RARELY)
    def answer_heartbeat(self, is_late: bool) -> None:
        self.beat(is_late=is_late)

    @rule(kind=st.sampled_from(ENDINGS), really=RARELY, is_late=RARELY)
    def direct(self, kind: str, really: bool, is_late: bool) -> None:
        self.beat(*[Directive(kind=kind)] * really, is_late=is_late)

    @precondition(lambda self: self.machine.lease is not None)
    @rule(is_other=st.booleans())
    def cancel(self, is_other: bool) -> None:
        held = self.machine.lease
        assert held is not None
        self.beat(Directive(kind="cancel_task", task_id=held.task_id, token=held.token + is_other))

    def beat(self, *directives: Directive, is_late: bool = False) -> None:
        number = self.machine.registrations - is_late
        self.queue.append(ev.BeatAnswered(number, self.now, directives))

    @rule(reason=GONE, is_late=RARELY)
    def write_off(self, reason: Any, is_late: bool) -> None:
        self.queue.append(ev.Gone(self.machine.registrations - is_late, reason))

    @precondition(lambda self: self.machine.lease is not None)
    @rule()
    def lose_lease(self) -> None:
        assert self.machine.lease is not None
        self.queue.append(ev.LeaseLost(self.machine.lease.ref, "lease_expired"))

    @rule(really=RARELY)
    def signal(self, really: bool) -> None:
        self.queue += [ev.StopSignal()] * really

    @precondition(lambda self: self.alarm)
    @rule()
    def end_grace(self) -> None:
        self.queue.append(ev.GraceOver())

    @rule(seconds=st.floats(0.0, LEASE_SECONDS))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(steps=st.integers(1, 4))
    def dawdle(self, steps: int) -> None:
        """Let events pile up, so that they cross."""
        self.slow = steps

    @invariant()
    def deliver_all(self) -> None:
        self.slow -= 1
        while self.queue and self.slow < 0:
            self.deliver(self.queue.popleft())

    # Whatever has happened, with everybody's good will it goes on, and it ends when it is told to.

    def teardown(self) -> None:
        self.be_kind(until_asking=not self.winding_down)
        assert self.exited or self.winding_down or self.calling(act.RequestLease)
        self.queue += [ev.StopSignal(), ev.StopSignal()]
        self.be_kind(until_asking=False)
        assert self.exited

    def be_kind(self, *, until_asking: bool) -> None:
        for _ in range(100):
            if self.queue:
                self.deliver(self.queue.popleft())
            elif self.exited or (until_asking and self.calling(act.RequestLease)):
                return
            elif self.call is not None:
                self.answer_kindly(more=False)
            elif self.running is not None:
                self.end_handler_with(FINISHED)
            else:
                self.beat()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
