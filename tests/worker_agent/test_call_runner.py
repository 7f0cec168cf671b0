"""Each call has exactly one answer, whatever becomes of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread

import pytest

from tests.worker_agent.fake_control_plane import LOST, POOL_KEY, Answer, FakeControlPlane, foreign, problem, served
from tests.worker_agent.machines import USAGE, lease
from tests.worker_agent.waiting import PATIENCE
from worker_agent import actions as act
from worker_agent import call_runner
from worker_agent import events as ev
from worker_agent.call_runner import CallRunner
from worker_agent.local_errors import LocalErrors
from worker_agent.outage import Outage
from worker_agent.transport import Transport
from worker_agent.wire import Progress

REPORT = act.ReportComplete(lease=lease(), result={"n": 1}, usage=USAGE, next_request_id=None)


class Subject:
    """A runner that has registered, and what it posts."""

    def __init__(self, url: str) -> None:
        self.events: SimpleQueue[ev.Event] = SimpleQueue()
        self.errors = LocalErrors()
        self.runner = CallRunner(
            Transport(url),
            profile={"name": "one"},
            pool_key=lambda: POOL_KEY,
            post=self.events.put,
            errors=self.errors,
            outage=Outage(self.errors),
        )
        assert isinstance(self.answer_to(act.Register(request_id="r")), ev.Registered)

    def answer(self) -> ev.Event:
        return self.events.get(timeout=PATIENCE)

    def answer_to(self, call: act.Call) -> ev.Event:
        self.runner.start_call(call)
        return self.answer()


@pytest.fixture
def subject(url: str) -> Iterator[Subject]:
    subject = Subject(url)
    yield subject
    subject.runner.close()
    with pytest.raises(Empty):
        subject.events.get_nowait()


def test_calls_and_answers_match(plane: FakeControlPlane, subject: Subject) -> None:
    plane.longest_wait = 0.0
    assert subject.answer_to(act.RequestLease(request_id="r-1")) == ev.NoTask(quick=True)
    plane.submit({"do": "echo"})
    assert isinstance(subject.answer_to(act.RequestLease(request_id="r-2")), ev.LeaseGranted)
    assert subject.answer_to(REPORT) == ev.ReportAccepted()
    assert subject.answer_to(replace(REPORT, quality=0.8)) == ev.ReportAccepted()
    assert [call.body.get("quality") for call in plane.of("complete")] == [None, 0.8]
    assert subject.answer_to(act.Release(lease=lease(), reason="r")) == ev.ReportAccepted()
    assert subject.answer_to(act.Goodbye(reason="r")) == ev.GoodbyeAccepted()


def test_progress_that_is_no_json_costs_no_result(plane: FakeControlPlane, subject: Subject) -> None:
    subject.runner.report_progress(REPORT.lease, Progress(percent=1.0))
    plane.wait_for("progress", 1)
    # A program may write 1e999, which is JSON, and infinite when it is read.
    subject.runner.report_progress(REPORT.lease, Progress(percent=2.0, checkpoint={"x": float("inf")}))
    assert subject.answer_to(REPORT) == ev.ReportAccepted()


@pytest.mark.parametrize(
    ("call", "answer", "event"),
    [
        (act.RequestLease(request_id="r"), problem(409, "busy"), ev.CallRefused("409 busy: busy")),
        (act.RequestLease(request_id="r"), problem(409, "worker_gone", reason="stopped"), ev.CallerGone("stopped")),
        (act.RequestLease(request_id="r"), problem(409, "worker_gone", reason="weird"), ev.CallerGone("lost")),
        (act.RequestLease(request_id="r"), problem(401, "unauthorized"), ev.CallerGone("lost")),
        (act.RequestLease(request_id="r"), problem(429, "too_many_failures"), ev.CallerGone("lost")),
        (REPORT, problem(409, "task_cancelled"), ev.ReportFenced("task_cancelled")),
        (REPORT, problem(404, "lease_not_found"), ev.ReportFenced("lease_not_found")),
        (REPORT, problem(413, "too_large"), ev.CallRefused("413 too_large: too_large")),
        (REPORT, Answer(status=429, headers=(("retry-after", "2"),)), ev.RetryLater(2.0)),
        (REPORT, foreign(403), ev.RetryLater()),
        (REPORT, foreign(404), ev.RetryLater()),
        (act.RequestLease(request_id="r"), foreign(401), ev.RetryLater()),
        # After the first registration the address is known to be right.
        (act.Register(request_id="r"), foreign(404), ev.RetryLater()),
        (act.Register(request_id="r"), problem(409, "worker_gone", reason="lost"), ev.CallerGone("superseded")),
        (
            act.Register(request_id="r"),
            problem(429, "too_many_failures"),
            ev.RegistrationRefused(True, "429 too_many_failures: too_many_failures"),
        ),
        (act.Register(request_id="r"), problem(409, "name_taken"), ev.CallerGone("superseded")),
    ],
)
def test_refusals_are_told_apart(
    plane: FakeControlPlane, subject: Subject, call: act.Call, answer: Answer, event: ev.Event
) -> None:
    for kind in ("register", "lease", "complete"):
        plane.script[kind].append(answer)
    assert subject.answer_to(call) == event
    # One answer that says later is no error yet.
    assert bool(subject.errors.take()) == (not isinstance(event, ev.RetryLater))


def test_a_control_plane_too_old_to_repeat_registrations_takes_them(plane: FakeControlPlane, subject: Subject) -> None:
    unknown = [{"pointer": "/request_id", "detail": "Extra inputs are not permitted"}]
    plane.script["register"].append(problem(422, "invalid_request", errors=unknown))
    assert isinstance(subject.answer_to(act.Register(request_id="r")), ev.Registered)
    assert ["request_id" in call.body for call in plane.of("register")] == [True, True, False]
    plane.script["register"].append(problem(422, "invalid_request", errors=[{"pointer": "/name"}]))
    assert isinstance(subject.answer_to(act.Register(request_id="r")), ev.RegistrationRefused)


def test_what_cannot_be_sent_is_refused_rather_than_tried_for_ever(subject: Subject) -> None:
    report = act.ReportComplete(lease=lease(), result={"n": object()}, usage=USAGE, next_request_id=None)
    answer = subject.answer_to(report)
    assert isinstance(answer, ev.CallRefused)
    assert answer.message.startswith("unsendable: ")


def test_an_aborted_call_is_answered_once() -> None:
    plane = FakeControlPlane(longest_wait=25.0)
    with served(plane) as url:
        subject = Subject(url)
        subject.runner.abort()  # nothing is under way
        subject.runner.start_call(act.RequestLease(request_id="r"))
        plane.wait_for("lease")
        subject.runner.abort()
        subject.runner.abort()
        assert subject.answer() == ev.CallAborted()
        assert subject.answer_to(act.Goodbye(reason="r")) == ev.GoodbyeAccepted()
        assert not subject.errors.take()
        subject.runner.close()


def test_a_call_that_waits_for_its_turn_can_be_aborted(subject: Subject, plane: FakeControlPlane) -> None:
    subject.runner.start_call(act.RequestLease(request_id="r", attempt=1, wait_seconds=3600.0))
    subject.runner.abort()
    assert subject.answer() == ev.CallAborted()
    assert not plane.of("lease")


def test_progress_is_sent_before_the_report_and_never_after(plane: FakeControlPlane, subject: Subject) -> None:
    for percent in range(0, 100, 10):
        checkpoint = {"at": percent} if percent == 50 else None
        subject.runner.report_progress(lease(), Progress(percent=percent, checkpoint=checkpoint))
    assert subject.answer_to(REPORT) == ev.ReportAccepted()
    subject.runner.report_progress(lease(), Progress(percent=95))
    kinds = [call.kind for call in plane.calls]
    assert kinds[-1] == "complete"
    sent = [call.body for call in plane.of("progress")]
    assert sent[-1]["percent"] == 90
    assert {"at": 50} in [body.get("checkpoint") for body in sent]


def test_progress_after_the_expiry_is_kept_for_a_renewed_lease(plane: FakeControlPlane, subject: Subject) -> None:
    plane.script["progress"].append(problem(409, "lease_expired"))
    subject.runner.report_progress(lease(), Progress(percent=10, checkpoint={"at": 1}))
    assert subject.answer() == ev.LeaseLost(lease().ref, "lease_expired")
    assert subject.answer_to(REPORT) == ev.ReportAccepted()
    assert [call.body.get("checkpoint") for call in plane.of("progress")] == [{"at": 1}, {"at": 1}]


def test_a_fence_found_by_progress_stops_the_report(plane: FakeControlPlane, subject: Subject) -> None:
    plane.script["progress"].append(problem(409, "lease_superseded"))
    subject.runner.report_progress(lease(), Progress(percent=10))
    subject.runner.start_call(REPORT)
    assert subject.answer() == ev.LeaseLost(lease().ref, "lease_superseded")
    assert subject.answer() == ev.ReportFenced("lease_superseded")
    assert not plane.of("complete")


def test_a_control_plane_that_is_back_is_asked_soon_however_long_it_was_away(
    plane: FakeControlPlane, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    caps: list[float] = []

    def jitter(attempt: int, *, cap: float) -> float:
        caps.append(cap)
        return 0.0

    monkeypatch.setattr(call_runner, "full_jitter", jitter)
    plane.script["lease"] += [LOST, Answer(status=503)]
    for attempt in (0, 20, 20, 20):
        subject.answer_to(act.RequestLease(request_id="r", attempt=attempt))
    # Whoever answers 503 is there, and not to be asked once a second by everybody.
    assert caps == [10.0, 1.0, 10.0, 10.0]


def test_workers_that_are_to_wait_the_same_time_do_not_come_back_together(
    plane: FakeControlPlane, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_runner, "full_jitter", lambda attempt, *, cap: 0.2)
    started_at = time.monotonic()
    subject.answer_to(act.Goodbye(reason="r", attempt=1, wait_seconds=0.3))
    assert plane.of("goodbye")[0].at - started_at >= 0.5


@pytest.fixture
def without_threads(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has registered, and can start no thread any more, as the system has none left."""
    start = Thread.start

    def refuse(thread: Thread) -> None:
        # Those of the control plane, which is in this process too, are started by another.
        if current_thread() is main_thread():
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(Thread, "start", refuse)


