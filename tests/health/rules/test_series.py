"""Pushed metrics: what is refused, how many series there may be, and that no sample is lost."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.health.rules.series import MetricKind, PushedSample, Series, SeriesPolicy, fold_samples, overflow, refusals

_NOON = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)
_POLICY = SeriesPolicy(max_series=3, max_names=2, ahead_seconds=60, behind_seconds=3600)
_A = Series(name="a")


def _pushed(
    value: float = 1.0, *, name: str = "a", kind: MetricKind = MetricKind.GAUGE, ago: float | None = None
) -> PushedSample:
    at = None if ago is None else _NOON - timedelta(seconds=ago)
    return PushedSample(series=Series(name=name), kind=kind, value=value, at=at)


def test_what_is_in_order_is_taken() -> None:
    samples = [_pushed(-5, ago=3599), _pushed(0, name="b", kind=MetricKind.COUNTER), _pushed(ago=-59)]
    assert refusals(samples, {"a": MetricKind.GAUGE}, _NOON, _POLICY) == []


@pytest.mark.parametrize(
    ("sample", "path", "said"),
    [
        (_pushed(ago=3601), "at", "3,601 s ago"),
        (_pushed(ago=-61), "at", "in the future"),
        (_pushed(-0.1, name="b", kind=MetricKind.COUNTER), "value", "only grows"),
        (_pushed(kind=MetricKind.COUNTER), "kind", "a is a gauge"),
    ],
)
def test_what_is_not_in_order_is_named(sample: PushedSample, path: str, said: str) -> None:
    ((where, why),) = refusals([_pushed(), sample], {}, _NOON, _POLICY)
    assert where == f"samples.1.{path}"
    assert said in why


def test_series_and_names_are_bounded() -> None:
    assert overflow([Series(name="a", agent="ranking")], 2, ["a", "b"], _POLICY) is None
    assert overflow([_A, _A], 2, ["a"], _POLICY) is None
    assert "2 series already" in (overflow([_A, Series(name="a", goal="x")], 2, ["a"], _POLICY) or "")
    assert "2 names" in (overflow([Series(name="c")], 0, ["a", "b"], _POLICY) or "")


def test_the_last_sample_is_that_of_the_latest_time() -> None:
    (point,) = fold_samples([_pushed(7, ago=5), _pushed(1, ago=20), _pushed(3, ago=10)], _NOON)
    assert (point.samples, point.total, point.low, point.high, point.last) == (3, 11, 1, 7, 7)
    assert point.minute == _NOON.replace(second=0)
    (point,) = fold_samples([_pushed(5), _pushed(9), _pushed(4)], _NOON)
    assert point.last == 4


_SAMPLES = st.lists(
    st.builds(
        _pushed,
        st.integers(-1000, 1000),
        name=st.sampled_from("abc"),
        ago=st.none() | st.integers(0, 300),
    )
)


@given(_SAMPLES)
def test_no_sample_is_lost(samples: list[PushedSample]) -> None:
    minutes = fold_samples(samples, _NOON)
    assert sum(point.samples for point in minutes) == len(samples)
    assert sum(point.total for point in minutes) == sum(pushed.value for pushed in samples)
    keys: list[Any] = [(point.series, point.minute) for point in minutes]
    assert keys == sorted(set(keys))
    for point in minutes:
        assert point.low <= point.last <= point.high
        assert point.minute <= point.last_at < point.minute + timedelta(minutes=1)
