"""The worker's state machine, one rule at a time."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from tests.worker_agent.machines import (
    FAILED,
    FINISHED,
    KILLED,
    LEASE_SECONDS,
    NOT_STARTED,
    POSTPONED,
    USAGE,
    assignment,
    beat,
    brought_to,
    cancel,
    feed,
    lease,
    machine,
    registration,
)
from tests.worker_agent.protocol_states import DRAIN, STOP, only
from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.protocol import ANYTIME_REACTIONS, REACTIONS, UnexpectedEvent
from worker_agent.states import MOVES, State
from worker_agent.wire import Directive, LeaseRef, Progress, TaskError


def test_it_registers_first() -> None:
    assert feed(machine(), ev.Begin()) == [act.Register(request_id="request-1")]


def test_it_repeats_a_registration_under_the_same_id_and_registers_anew_under_another() -> None:
    subject = brought_to(State.UNREGISTERED)
    assert feed(subject, ev.RetryLater(2.0)) == [act.Register(request_id="request-1", attempt=1, wait_seconds=2.0)]
    feed(subject, ev.Registered(registration()))
    assert feed(subject, ev.WorkerGone(1, "lost")) == [act.Register(request_id="request-2", attempt=1)]


def test_it_asks_for_work_only_after_a_heartbeat_was_accepted() -> None:
    subject = brought_to(State.UNREGISTERED)
    assert feed(subject, ev.Registered(registration())) == [act.SendHeartbeat()]
    assert feed(subject, beat()) == [act.RequestLease(request_id="request-2")]


def test_it_runs_what_it_leases_and_takes_the_next_task_with_the_report() -> None:
    subject = brought_to(State.LEASING)
    assert feed(subject, ev.LeaseGranted(lease())) == [act.RunHandler(lease())]
    report = only(feed(subject, FINISHED))
    assert (report.lease, report.result, report.usage) == (lease(), {"answer": 42}, USAGE)
    assert report.next_request_id == "request-3"
    assert feed(subject, ev.ReportAccepted(lease(2))) == [act.RunHandler(lease(2))]


def test_it_asks_again_when_there_is_nothing() -> None:
    subject = brought_to(State.LEASING)
    assert feed(subject, ev.NoTask()) == [act.RequestLease(request_id="request-3")]


def test_answers_that_come_too_quickly_slow_it_down() -> None:
    subject = brought_to(State.LEASING)
    assert only(feed(subject, ev.NoTask(quick=True))).attempt == 1
    assert only(feed(subject, ev.NoTask(quick=True))).attempt == 2
    assert only(feed(subject, ev.NoTask())).attempt == 0


def test_a_failure_is_reported_and_the_next_task_asked_for() -> None:
    subject = brought_to(State.RUNNING)
    report = only(feed(subject, FAILED))
    assert isinstance(report, act.ReportFail)
    assert feed(subject, ev.ReportAccepted()) == [act.RequestLease(request_id="request-4")]


def test_a_timeout_may_be_tried_again() -> None:
    report = only(feed(brought_to(State.RUNNING), ev.HandlerTimedOut(600.0, USAGE)))
    assert (report.error.code, report.error.retryable) == ("timeout", True)


def test_progress_is_passed_on_only_while_it_runs() -> None:
    progress = ev.ProgressMade(Progress(percent=50.0))
    assert feed(brought_to(State.RUNNING), progress) == [act.ReportProgress(lease(), progress.progress)]
    for state in set(State) - {State.RUNNING}:
        assert feed(brought_to(state), progress) == []


@pytest.mark.parametrize("state", [State.UNREGISTERED, State.LEASING, State.REPORTING])
def test_a_call_without_an_answer_is_made_again_with_the_same_ids(state: State) -> None:
    subject = brought_to(state)
    first = only(feed(subject, ev.RetryLater()))
    second = only(feed(subject, ev.RetryLater(retry_after=3.0)))
    assert (first.attempt, second.attempt, second.wait_seconds) == (1, 2, 3.0)
    if isinstance(first, act.RequestLease):
        assert first.request_id == second.request_id == "request-2"
    if isinstance(first, act.ReportComplete):
        assert first.next_request_id == second.next_request_id == "request-3"


def test_a_refused_lease_waits_for_the_next_heartbeat() -> None:
    subject = brought_to(State.LEASING)
    assert feed(subject, ev.CallRefused("409 worker_busy: ")) == []
    assert feed(subject, beat()) == [act.RequestLease(request_id="request-3")]


def test_a_refused_registration_ends_it() -> None:
    refused = ev.RegistrationRefused(key_refused=True, message="401")
    assert only(feed(brought_to(State.UNREGISTERED), refused)).code is act.ExitCode.KEY_REFUSED
    refused = ev.RegistrationRefused(key_refused=False, message="422")
    assert only(feed(brought_to(State.UNREGISTERED), refused)).code is act.ExitCode.USAGE


def test_a_result_that_is_refused_becomes_a_failure_and_then_nothing() -> None:
    subject = brought_to(State.REPORTING)
    report = only(feed(subject, ev.CallRefused("422 invalid: too deep")))
    assert (report.error.code, report.error.retryable, report.usage) == ("invalid_result", False, USAGE)
    assert "too deep" in report.error.message
    report = only(feed(subject, ev.CallRefused("422 invalid: no")))
    assert (report.error.code, report.error.retryable) == ("report_refused", False)
    assert isinstance(only(feed(subject, ev.CallRefused("422 invalid: no"))), act.RequestLease)


def test_a_failure_that_is_refused_loses_its_detail_first() -> None:
    """One that may pass must not end its task for a detail that nests too deep or is too large."""
    subject = brought_to(State.RUNNING)
    odd = TaskError(code="gateway_busy", message="later", retryable=True, detail={"wide": [1, 2, 3]})
    feed(subject, ev.HandlerFailed(odd, USAGE))
    report = only(feed(subject, ev.CallRefused("413 body_too_large: ")))
    assert report.error == replace(odd, detail={"left_out": "413 body_too_large: "})
    assert report.usage == USAGE
    report = only(feed(subject, ev.CallRefused("422 invalid: no")))
    assert (report.error.code, report.error.retryable) == ("report_refused", False)
    assert isinstance(only(feed(subject, ev.CallRefused("422 invalid: no"))), act.RequestLease)


def test_a_fenced_report_is_dropped() -> None:
    assert isinstance(only(feed(brought_to(State.REPORTING), ev.ReportFenced("lease_superseded"))), act.RequestLease)


def test_a_report_after_the_expiry_is_repeated_once_with_a_renewed_lease() -> None:
    """The control plane was away; as long as it has not taken the task back, a heartbeat renews the lease."""
    subject = brought_to(State.REPORTING)
    assert feed(subject, ev.ReportFenced("lease_expired")) == [act.SendHeartbeat()]
    assert isinstance(only(feed(subject, beat())), act.ReportComplete)
    assert isinstance(only(feed(subject, ev.ReportFenced("lease_expired"))), act.RequestLease)


def test_a_report_after_the_expiry_is_dropped_where_the_task_was_taken_back() -> None:
    subject = brought_to(State.REPORTING)
    assert feed(subject, ev.ReportFenced("lease_expired")) == [act.SendHeartbeat()]
    assert isinstance(only(feed(subject, beat(cancel(lease())))), act.RequestLease)


def test_progress_after_the_expiry_leaves_it_to_a_heartbeat_whether_the_task_goes_on() -> None:
    subject = brought_to(State.RUNNING)
    assert feed(subject, ev.LeaseLost(lease().ref, "lease_expired")) == [act.SendHeartbeat()]
    assert feed(subject, beat()) == []
    assert feed(subject, beat(cancel(lease()))) == [act.KillHandler()]


@pytest.mark.parametrize(
    "loss", [beat(cancel(lease())), ev.LeaseLost(lease().ref, "task_cancelled"), ev.WorkerGone(1, "lost")]
)
@pytest.mark.parametrize("end", [FINISHED, FAILED, KILLED, POSTPONED, NOT_STARTED, ev.HandlerTimedOut(1.0, USAGE)])
def test_a_lost_task_is_killed_and_never_reported(loss: ev.Event, end: ev.Event) -> None:
    subject = brought_to(State.RUNNING)
    assert feed(subject, loss) == [act.KillHandler()]
    assert isinstance(only(feed(subject, end)), act.RequestLease | act.Register)


@pytest.mark.parametrize("ref", [LeaseRef("t-1", 2), LeaseRef("t-2", 1)], ids=["another token", "another task"])
def test_the_loss_of_another_lease_changes_nothing(ref: LeaseRef) -> None:
    stale = Directive(kind="cancel_task", task_id=ref.task_id, token=ref.token)
    assert feed(brought_to(State.RUNNING), beat(stale)) == []
    assert feed(brought_to(State.RUNNING), ev.LeaseLost(ref, "lease_expired")) == []


def test_a_task_that_is_cancelled_while_it_is_reported_is_left_to_the_answer() -> None:
    subject = brought_to(State.REPORTING)
    assert feed(subject, beat(cancel(lease()))) == []
    assert feed(subject, ev.ReportAccepted(lease(2))) == [act.RunHandler(lease(2))]


def test_finished_work_waits_for_a_heartbeat_after_a_long_silence() -> None:
    subject = brought_to(State.RUNNING)
    assert feed(subject, FINISHED, at=LEASE_SECONDS / 2 + 0.1) == [act.SendHeartbeat()]
    assert isinstance(only(feed(subject, beat(at=8.0), at=8.0)), act.ReportComplete)


def test_finished_work_is_reported_at_once_when_heartbeats_arrive() -> None:
    subject = brought_to(State.RUNNING)
    feed(subject, beat(at=100.0), at=100.0)
    assert isinstance(only(feed(subject, FINISHED, at=105.0)), act.ReportComplete)


def test_a_report_that_is_not_answered_for_long_waits_for_a_heartbeat_too() -> None:
    subject = brought_to(State.REPORTING)
    assert isinstance(only(feed(subject, ev.RetryLater(), at=1.0)), act.ReportComplete)
    assert feed(subject, ev.RetryLater(), at=20.0) == [act.SendHeartbeat()]
    again = only(feed(subject, beat(at=30.0), at=30.0))
    assert (again.attempt, again.next_request_id) == (0, "request-3")


def test_a_drain_that_comes_with_the_renewal_takes_no_next_task() -> None:
    subject = brought_to(State.RENEWING)
    assert feed(subject, beat(DRAIN, at=20.0), at=20.0)[-1].next_request_id is None  # type: ignore[union-attr]


def test_work_that_was_cancelled_meanwhile_is_dropped() -> None:
    subject = brought_to(State.RENEWING)
    assert isinstance(only(feed(subject, beat(cancel(lease()), at=20.0), at=20.0)), act.RequestLease)


def test_a_lost_worker_registers_again() -> None:
    subject = brought_to(State.READY)
    assert feed(subject, ev.WorkerGone(1, "lost")) == [act.Register(request_id="request-2", attempt=1)]
    assert feed(subject, ev.Registered(registration(2))) == [act.SendHeartbeat()]
    assert subject.registrations == 2


def test_registering_in_vain_slows_it_down_until_a_heartbeat_is_accepted() -> None:
    subject = brought_to(State.LEASING)
    assert feed(subject, ev.CallerGone("lost")) == [act.Register(request_id="request-3", attempt=0)]
    feed(subject, ev.Registered(registration(2)))
    assert feed(subject, ev.WorkerGone(2, "lost")) == [act.Register(request_id="request-4", attempt=1)]


def test_old_news_about_an_old_registration_is_ignored() -> None:
    subject = brought_to(State.LEASING)
    feed(subject, ev.CallerGone("lost"), ev.Registered(registration(2)))
    assert feed(subject, ev.WorkerGone(1, "superseded")) == []
    assert feed(subject, beat(STOP, number=1)) == []
    assert subject.state is State.READY


@pytest.mark.parametrize(
    ("reason", "code"), [("stopped", act.ExitCode.STOPPED), ("superseded", act.ExitCode.SUPERSEDED)]
)
def test_a_stopped_or_superseded_worker_kills_its_task_and_exits(reason: Any, code: act.ExitCode) -> None:
    subject = brought_to(State.RUNNING)
    assert feed(subject, ev.WorkerGone(1, reason)) == [act.KillHandler()]
    assert only(feed(subject, KILLED)).code is code


@pytest.mark.parametrize("state", [State.LEASING, State.REPORTING, State.LEAVING])
def test_a_call_under_way_is_aborted_before_anything_else_happens(state: State) -> None:
    subject = brought_to(state)
    assert feed(subject, ev.WorkerGone(1, "superseded")) == [act.AbortCall()]
    assert only(feed(subject, ev.CallAborted())).code is act.ExitCode.SUPERSEDED


def test_a_lease_that_arrives_for_a_worker_that_is_gone_is_not_run() -> None:
    subject = brought_to(State.LEASING)
    feed(subject, ev.WorkerGone(1, "lost"))
    assert isinstance(only(feed(subject, ev.LeaseGranted(lease()))), act.Register)


def test_a_launched_place_that_is_taken_ends_it() -> None:
    assert only(feed(brought_to(State.UNREGISTERED), ev.CallerGone("superseded"))).code is act.ExitCode.SUPERSEDED


def test_every_state_is_in_the_table_of_moves_and_can_be_left_but_the_last() -> None:
    assert set(MOVES) == set(State)
    assert [state for state, after in MOVES.items() if not after] == [State.STOPPED]


def test_a_task_that_was_postponed_is_handed_back_with_the_wait() -> None:
    report = only(feed(brought_to(State.RUNNING), POSTPONED))
    assert isinstance(report, act.Release)
    assert (report.delay_seconds, report.reason) == (7.5, "the model has no room")


def test_a_worker_that_can_start_nothing_hands_its_tasks_back_and_takes_the_next_one_later() -> None:
    """One with a full disk took and failed 56 attempts in 5 s."""
    subject = brought_to(State.RUNNING)
    pauses = []
    for _ in range(7):
        assert only(feed(subject, NOT_STARTED)) == act.Release(lease=lease(), reason="no space left on device")
        pauses.append(only(feed(subject, ev.ReportAccepted())).wait_seconds)
        assert only(feed(subject, ev.NoTask())).wait_seconds == 0.0
        feed(subject, ev.LeaseGranted(lease()))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    feed(subject, FINISHED)
    assert only(feed(subject, ev.ReportAccepted())).wait_seconds == 0.0
    feed(subject, ev.LeaseGranted(lease()), NOT_STARTED)
    assert only(feed(subject, ev.ReportAccepted())).wait_seconds == 1.0


def test_every_event_is_in_one_table() -> None:
    assert {kind for _, kind in REACTIONS} | set(ANYTIME_REACTIONS) == set(get_args(ev.Event))
    assert not {kind for _, kind in REACTIONS} & set(ANYTIME_REACTIONS)


def test_what_cannot_happen_is_refused_and_nothing_happens_to_a_stopped_worker() -> None:
    with pytest.raises(UnexpectedEvent):
        feed(brought_to(State.READY), ev.LeaseGranted(lease()))
    assert feed(brought_to(State.STOPPED), ev.LeaseGranted(lease()), beat(STOP), ev.StopSignal()) == []


@pytest.mark.parametrize("state", State)
def test_the_ways_to_the_states_lead_there(state: State) -> None:
    assert brought_to(state).state is state


def test_an_assignment_holds_until_another_comes_and_survives_a_new_registration() -> None:
    subject = brought_to(State.READY)
    feed(subject, beat(assignment=assignment("one")))
    assert subject.assignment == assignment("one")
    feed(subject, beat())
    assert subject.assignment == assignment("one")
    feed(subject, ev.LeaseGranted(lease()), beat(assignment=assignment("two")))
    assert subject.assignment == assignment("two")
    feed(subject, ev.WorkerGone(1, "lost"), KILLED, ev.Registered(registration(2)))
    assert subject.assignment == assignment("two")


def test_an_assignment_for_an_earlier_registration_is_not_taken() -> None:
    subject = brought_to(State.RUNNING)
    feed(
        subject,
        ev.WorkerGone(1, "lost"),
        KILLED,
        ev.Registered(registration(2)),
        beat(assignment=assignment("old"), number=1),
    )
    assert subject.assignment is None
