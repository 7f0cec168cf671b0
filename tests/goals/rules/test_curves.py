"""The stopping rule on the one published curve of quality over test-time compute, stretched and made noisy."""

import statistics

import pytest

from app.goals.rules.stopping import StoppingPolicy, Unit
from benchmarks.curves import Curve, flat, gain_share, published, stop_iteration, synthetic, with_glitch, with_noise

_RUNS = 300


def shares(curve: Curve, noise: float, policy: StoppingPolicy) -> list[float]:
    seeds = range(_RUNS if noise else 1)
    return [gain_share(curve, stop_iteration(with_noise(curve, noise, seed), policy)) for seed in seeds]


POLICIES = {
    "the default": StoppingPolicy(),
    "a share of 0.001": StoppingPolicy(unit=Unit.RELATIVE, threshold=0.001),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("column", ["best_elo", "top10_elo"])
@pytest.mark.parametrize("noise", [0, 8, 25])
def test_nine_tenths_of_the_gain_are_kept(noise: float, column: str, policy: StoppingPolicy) -> None:
    assert statistics.mean(shares(published(column), noise, policy)) >= 0.9


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("noise", [0, 8, 25])
def test_a_flat_curve_stops_by_iteration_18(noise: float, policy: StoppingPolicy) -> None:
    stops = [stop_iteration(with_noise(flat(), noise, seed), policy) for seed in range(_RUNS if noise else 1)]
    assert statistics.mean(stops) <= 18


def test_a_short_patience_throws_the_gain_away() -> None:
    """Why the default is 10."""
    assert statistics.mean(shares(published(), 25, StoppingPolicy(patience=3))) < 0.5


def test_a_glitch_does_not_hide_a_climb() -> None:
    curve = synthetic("straight")
    stops = [stop_iteration(with_glitch(with_noise(curve, 25, seed)), StoppingPolicy()) for seed in range(_RUNS)]
    assert statistics.mean(gain_share(curve, stop) for stop in stops) > 0.9
