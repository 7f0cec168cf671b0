"""Meters never admit more than burst plus rate times time, and say exactly when they would."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app.llm.rules.rate_limit import Meter, charge, correct, wait_time

START = datetime(2026, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_METERS = st.builds(
    Meter,
    limit=st.integers(1, 1_000_000),
    window_seconds=st.floats(1, 86_400),
    burst=st.integers(1, 1000),
    tat=st.just(START),
)
_CALLS = st.lists(
    st.tuples(st.timedeltas(timedelta(), timedelta(hours=1)), st.integers(0, 1000)), min_size=1, max_size=30
)


def test_a_burst_and_then_one_a_time() -> None:
    meter = Meter(limit=60, window_seconds=60, burst=3, tat=START)
    for _ in range(3):
        assert wait_time(meter, 1, START) <= timedelta()
        meter = charge(meter, 1, START)
    assert wait_time(meter, 1, START) == timedelta(seconds=1)
    assert wait_time(meter, 2, START) == timedelta(seconds=2)


def test_what_turned_out_cheaper_is_given_back() -> None:
    meter = charge(Meter(limit=60, window_seconds=60, burst=10, tat=START), 10, START)
    assert wait_time(correct(meter, -10), 10, START) <= timedelta()
    assert wait_time(correct(meter, 20), 1, START) == timedelta(seconds=21)


def test_what_is_owed_ends_with_two_windows_and_with_a_clock_that_was_set_back() -> None:
    meter = Meter(limit=60, window_seconds=60, burst=30, tat=START + timedelta(hours=1))
    bounded = meter.bounded(START)
    assert bounded.tat == meter.owed_until(bounded.tat, START) == START + timedelta(seconds=120)
    assert meter.owed_until(START + timedelta(seconds=210), START) == START + timedelta(seconds=210)
    assert meter.owed_until(START + timedelta(seconds=211), START) == START
    assert meter.owed_until(None, START) == START


@given(meter=_METERS, calls=_CALLS)
def test_never_more_than_burst_and_rate(meter: Meter, calls: list[tuple[timedelta, int]]) -> None:
    now, admitted = START, []
    for pause, units in calls:
        now += pause
        cost = min(units, meter.burst)
        if wait_time(meter, cost, now) <= timedelta():
            meter = charge(meter, cost, now)
            admitted.append((now, cost))
    for first, (since, _) in enumerate(admitted):
        units = 0
        for at, cost in admitted[first:]:
            units += cost
            # Every charge is rounded to a microsecond.
            assert meter.duration(units) <= meter.duration(meter.burst) + (at - since) + _TICK * (len(admitted) + 2)


@given(
    meter=_METERS,
    first_cost=st.integers(0, 5000),
    cost=st.integers(0, 5000),
    later=st.timedeltas(timedelta(), timedelta(60)),
)
def test_the_wait_is_exact(meter: Meter, first_cost: int, cost: int, later: timedelta) -> None:
    now = START + later
    meter = charge(meter, first_cost, START)
    seconds = wait_time(meter, cost, now)
    if seconds > timedelta():
        assert wait_time(meter, cost, now + seconds) == timedelta()
        assert wait_time(meter, cost, now + seconds - _TICK) == _TICK


@given(meter=_METERS, cost=st.integers(1001, 10**9))
def test_what_is_larger_than_the_burst_is_admitted_and_paid_for_afterwards(meter: Meter, cost: int) -> None:
    assert wait_time(meter, cost, START) <= timedelta()
    assert charge(meter, cost, START).tat == START + meter.duration(cost)
    assert meter.duration(cost) <= timedelta(days=1)
