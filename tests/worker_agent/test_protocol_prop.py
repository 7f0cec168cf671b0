"""What must never happen to the worker's state machine, whatever happens to it in whatever order."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker_agent.machines import (
    FAILED,
    FINISHED,
    GRACE,
    KILLED,
    LEASE_SECONDS,
    NOT_STARTED,
    POSTPONED,
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


class Shell:
    """Obeys the machine, and checks every order that it gets.

    Events wait in one queue, as they do in the daemon, so that any two of them can cross.
    """

    def __init__(self) -> None:
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
        previous_lease = self.machine.lease
        self.foresee(event)
        for action in self.machine.handle(event, self.now):
            self.perform(action)
        assert self.winding_down or not self.machine.shutdown.is_requested, "nobody told it to wind down"
        if previous_lease is not None and previous_lease != self.machine.lease:
            self.let_go(previous_lease, event)

    def foresee(self, event: ev.Event) -> None:
        """Note what the event forbids, before the machine hears of it."""
        held, state = self.machine.lease, self.machine.state
        if isinstance(event, ev.HandlerEnd):
            self.running, self.handler_is_over = None, False
        if isinstance(event, ev.StopSignal):
            self.signals += 1
        self.halted |= self.signals > 1 or isinstance(event, ev.GraceExpired)
        self.winding_down |= self.halted or self.signals > 0 or self.names(event, *ENDINGS)
        if held is not None and state is not State.REPORTING and self.says_lost(event, held):
            self.lost.add(held.ref)
        if held is not None and self.is_current(event, ev.WorkerGone):
            self.lost.add(held.ref)

    def is_current(self, event: ev.Event, kind: type) -> bool:
        return isinstance(event, kind) and getattr(event, "registration_number", 0) == self.machine.registrations

    def names(self, event: ev.Event, *kinds: str) -> bool:
        if not isinstance(event, ev.HeartbeatAnswered) or not self.is_current(event, ev.HeartbeatAnswered):
            return False
        return any(each.kind in kinds for each in event.directives)

    def says_lost(self, event: ev.Event, held: Lease) -> bool:
        if isinstance(event, ev.LeaseLost):
            return event.ref == held.ref and event.code != "lease_expired"
        return (
            isinstance(event, ev.HeartbeatAnswered)
            and self.names(event, "cancel_task")
            and cancel(held) in event.directives
        )

    def let_go(self, lease: Lease, event: ev.Event) -> None:
        """Every lease ends once: by an accepted report, because it was lost, or by the goodbye of a halted worker."""
        assert lease.ref not in self.over
        self.over.add(lease.ref)
        accepted = isinstance(event, ev.ReportAccepted | ev.ReportFenced | ev.CallRefused | ev.CallerGone)
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
            case act.SendHeartbeat():
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

    def end_handler_with(self, end: ev.HandlerEnd) -> None:
        if not self.handler_is_over:
            self.handler_is_over = True
            self.queue.append(end)


class World(Shell):
    """A control plane, a handler and an operator that do as they please; what cannot happen now, does not."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = 0
        self.registered = 0
        self.slow = 0

    def go_on(self, move: str) -> None:
        getattr(self, move)()
        self.slow -= 1
        while self.queue and self.slow < 0:
            self.deliver(self.queue.popleft())

    def dawdle(self) -> None:
        """Let the events of the next moves pile up, so that they cross."""
        self.slow = 3

    # The control plane's answers to calls.

    def grant(self) -> None:
        match self.call:
            case act.Register():
                self.registered += 1
                self.answer(ev.Registered(registration(self.registered)))
            case act.RequestLease():
                self.answer(ev.LeaseGranted(self.new_lease()))
            case act.Goodbye():
                self.answer(ev.GoodbyeAccepted())
            case act.ReportComplete(next_request_id=str()):
                self.answer(ev.ReportAccepted(self.new_lease()))
            case act.ReportComplete() | act.ReportFail() | act.Release():
                self.answer(ev.ReportAccepted())
            case None:
                pass

    def grant_no_lease(self) -> None:
        if isinstance(self.call, act.RequestLease):
            self.answer(ev.NoTask(quick=True))
        elif isinstance(self.call, act.ReportComplete):
            self.answer(ev.ReportAccepted())

    def new_lease(self) -> Lease:
        self.leases += 1
        return Lease(task_id=f"t-{self.leases % 3}", token=self.leases, agent_type="ranking")

    def fence(self) -> None:
        if isinstance(self.call, act.Report):
            self.answer(ev.ReportFenced("lease_superseded"))

    def expire(self) -> None:
        if isinstance(self.call, act.Report):
            self.answer(ev.ReportFenced("lease_expired"))

    def refuse(self) -> None:
        if isinstance(self.call, act.Register):
            self.answer(ev.RegistrationRefused(key_refused=True, message="no"))
        elif self.call is not None:
            self.answer(ev.CallRefused("422 invalid: no"))

    def be_away(self) -> None:
        if self.call is not None:
            self.answer(ev.RetryLater())

    def forget_caller(self) -> None:
        if self.call is not None:
            self.answer(ev.CallerGone("lost"))

    def supersede_caller(self) -> None:
        if self.call is not None:
            self.answer(ev.CallerGone("superseded"))

    # The control plane's answers to heartbeats.

    def beat(self, *directives: Directive, late: bool = False) -> None:
        self.queue.append(ev.HeartbeatAnswered(self.machine.registrations - late, self.now, directives))

    def beat_late(self) -> None:
        self.beat(Directive(kind="stop"), late=True)

    def drain(self) -> None:
        self.beat(Directive(kind="drain"))

    def stop(self) -> None:
        self.beat(Directive(kind="stop"))

    def cancel(self) -> None:
        if self.machine.lease is not None:
            self.beat(cancel(self.machine.lease))

    def cancel_another(self) -> None:
        self.beat(Directive(kind="cancel_task", task_id="t-1", token=0))

    def forget(self) -> None:
        self.queue.append(ev.WorkerGone(self.machine.registrations, "lost"))

    def forget_late(self) -> None:
        self.queue.append(ev.WorkerGone(self.machine.registrations - 1, "superseded"))

    def supersede(self) -> None:
        self.queue.append(ev.WorkerGone(self.machine.registrations, "superseded"))

    def lose_lease(self) -> None:
        if self.machine.lease is not None:
            self.queue.append(ev.LeaseLost(self.machine.lease.ref, "lease_superseded"))

    def expire_lease(self) -> None:
        if self.machine.lease is not None:
            self.queue.append(ev.LeaseLost(self.machine.lease.ref, "lease_expired"))

    # The handler, the operator and time.

    def finish(self) -> None:
        if self.running is not None:
            self.end_handler_with(FINISHED)

    def fail(self) -> None:
        if self.running is not None:
            self.end_handler_with(FAILED)

    def postpone(self) -> None:
        if self.running is not None:
            self.end_handler_with(POSTPONED)

    def start_in_vain(self) -> None:
        if self.running is not None:
            self.end_handler_with(NOT_STARTED)

    def run_out(self) -> None:
        if self.running is not None:
            self.end_handler_with(ev.HandlerTimedOut(1.0, USAGE))

    def progress(self) -> None:
        if self.running is not None and not self.handler_is_over:
            self.queue.append(ev.ProgressMade(Progress(percent=50.0)))

    def signal(self) -> None:
        self.queue.append(ev.StopSignal())

    def end_grace(self) -> None:
        if self.alarm:
            self.queue.append(ev.GraceExpired())

    def pass_time(self) -> None:
        self.now += 0.6 * LEASE_SECONDS

    def be_kind(self, *, until_asking: bool) -> None:
        """With everybody's good will, and no more tasks to run."""
        for _ in range(100):
            if self.queue:
                self.deliver(self.queue.popleft())
            elif self.exited or (until_asking and isinstance(self.call, act.RequestLease)):
                return
            elif isinstance(self.call, act.ReportComplete):
                self.grant_no_lease()
            elif self.call is not None:
                self.grant()
            elif self.running is not None:
                self.finish()
            else:
                self.beat()


