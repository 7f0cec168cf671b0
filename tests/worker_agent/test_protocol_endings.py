"""How a worker ends by its protocol: signals, drains, restarts and goodbyes."""

import pytest

from tests.worker_agent.machines import (
    FINISHED,
    GRACE,
    KILLED,
    beat,
    brought_to,
    feed,
    lease,
    machine,
    registration,
)
from tests.worker_agent.protocol_states import DRAIN, STOP, only
from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.states import Intent, State
from worker_agent.wire import Directive

RESTART = Directive(kind="restart")


def test_a_signal_cuts_a_long_poll_short() -> None:
    subject = brought_to(State.LEASING)
    assert feed(subject, ev.StopSignal()) == [act.SetAlarm(GRACE), act.AbortCall()]
    assert feed(subject, ev.CallAborted()) == [act.Goodbye(reason="stop signal")]
    assert only(feed(subject, ev.GoodbyeAccepted())).code is act.ExitCode.STOPPED


def test_a_lease_that_crosses_the_signal_is_handed_back() -> None:
    subject = brought_to(State.LEASING)
    feed(subject, ev.StopSignal())
    assert feed(subject, ev.LeaseGranted(lease())) == [act.Release(lease=lease(), reason="stop signal")]
    assert feed(subject, ev.ReportAccepted()) == [act.Goodbye(reason="stop signal")]


@pytest.mark.parametrize("order", [ev.StopSignal(), beat(STOP), beat(RESTART)])
def test_a_task_may_finish_within_the_grace(order: ev.Event) -> None:
    subject = brought_to(State.RUNNING)
    assert feed(subject, order) == [act.SetAlarm(GRACE), act.SendHeartbeat()]
    assert subject.wire_state == "draining"
    assert only(feed(subject, FINISHED)).next_request_id is None
    assert isinstance(only(feed(subject, ev.ReportAccepted())), act.Goodbye)


def test_a_drain_waits_for_the_task_without_limit() -> None:
    assert feed(brought_to(State.RUNNING), beat(DRAIN)) == [act.SendHeartbeat()]


@pytest.mark.parametrize("order", [ev.GraceExpired(), ev.StopSignal()])
def test_after_the_grace_or_a_second_signal_the_task_is_killed_and_handed_back(order: ev.Event) -> None:
    subject = brought_to(State.RUNNING)
    feed(subject, ev.StopSignal())
    assert feed(subject, order) == [act.KillHandler()]
    assert feed(subject, KILLED) == [act.Release(lease=lease(), reason="stop signal")]
    assert isinstance(only(feed(subject, ev.RetryLater())), act.Goodbye)
    assert only(feed(subject, ev.RetryLater())).code is act.ExitCode.STOPPED


def test_a_task_that_finishes_while_it_is_killed_is_reported() -> None:
    subject = brought_to(State.KILLING)
    report = only(feed(subject, FINISHED))
    assert (report.result, report.next_request_id) == ({"answer": 42}, None)


def test_a_task_that_is_lost_while_it_is_killed_is_not_reported() -> None:
    subject = brought_to(State.KILLING)
    assert feed(subject, ev.LeaseLost(lease().ref, "task_cancelled")) == []
    assert isinstance(only(feed(subject, FINISHED)), act.Goodbye)


def test_directives_repeat_without_harm_and_do_not_count_as_second_signals() -> None:
    subject = brought_to(State.RUNNING)
    feed(subject, beat(STOP))
    assert feed(subject, beat(STOP)) == []
    assert feed(subject, ev.StopSignal()) == []
    assert subject.shutdown.intent is Intent.DRAIN
    assert feed(subject, ev.StopSignal()) == [act.KillHandler()]


def test_a_signal_limits_a_drain_that_had_no_limit() -> None:
    subject = brought_to(State.RUNNING)
    feed(subject, beat(DRAIN))
    assert feed(subject, ev.StopSignal()) == [act.SetAlarm(GRACE)]


def test_a_restart_exits_to_come_back() -> None:
    subject = brought_to(State.READY)
    assert isinstance(feed(subject, beat(RESTART))[-1], act.Goodbye)
    assert only(feed(subject, ev.GoodbyeAccepted())) == act.Exit(act.ExitCode.STOPPED, restart=True, message="restart")


def test_an_unregistered_worker_just_stops() -> None:
    subject = brought_to(State.UNREGISTERED)
    assert feed(subject, ev.StopSignal())[-1] == act.AbortCall()
    assert isinstance(only(feed(subject, ev.CallAborted())), act.Exit)
    assert isinstance(only(feed(machine(), ev.StopSignal(), ev.Begin())), act.Exit)


def test_a_worker_that_is_registered_after_the_signal_says_goodbye_at_once() -> None:
    subject = brought_to(State.UNREGISTERED)
    feed(subject, ev.StopSignal())
    assert isinstance(only(feed(subject, ev.Registered(registration()))), act.Goodbye)


def test_a_goodbye_is_tried_a_few_times_only() -> None:
    subject = brought_to(State.LEAVING)
    assert only(feed(subject, ev.RetryLater())).attempt == 1
    assert only(feed(subject, ev.RetryLater())).attempt == 2
    assert isinstance(only(feed(subject, ev.RetryLater())), act.Exit)


def test_an_unknown_directive_is_ignored() -> None:
    assert feed(brought_to(State.RUNNING), beat(Directive(kind="sing"))) == []
