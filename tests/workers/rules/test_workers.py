"""What a worker may become, and when its silence means that it is lost."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.ids import WorkerId
from app.kernel.states import LIVE_STATES, WorkerState
from app.workers.rules.workers import (
    ENDED_STATES,
    TRANSITIONS,
    HealthPolicy,
    Liveness,
    origins,
    overdue,
    should_hold_back,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _seen(state: WorkerState, *, ago: float | None, since: float = 1000) -> Liveness:
    last = None if ago is None else NOW - timedelta(seconds=ago)
    return Liveness(worker_id=WorkerId(uuid4()), state=state, since=NOW - timedelta(seconds=since), last_seen_at=last)


def test_what_is_over_stays_over_and_every_live_state_can_end() -> None:
    assert all(not TRANSITIONS[state] for state in ENDED_STATES)
    assert all(TRANSITIONS[state] & ENDED_STATES for state in LIVE_STATES)
    assert origins(WorkerState.READY) == {WorkerState.STARTING}
    assert origins(WorkerState.FAILED) == {WorkerState.STARTING}


@given(ago=st.floats(0, 100))
def test_silence_beyond_the_limit_means_lost(ago: float) -> None:
    for state in (WorkerState.READY, WorkerState.DRAINING):
        verdict = overdue(_seen(state, ago=ago), HealthPolicy(), NOW)
        assert (verdict is not None) == ((NOW - _seen(state, ago=ago).last_seen_at).total_seconds() > 15)  # type: ignore[operator]  # given above
        assert verdict is None or verdict[0] is WorkerState.LOST


def test_a_start_that_takes_too_long_has_failed() -> None:
    assert overdue(_seen(WorkerState.STARTING, ago=None, since=29), HealthPolicy(), NOW) is None
    verdict = overdue(_seen(WorkerState.STARTING, ago=None, since=31), HealthPolicy(), NOW)
    assert verdict is not None
    assert verdict[0] is WorkerState.FAILED


def test_those_that_are_over_are_never_overdue() -> None:
    assert all(overdue(_seen(state, ago=999), HealthPolicy(), NOW) is None for state in ENDED_STATES)


@pytest.mark.parametrize(
    ("late", "live", "pause", "held", "holds"),
    [
        (2, 3, 2, None, True),
        (1, 9, 60, None, True),
        (1, 1, 2, None, False),
        (0, 9, 60, None, False),
        (2, 4, 2, None, False),
        # Whoever beats every 5 s may not have been heard of before that.
        (2, 3, 2, 2, True),
        (2, 3, 2, 5, True),
        (2, 3, 2, 6, False),
        (1, 9, 2, 4, True),
        (0, 3, 2, 2, False),
    ],
)
def test_over_half_at_once_or_a_pause_of_ours_waits_for_one_heartbeat_of_everybody(
    late: int, live: int, pause: float, held: float | None, holds: bool
) -> None:
    found = should_hold_back(late, live, HealthPolicy(), seconds_since_last_sweep=pause, held_back_seconds=held)
    assert found is holds


def test_how_long_a_sweep_may_be_away_goes_by_the_interval_and_the_silence() -> None:
    policy = HealthPolicy(heartbeat_interval_seconds=1, lost_after_seconds=4)
    for pause, holds in ((2.5, False), (3.5, True)):
        answer = should_hold_back(1, 9, policy, seconds_since_last_sweep=pause, held_back_seconds=None)
        assert answer is holds
