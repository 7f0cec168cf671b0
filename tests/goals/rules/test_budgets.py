"""Hard limits: what is used up, what the next iteration would overrun, and notices."""

from hypothesis import given
from hypothesis import strategies as st

from app.goals.rules.budgets import (
    Compute,
    Forecast,
    Limits,
    Usage,
    decayed_mean,
    exhausted_limit,
    notices,
    overrun_reason,
)

LIMITS = Limits(max_iterations=10, time_seconds=100.0, compute_seconds=200.0, money=5.0)


def used(**changes: float) -> Usage:
    compute = Compute(spent_seconds=changes.pop("spent", 0.0))
    return Usage(
        iterations=int(changes.get("iterations", 0)),
        elapsed_seconds=changes.get("elapsed", 0.0),
        money=changes.get("money", 0.0),
        compute=compute,
    )


def test_what_is_used_up() -> None:
    assert exhausted_limit(LIMITS, used()) is None
    assert exhausted_limit(LIMITS, used(iterations=10)) == "the limit of 10 iterations (10 so far) is used up"
    assert exhausted_limit(LIMITS, used(elapsed=100)) == "the limit of 100 s of time (100 s so far) is used up"
    assert exhausted_limit(LIMITS, used(spent=250)) == "the limit of 200 s of compute (250 s so far) is used up"
    assert exhausted_limit(LIMITS, used(money=5.5)) == "the limit of 5 money (5.5 so far) is used up"
    assert exhausted_limit(Limits(max_iterations=1), used(elapsed=1e9, spent=1e9, money=1e9)) is None


def test_an_iteration_that_would_overrun_does_not_begin() -> None:
    forecast = Forecast(seconds=30.0, compute_seconds=60.0, money=1.0)
    assert overrun_reason(LIMITS, used(elapsed=70, spent=140, money=4), forecast) is None
    assert "overrun the limit of 100 s of time" in str(overrun_reason(LIMITS, used(elapsed=71), forecast))
    assert "it takes about 60 s" in str(overrun_reason(LIMITS, used(spent=141), forecast))
    assert "of money" not in str(overrun_reason(LIMITS, used(money=4.5), forecast))
    assert "overrun the limit of 5 money" in str(overrun_reason(LIMITS, used(money=4.5), forecast))


def test_running_tasks_are_committed() -> None:
    compute = Compute(spent_seconds=100.0, attempts=10, running=3, running_seconds=12.0)
    assert compute.committed_seconds == 130.0
    assert Compute(spent_seconds=100.0, attempts=10, running=3, running_seconds=80.0).committed_seconds == 180.0
    assert Compute(running=3, running_seconds=7.0).committed_seconds == 7.0


def test_notices_name_the_highest_level_that_is_reached() -> None:
    assert notices(LIMITS, used(elapsed=79.9)) == []
    assert notices(LIMITS, used(elapsed=80)) == ["at least 80 % are used: the limit of 100 s of time (80 s so far)"]
    assert notices(LIMITS, used(elapsed=94.9))[0].startswith("at least 90 %")
    assert [n[:13] for n in notices(LIMITS, used(elapsed=95, spent=185))] == ["at least 95 %", "at least 90 %"]


def test_the_forecast_follows_what_iterations_take() -> None:
    assert decayed_mean([]) is None
    assert decayed_mean([4.0]) == 4.0
    assert decayed_mean([1.0, 3.0]) == 2.0
    assert 8.0 < (decayed_mean([1.0] * 10 + [10.0] * 4) or 0) < 10.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_the_forecast_lies_among_what_was_seen(values: list[float]) -> None:
    mean = decayed_mean(values)
    assert mean is not None
    assert min(values) - 1e-6 <= mean <= max(values) + 1e-6
