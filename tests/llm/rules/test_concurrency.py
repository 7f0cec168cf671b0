"""The calls that a service bears: a slow start, gentle growth, one step back for each wave of losses."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.rules.concurrency import (
    ConcurrencyPolicy,
    ConcurrencyState,
    record_loss,
    record_success,
    requested_cooldown,
)
from app.llm.rules.outcomes import LOSSES, CallReport, Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ConcurrencyPolicy()


def after_call(
    state: ConcurrencyState,
    outcome: Outcome,
    *,
    in_use: int = 100,
    at: float = 0.0,
    ceiling: int = 64,
    latency: float | None = None,
) -> ConcurrencyState:
    if outcome in LOSSES:
        return record_loss(state, START + timedelta(seconds=at), POLICY)
    if outcome is not Outcome.SUCCESS:
        return state
    return record_success(state, latency, in_use=in_use, ceiling=ceiling, policy=POLICY)


def test_it_doubles_in_a_round_trip_until_the_first_loss() -> None:
    state, sizes = ConcurrencyState(), []
    for _ in range(5):
        in_flight = state.allowed_calls(64)
        for _ in range(in_flight):
            state = after_call(state, Outcome.SUCCESS, in_use=in_flight)
        sizes.append(state.allowed_calls(64))
    assert sizes == [8, 16, 32, 64, 64]
    state = after_call(state, Outcome.RATE_LIMITED)
    assert not state.ramping
    assert state.limit == pytest.approx(57.6)
    limit = state.limit
    for _ in range(round(limit)):
        state = after_call(state, Outcome.SUCCESS)
    assert state.limit == pytest.approx(limit + 1, abs=0.1)


@pytest.mark.parametrize("outcome", sorted(LOSSES))
def test_a_wave_of_losses_is_one_step_back(outcome: Outcome) -> None:
    state = ConcurrencyState(limit=20, ramping=False, latency_seconds=2)
    for _ in range(20):
        state = after_call(state, outcome)
    assert state.limit == pytest.approx(18)
    assert after_call(state, outcome, at=1.9).limit == pytest.approx(18)
    assert after_call(state, outcome, at=2.0).limit == pytest.approx(16.2)


def test_losses_a_minute_apart_are_two_however_long_calls_take() -> None:
    state = after_call(ConcurrencyState(limit=20, ramping=False, latency_seconds=600), Outcome.SERVER_ERROR)
    assert after_call(state, Outcome.SERVER_ERROR, at=59.9).limit == pytest.approx(18)
    assert after_call(state, Outcome.SERVER_ERROR, at=60.0).limit == pytest.approx(16.2)


def test_a_limit_that_nobody_comes_near_does_not_grow() -> None:
    assert after_call(ConcurrencyState(limit=10, ramping=False), Outcome.SUCCESS, in_use=4).limit == 10
    assert after_call(ConcurrencyState(limit=10, ramping=False), Outcome.SUCCESS, in_use=5).limit == pytest.approx(10.1)


@pytest.mark.parametrize(
    ("reported", "seconds"),
    [
        ({"retry_after_seconds": 7, "reset_requests_seconds": 60}, 7),
        ({"reset_requests_seconds": 6, "reset_tokens_seconds": 0.012}, 6),
        ({"reset_requests_seconds": -1, "reset_tokens_seconds": 0}, 0),
        ({"retry_after_seconds": -1, "reset_tokens_seconds": 3}, 3),
        ({"retry_after_seconds": 1e9}, 300),
        ({}, 0),
    ],
)
def test_it_waits_as_long_as_the_service_wants_for_minutes_at_most(reported: dict[str, Any], seconds: float) -> None:
    end = requested_cooldown(CallReport(outcome=Outcome.RATE_LIMITED, **reported), START, POLICY)
    assert end == (START + timedelta(seconds=seconds) if seconds else None)
    assert requested_cooldown(CallReport(outcome=Outcome.SUCCESS, **reported), START, POLICY) is None


_EVENTS = st.lists(
    st.tuples(st.sampled_from(Outcome), st.integers(1, 100), st.floats(0, 10), st.floats(0, 100)), max_size=60
)


@given(events=_EVENTS, ceiling=st.integers(1, 100))
def test_it_stays_between_one_and_what_people_allow(
    events: list[tuple[Outcome, int, float, float]], ceiling: int
) -> None:
    state, now, decreases = ConcurrencyState(), START, []
    for outcome, in_use, pause, latency in events:
        now += timedelta(seconds=pause)
        previous = state
        at = (now - START).total_seconds()
        state = after_call(state, outcome, in_use=in_use, at=at, ceiling=ceiling, latency=latency)
        assert 1 <= state.allowed_calls(ceiling) <= ceiling
        if state.limit < previous.limit and outcome in LOSSES:
            decreases.append((now, previous.round_trip(POLICY).total_seconds()))
        assert state.limit >= previous.limit * POLICY.decrease_factor - 1e-9 or state.limit == ceiling
    for (last, _), (next_, cool_down) in pairwise(decreases):
        assert (next_ - last).total_seconds() >= cool_down - 1e-5


def test_losses_count_after_the_clock_was_set_back() -> None:
    """For as long as it had been set back a service that refused everything kept all its calls."""
    state = after_call(ConcurrencyState(limit=40.0, latency_seconds=2.0), Outcome.RATE_LIMITED)
    assert after_call(state, Outcome.RATE_LIMITED, at=1.0).limit == state.limit
    assert after_call(state, Outcome.RATE_LIMITED, at=-3600.0).limit < state.limit
