"""Spans of utilisation: what is fresh, what is the mean, and where steps begin."""

from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.health.rules import utilisation
from app.health.rules.utilisation import Measure, UtilisationPolicy
from tests.support.snapshots import HOST, NOON, span

_POLICY = UtilisationPolicy(stale_seconds=60)
_HOUR = timedelta(hours=1)


def test_the_latest_is_the_newest_that_is_fresh() -> None:
    spans = [
        span(HOST, Measure.CPU, 1.0, ago=1),
        span(HOST, Measure.CPU, 2.0, ago=59),
        span(HOST, Measure.MEMORY, 3.0),
        span(utilisation.POOL, Measure.CPU, 4.0, ago=61),
    ]
    latest = utilisation.latest_spans(spans, Measure.CPU, NOON, _POLICY)
    assert {subject: span.last for subject, span in latest.items()} == {HOST: 1.0}


def test_the_mean_is_that_of_samples_not_of_spans() -> None:
    spans = [span(HOST, Measure.CPU, 10.0, samples=9), span(HOST, Measure.CPU, 100.0, samples=1)]
    assert utilisation.sample_mean(spans, HOST, Measure.CPU) == 19.0
    assert utilisation.sample_mean(spans, HOST, Measure.BUSY) is None


def test_hosts_are_told_from_others() -> None:
    assert utilisation.is_host(utilisation.host_subject("workers"))
    assert not utilisation.is_host(utilisation.WORKERS)


@given(
    st.datetimes(timezones=st.just(NOON.tzinfo)).filter(lambda moment: 1980 < moment.year < 3000),
    st.timedeltas(timedelta(0), 7 * _HOUR),
    st.sampled_from([60, 300, 600, 3600, 7 * 60]),
)
def test_steps_cover_the_time_without_gaps(since: object, length: timedelta, seconds: int) -> None:
    assert isinstance(since, type(NOON))
    step, until = timedelta(seconds=seconds), since + length
    starts = utilisation.step_starts(since, until, step)
    if length > timedelta(0):
        assert starts[0] <= since < starts[0] + step
        assert starts[-1] < until <= starts[-1] + step
    assert all(later - earlier == step for earlier, later in pairwise(starts))