_ANSWERS = ["grant"] * 8 + ["grant_no_lease", "be_away", "fence", "expire", "refuse"]
_BEATS = ["beat"] * 4 + ["beat_late", "cancel", "cancel_another"]
_ENDS = ["finish"] * 3 + ["fail", "postpone", "start_in_vain", "run_out", "lose_lease", "expire_lease", "progress"]
_TURNS = ["dawdle", "dawdle", "pass_time"]
# What ends the worker must be rare, or it never lives long enough to do anything wrong.
_BLOWS = [
    "forget",
    "forget_late",
    "forget_caller",
    "supersede",
    "supersede_caller",
    "signal",
    "drain",
    "stop",
    "end_grace",
]
_RARELY = st.tuples(st.integers(0, 2), st.sampled_from(_BLOWS)).map(lambda drawn: "dawdle" if drawn[0] else drawn[1])
_MOVES = st.one_of(*map(st.sampled_from, (_ANSWERS, _ANSWERS, _BEATS, _ENDS, _TURNS)), _RARELY)
_PRELUDES = st.sampled_from([[], ["grant", "beat"], ["grant", "beat", "grant"], ["grant", "beat", "grant", "finish"]])


@settings(max_examples=500, deadline=None)
@given(_PRELUDES, st.lists(_MOVES, min_size=15, max_size=60), st.booleans())
def test_whatever_happens_in_whatever_order(prelude: list[str], moves: list[str], is_told_to_stop: bool) -> None:
    world = World()
    for move in prelude + moves:
        world.go_on(move)
    if not (world.winding_down or is_told_to_stop):
        world.be_kind(until_asking=True)
        assert world.exited or isinstance(world.call, act.RequestLease), "it does not go on"
    world.queue += [ev.StopSignal(), ev.StopSignal()]
    world.be_kind(until_asking=False)
    assert world.exited, "it does not end"
