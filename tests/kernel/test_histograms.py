"""Durations in buckets: they add up, and a percentile is where the true one is."""

import math

from hypothesis import given
from hypothesis import strategies as st

from app.kernel.histograms import BOUNDS, Durations, bucket, total

_SECONDS = st.floats(min_value=0, max_value=1e6)
_SHARES = st.floats(min_value=0.01, max_value=1)


def _measured(seconds: list[float]) -> Durations:
    histogram = [0] * (len(BOUNDS) + 1)
    for duration in seconds:
        histogram[bucket(duration)] += 1
    return Durations(count=len(seconds), seconds=sum(seconds), longest=max(seconds), histogram=histogram)


def test_buckets_double() -> None:
    assert len(BOUNDS) == 23
    assert (BOUNDS[0], BOUNDS[-1]) == (0.01, 41943.04)
    assert [bucket(seconds) for seconds in (0, 0.0099, 0.01, 0.0199, 0.02, 41943, 41944, 1e9)] == [
        *(0, 0, 1, 1, 2, 22, 23, 23)
    ]


def test_nothing_has_no_percentile() -> None:
    assert Durations().percentile(0.5) is None
    assert Durations().mean is None
    assert total([]) == Durations()


def test_events_without_seconds_count_but_tell_no_percentile() -> None:
    assert Durations(count=3).percentile(0.5) is None


def test_one_duration_is_every_percentile_at_most() -> None:
    one = _measured([0.013])
    assert one.percentile(1) == 0.013
    assert one.mean == 0.013


@given(_SECONDS, st.integers(1, 60), _SHARES)
def test_where_all_take_as_long_every_percentile_is_that(seconds: float, count: int, share: float) -> None:
    estimate = _measured([seconds] * count).percentile(share)
    assert estimate is not None
    assert math.isclose(estimate, seconds, rel_tol=1e-6, abs_tol=1e-9)


def test_the_mean_of_similar_durations_is_below_their_high_percentiles() -> None:
    """As seen in the runtime metrics: tasks of 0.15 s, of which a line from 0.08 s on makes 0.1466 s at 95 %."""
    durations = _measured([0.148, *[0.15] * 98, 0.151])
    p95 = durations.percentile(0.95)
    assert durations.mean is not None
    assert p95 is not None
    assert durations.mean <= p95 <= 0.151


def test_few_long_ones_lift_the_mean_above_a_percentile_that_they_do_not_reach() -> None:
    durations = _measured([*[1.0] * 97, *[1000.0] * 3])
    assert durations.mean is not None
    assert (p95 := durations.percentile(0.95)) is not None
    assert p95 < 2 < durations.mean


@given(st.lists(_SECONDS, min_size=1, max_size=60), _SHARES)
def test_a_percentile_lies_in_the_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    estimate = _measured(seconds).percentile(share)
    true = sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
    assert estimate is not None
    lower = BOUNDS[bucket(true) - 1] if bucket(true) else 0.0
    upper = BOUNDS[bucket(true)] if bucket(true) < len(BOUNDS) else math.inf
    assert lower <= estimate <= min(upper, max(seconds))


@given(st.lists(_SECONDS, min_size=1, max_size=60), _SHARES, _SHARES)
def test_a_larger_share_takes_no_less(seconds: list[float], one: float, other: float) -> None:
    known = _measured(seconds)
    less, more = known.percentile(min(one, other)), known.percentile(max(one, other))
    assert less is not None
    assert more is not None
    assert less <= more + 1e-9 * more


@given(st.lists(_SECONDS, min_size=1, max_size=20), st.lists(_SECONDS, min_size=1, max_size=20))
def test_parts_add_up(some: list[float], others: list[float]) -> None:
    whole, both = total([_measured(some), _measured(others)]), _measured(some + others)
    assert (whole.count, whole.longest, list(whole.histogram)) == (both.count, both.longest, list(both.histogram))
    assert math.isclose(whole.seconds, both.seconds, abs_tol=1e-9)


def test_parts_without_seconds_add_up_with_others() -> None:
    whole = total([Durations(count=2), _measured([1.0])])
    assert (whole.count, sum(whole.histogram)) == (3, 1)


def test_the_variation_is_none_without_durations_and_grows_with_their_spread() -> None:
    assert Durations().variation is None
    assert _measured([5.0] * 9).variation == 0.0
    # Half of 1.25 s and half of 20 s in truth: a mean of 10.6 s, and a deviation of 9.4 s.
    assert 0.6 < (_measured([1.25, 20.0] * 50).variation or 0.0) < 0.95
