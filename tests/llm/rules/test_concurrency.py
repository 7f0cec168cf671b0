"""The calls that a service bears: a slow start, gentle growth, one step back for each wave of losses."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.llm.rules.concurrency import Pressure, PressurePolicy, after
from app.llm.rules.outcomes import LOSSES, Outcome, Report

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = PressurePolicy()


def reported(pressure: Pressure, outcome: Outcome, *, in_use: int = 100, at: float = 0.0, **told: Any) -> Pressure:
    now = START + timedelta(seconds=at)
    return after(pressure, Report(outcome=outcome, **told), in_use=in_use, ceiling=64, now=now, policy=POLICY)


def test_it_doubles_in_a_round_trip_until_the_first_loss() -> None:
    pressure, sizes = Pressure(), []
    for _ in range(5):
        in_flight = pressure.allowed(64)
        for _ in range(in_flight):
            pressure = reported(pressure, Outcome.SUCCESS, in_use=in_flight)
        sizes.append(pressure.allowed(64))
    assert sizes == [8, 16, 32, 64, 64]
    pressure = reported(pressure, Outcome.RATE_LIMITED)
    assert not pressure.ramping
    assert pressure.limit == pytest.approx(57.6)
    before = pressure.limit
    for _ in range(round(before)):
        pressure = reported(pressure, Outcome.SUCCESS)
    assert pressure.limit == pytest.approx(before + 1, abs=0.1)


@pytest.mark.parametrize("outcome", sorted(LOSSES))
def test_a_wave_of_losses_is_one_step_back(outcome: Outcome) -> None:
    pressure = Pressure(limit=20, ramping=False, latency_seconds=2)
    for _ in range(20):
        pressure = reported(pressure, outcome)
    assert pressure.limit == pytest.approx(18)
    assert reported(pressure, outcome, at=1.9).limit == pytest.approx(18)
    assert reported(pressure, outcome, at=2.0).limit == pytest.approx(16.2)


def test_a_limit_that_nobody_comes_near_does_not_grow() -> None:
    assert reported(Pressure(limit=10, ramping=False), Outcome.SUCCESS, in_use=4).limit == 10
    assert reported(Pressure(limit=10, ramping=False), Outcome.SUCCESS, in_use=5).limit == pytest.approx(10.1)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"retry_after_seconds": 7, "reset_requests_seconds": 60}, 7),
        ({"reset_requests_seconds": 6, "reset_tokens_seconds": 0.012}, 6),
        ({"reset_requests_seconds": -1, "reset_tokens_seconds": 0}, 0),
        ({"retry_after_seconds": -1, "reset_tokens_seconds": 3}, 3),
        ({"retry_after_seconds": 86_400}, 3600),
        ({}, 0),
    ],
)
def test_it_waits_as_long_as_the_service_wants(told: dict[str, Any], seconds: float) -> None:
    assert reported(Pressure(), Outcome.RATE_LIMITED, **told).cooldown_seconds(START) == seconds
    assert reported(Pressure(), Outcome.SUCCESS, **told).cooldown_seconds(START) == 0


def test_a_shorter_wish_does_not_end_a_longer_wait() -> None:
    pressure = reported(Pressure(), Outcome.RATE_LIMITED, retry_after_seconds=60)
    assert reported(pressure, Outcome.SERVER_ERROR, retry_after_seconds=1).cooldown_seconds(START) == 60


_EVENTS = st.lists(
    st.tuples(st.sampled_from(Outcome), st.integers(1, 100), st.floats(0, 10), st.floats(0, 100)), max_size=60
)


@given(events=_EVENTS, ceiling=st.integers(1, 100))
def test_it_stays_between_one_and_what_people_allow(
    events: list[tuple[Outcome, int, float, float]], ceiling: int
) -> None:
    pressure, now, shrunk = Pressure(), START, []
    for outcome, in_use, pause, latency in events:
        now += timedelta(seconds=pause)
        before = pressure
        report = Report(outcome=outcome, latency_seconds=latency)
        pressure = after(pressure, report, in_use=in_use, ceiling=ceiling, now=now, policy=POLICY)
        assert 1 <= pressure.allowed(ceiling) <= ceiling
        if pressure.limit < before.limit and outcome in LOSSES:
            shrunk.append((now, before.latency(POLICY)))
        assert pressure.limit >= before.limit * POLICY.shrink - 1e-9 or pressure.limit == ceiling
    for (one, _), (next_, cool_down) in pairwise(shrunk):
        assert (next_ - one).total_seconds() >= cool_down - 1e-5
