"""Legal transitions, and what becomes of an attempt that ended badly."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.events import TaskEvent
from app.kernel.states import FINISHED, TaskState
from app.queue.errors import IllegalMove
from app.queue.rules.tasks import (
    LEASED,
    TRANSITIONS,
    ReleasePolicy,
    RetryPolicy,
    after_failure,
    after_no_acknowledgement,
    after_release,
    after_rescue,
    next_state,
    retry_delay,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_LEGAL = {
    (TaskState.PENDING, TaskEvent.ASSIGNED): TaskState.ASSIGNED,
    (TaskState.BLOCKED, TaskEvent.UNBLOCKED): TaskState.PENDING,
    **{(state, TaskEvent.EXECUTING): TaskState.EXECUTING for state in LEASED},
    **{(state, TaskEvent.COMPLETED): TaskState.COMPLETED for state in LEASED},
    **{(state, TaskEvent.FAILED): TaskState.FAILED for state in LEASED},
    **{
        (state, event): TaskState.PENDING
        for state in LEASED
        for event in (TaskEvent.RETRYING, TaskEvent.RELEASED, TaskEvent.EXPIRED)
    },
    **{(state, TaskEvent.CANCELLED): TaskState.CANCELLED for state in TaskState if state not in FINISHED},
    (TaskState.FAILED, TaskEvent.REQUEUED): TaskState.PENDING,
    (TaskState.PENDING, TaskEvent.DISPLACED): TaskState.FAILED,
}


@pytest.mark.parametrize("state", TaskState)
@pytest.mark.parametrize("event", TaskEvent)
def test_every_event_in_every_state(state: TaskState, event: TaskEvent) -> None:
    if (state, event) in _LEGAL:
        assert next_state(state, event) is _LEGAL[state, event]
    else:
        with pytest.raises(IllegalMove):
            next_state(state, event)


def test_finished_task_changes_only_when_a_dead_letter_is_requeued() -> None:
    found = {(event, state) for event, (origins, _) in TRANSITIONS.items() for state in origins & FINISHED}
    assert found == {(TaskEvent.REQUEUED, TaskState.FAILED)}


@given(
    failures=st.integers(0, 20),
    attempts=st.integers(1, 10),
    delays=st.lists(st.floats(0, 1000), max_size=5),
    draw=st.floats(0, 1, exclude_max=True),
    retryable=st.booleans(),
)
def test_a_failure_burns_one_attempt_and_waits_within_its_bound(
    failures: int, attempts: int, delays: list[float], draw: float, *, retryable: bool
) -> None:
    policy = RetryPolicy(max_attempts=attempts, delays_seconds=delays)
    verdict = after_failure(policy, failures=failures, rescues=2, retryable=retryable, now=NOW, draw=draw)
    assert (verdict.failures, verdict.rescues) == (failures + 1, 2)
    if not retryable or failures + 1 >= attempts:
        assert (verdict.event, verdict.run_at) == (TaskEvent.FAILED, None)
    else:
        assert verdict.event is TaskEvent.RETRYING
        latest = NOW + timedelta(seconds=retry_delay(policy, failures + 1))
        assert verdict.run_at is None or NOW <= verdict.run_at <= latest


def test_delays_grow_and_the_last_one_repeats() -> None:
    assert [retry_delay(RetryPolicy(), failures) for failures in (1, 2, 3, 4, 50)] == [5, 30, 120, 120, 120]
    assert retry_delay(RetryPolicy(delays_seconds=()), 1) == 0


@given(unacknowledged=st.integers(0, 40))
def test_what_was_not_acknowledged_burns_neither_attempts_nor_rescues(unacknowledged: int) -> None:
    policy = RetryPolicy(max_unacknowledged=20)
    counts = {"failures": 2, "rescues": 5, "unacknowledged": unacknowledged}
    verdict = after_no_acknowledgement(policy, **counts, now=NOW, reason="silence")
    assert (verdict.failures, verdict.rescues, verdict.unacknowledged) == (2, 5, unacknowledged + 1)
    assert verdict.event is (TaskEvent.FAILED if unacknowledged >= 20 else TaskEvent.EXPIRED)
    assert verdict.run_at is None or verdict.run_at - NOW <= timedelta(minutes=1)


@given(failures=st.integers(0, 9), rescues=st.integers(0, 9))
def test_a_rescue_burns_no_attempt_and_rescues_are_bounded(failures: int, rescues: int) -> None:
    policy = RetryPolicy(max_rescues=5)
    verdict = after_rescue(policy, failures=failures, rescues=rescues, reason="killed")
    assert (verdict.failures, verdict.rescues, verdict.run_at) == (failures, rescues + 1, None)
    assert verdict.event is (TaskEvent.FAILED if rescues + 1 > 5 else TaskEvent.EXPIRED)
    assert "killed" in verdict.reason


@pytest.mark.parametrize(
    ("returns", "failures", "asked", "seconds"),
    [(0, 0, 0, 0), (9, 0, 0, 0), (9, 0, 7, 7), (9, 2, 0, 0), (10, 0, 0, 1.1), (99, 0, 0, 10), (5000, 0, 0, 60)],
)
def test_what_is_handed_back_often_waits(returns: int, failures: int, asked: float, seconds: float) -> None:
    counts = {"returns": returns, "failures": failures, "rescues": 0}
    verdict = after_release(ReleasePolicy(), **counts, delay_seconds=asked, now=NOW, reason="no room")
    assert (verdict.event, verdict.failures) == (TaskEvent.RELEASED, failures)
    assert verdict.run_at == (NOW + timedelta(seconds=seconds) if seconds else None)
    assert ("handed back" in verdict.reason) is (seconds > asked)


def test_a_long_wait_that_was_asked_for_is_kept() -> None:
    counts = {"returns": 5000, "failures": 0, "rescues": 0}
    verdict = after_release(ReleasePolicy(), **counts, delay_seconds=3600, now=NOW, reason="no room")
    assert (verdict.run_at, verdict.reason) == (NOW + timedelta(hours=1), "no room")
