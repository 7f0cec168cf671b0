"""How service times are learned."""

import pytest

from app.kernel.agents import AgentType
from app.scaling.rules.estimates import ServiceTimePolicy, ServiceTimes, next_mean

G = AgentType.GENERATION


def test_the_prior_counts_as_one_task() -> None:
    times = ServiceTimes()
    assert times.estimate(G) == 20
    times.observe(G, 10.0)
    assert times.estimate(G) == 15
    times.observe(G, 3.0)
    assert times.estimate(G) == pytest.approx((20 + 10 + 3) / 3)


def test_in_the_long_run_the_last_twenty_count() -> None:
    assert next_mean(10.0, 500, 30.0, ServiceTimePolicy()) == pytest.approx(11.0)


def test_nothing_is_taken_to_cost_nothing() -> None:
    times = ServiceTimes()
    for _ in range(200):
        times.observe(G, 0.01)
    assert times.estimate(G) == 1.0