@pytest.mark.usefixtures("without_threads")
def test_a_task_is_given_back_where_no_thread_can_be_started(plane: FakeControlPlane, subject: Subject) -> None:
    assert subject.answer_to(act.Release(lease=lease(), reason="no thread to watch it")) == ev.ReportAccepted()
    assert plane.of("release")[0].body["reason"] == "no thread to watch it"


@pytest.mark.usefixtures("without_threads")
def test_no_task_is_taken_where_no_thread_can_be_started(
    plane: FakeControlPlane, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_runner, "_PAUSE_SECONDS", 0.01)
    assert subject.answer_to(act.RequestLease(request_id="r")) == ev.RetryLater()
    assert not plane.of("lease")
    assert subject.errors.take()[0]["message"] == "no thread can be started here, so no task is taken"


@pytest.mark.usefixtures("without_threads")
def test_progress_and_output_go_with_the_report_where_no_thread_can_be_started(
    plane: FakeControlPlane, subject: Subject
) -> None:
    subject.runner.report_progress(lease(), Progress(percent=10))
    subject.runner.open_log(lease())("stdout", b"a line\n")
    assert subject.answer_to(REPORT) == ev.ReportAccepted()
    assert [call.kind for call in plane.calls][1:] == ["progress", "logs", "complete"]
