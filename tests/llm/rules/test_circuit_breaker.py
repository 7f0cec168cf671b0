"""The breaker opens after three failures in a row, and only its probe decides what follows."""

from datetime import UTC, datetime, timedelta

import pytest

from app.llm.rules.circuit_breaker import Breaker, BreakerPolicy, BreakerState, record_call
from app.llm.rules.outcomes import FAILURES, Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)


def after_calls(breaker: Breaker, *outcomes: Outcome, is_probe: bool = False, at: float = 0.0) -> Breaker:
    for outcome in outcomes:
        now = START + timedelta(seconds=at)
        breaker = record_call(breaker, outcome, is_probe=is_probe, now=now, policy=BreakerPolicy())
    return breaker


def state(breaker: Breaker, at: float = 0.0) -> BreakerState:
    return breaker.state(START + timedelta(seconds=at))


@pytest.mark.parametrize("outcome", sorted(FAILURES))
def test_three_in_a_row_open_it_for_thirty_seconds(outcome: Outcome) -> None:
    assert state(after_calls(Breaker(), outcome, outcome)) is BreakerState.CLOSED
    breaker = after_calls(Breaker(), outcome, outcome, outcome)
    assert [state(breaker, at) for at in (0, 29.9, 30)] == [
        BreakerState.OPEN,
        BreakerState.OPEN,
        BreakerState.HALF_OPEN,
    ]
    assert breaker.remaining_seconds(START) == 30


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.CLIENT_ERROR])
def test_an_answer_in_between_clears_the_count(outcome: Outcome) -> None:
    assert after_calls(Breaker(), Outcome.TIMEOUT, Outcome.TIMEOUT, outcome, Outcome.TIMEOUT).failures == 1


@pytest.mark.parametrize("outcome", [Outcome.RATE_LIMITED, Outcome.CANCELLED])
def test_a_429_and_a_cancelled_call_say_nothing(outcome: Outcome) -> None:
    breaker = after_calls(Breaker(), *[outcome] * 10, Outcome.TIMEOUT, outcome, Outcome.TIMEOUT, outcome)
    assert (breaker.failures, state(breaker)) == (2, BreakerState.CLOSED)


@pytest.mark.parametrize("outcome", sorted(Outcome))
def test_late_news_of_other_calls_change_nothing_while_it_is_open(outcome: Outcome) -> None:
    breaker = after_calls(Breaker(), *[Outcome.SERVER_ERROR] * 3)
    assert after_calls(breaker, outcome, at=31) == breaker


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.SUCCESS, BreakerState.CLOSED),
        (Outcome.CLIENT_ERROR, BreakerState.CLOSED),
        (Outcome.RATE_LIMITED, BreakerState.CLOSED),
        (Outcome.SERVER_ERROR, BreakerState.OPEN),
        (Outcome.TIMEOUT, BreakerState.OPEN),
        (Outcome.CANCELLED, BreakerState.HALF_OPEN),
    ],
)
def test_the_probe_decides(outcome: Outcome, expected: BreakerState) -> None:
    breaker = after_calls(Breaker(), *[Outcome.TIMEOUT] * 3)
    assert state(after_calls(breaker, outcome, is_probe=True, at=31), at=31) is expected
