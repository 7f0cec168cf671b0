"""What a refusal's headers say, and how long is waited."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.llm.rate_limit_hints import RateLimitHints, backoff_seconds, parse_duration, read_hints

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("20", 20.0),
        ("0.25", 0.25),
        (" 7S ", 7.0),
        ("99999999", 86_400.0),
    ],
)
def test_durations_come_in_many_forms(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["-1", "0", "0s", "", None, "soon", "s", "1x", "1s later", "nan", "inf", "-5s", "1e3", 100 * "0" + "7s"]
)
def test_what_is_no_wait_is_left_out(text: str | None) -> None:
    assert parse_duration(text) is None


@given(st.text(max_size=20))
def test_no_text_makes_it_stumble(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or 0 < seconds <= 86_400


@pytest.mark.parametrize(
    ("headers", "min_seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "Tue, 24 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "next week"}, 0.0),
        ({"retry-after": "Tue, 24 Nov 2026 12:00:30 GMT" + 100 * " "}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "-1", "x-ratelimit-reset-tokens": "0"}, 0.0),
        ({"retry-after": "3", "x-ratelimit-reset-tokens": "6m0s"}, 3.0),
        ({}, 0.0),
    ],
)
def test_the_least_wait(headers: dict[str, str], min_seconds: float) -> None:
    assert read_hints(headers, NOW).min_seconds == pytest.approx(min_seconds)


@given(
    st.integers(min_value=0, max_value=10_000),
    st.floats(min_value=0, max_value=1, exclude_max=True),
    st.none() | st.floats(min_value=0.001, max_value=3600),
)
def test_a_pause_is_never_shorter_than_told_nor_longer_than_the_jitter_allows(
    refusals: int, draw: float, retry_after: float | None
) -> None:
    min_seconds = retry_after or 0.0
    assert min_seconds <= backoff_seconds(refusals, RateLimitHints(retry_after=retry_after), draw) <= min_seconds + 60


def test_pauses_grow_with_the_refusals() -> None:
    assert [backoff_seconds(k, RateLimitHints(), 0.5) for k in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
