"""State machines for tests, and the values that are fed to them."""

from itertools import count

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.protocol import StateMachine
from worker_agent.states import State
from worker_agent.wire import Assignment, Directive, Lease, Postponement, Registration, TaskError, Usage

GRACE = 25.0
LEASE_SECONDS = 15.0
USAGE = Usage(wall_seconds=1.0, cpu_seconds=0.5, max_memory_mb=20.0)
FINISHED = ev.HandlerFinished({"answer": 42}, USAGE)
FAILED = ev.HandlerFailed(TaskError(code="bug", message="a bug", retryable=True), USAGE)
KILLED = ev.HandlerKilled(USAGE)
NOT_STARTED = ev.HandlerNotStarted("no space left on device")
POSTPONED = ev.HandlerPostponed(Postponement(seconds=7.5, reason="the model has no room"), USAGE)


def machine() -> StateMachine:
    numbers = count(1)
    return StateMachine(new_id=lambda: f"request-{next(numbers)}", grace_seconds=GRACE)


def registration(incarnation: int = 1) -> Registration:
    return Registration(
        worker_id=f"w-{incarnation}",
        name="one",
        incarnation=incarnation,
        key=f"cvn_{incarnation}_secret",
        heartbeat_interval_seconds=5.0,
        lease_seconds=LEASE_SECONDS,
    )


def lease(number: int = 1, token: int = 1) -> Lease:
    return Lease(task_id=f"t-{number}", token=token, agent_type="ranking")


def cancel(held: Lease) -> Directive:
    return Directive(kind="cancel_task", task_id=held.task_id, token=held.token)


def assignment(version: str = "one", *, memory_gb: float = 2.0, cpu_cores: float = 1.0) -> Assignment:
    return Assignment(version=version, agent="ranking", memory_gb=memory_gb, cpu_cores=cpu_cores, compute_seconds=None)


def beat(
    *directives: Directive, number: int = 1, at: float = 0.0, assignment: Assignment | None = None
) -> ev.HeartbeatAnswered:
    return ev.HeartbeatAnswered(number, at, directives, assignment)


def feed(subject: StateMachine, *events: ev.Event, at: float = 0.0) -> list[act.Action]:
    """The actions that the last event led to."""
    actions: list[act.Action] = []
    for event in events:
        actions = subject.handle(event, at)
    return actions


_WAYS: dict[State, tuple[ev.Event, ...]] = {
    State.UNREGISTERED: (ev.Begin(),),
    State.READY: (ev.Registered(registration()),),
    State.LEASING: (beat(),),
    State.RUNNING: (ev.LeaseGranted(lease()),),
    State.REPORTING: (FINISHED,),
}


def brought_to(state: State) -> StateMachine:
    """A machine on the ordinary way, stopped at that state, with task t-1, token 1 where it has one."""
    subject = machine()
    for reached, events in _WAYS.items():
        feed(subject, *events)
        if reached is state:
            return subject
    subject = brought_to(State.RUNNING)
    match state:
        case State.KILLING:
            feed(subject, ev.StopSignal(), ev.StopSignal())
        case State.RENEWING:
            feed(subject, FINISHED, at=LEASE_SECONDS)
        case State.LEAVING:
            feed(subject, ev.StopSignal(), FINISHED, ev.ReportAccepted())
        case _:
            feed(subject, ev.StopSignal(), FINISHED, ev.ReportAccepted(), ev.GoodbyeAccepted())
    return subject
