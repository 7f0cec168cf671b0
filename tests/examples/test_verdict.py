"""When to stop, what counts as the law, and how the result is shown."""

import math

import pytest

from examples.kepler.expressions import Tree
from examples.kepler.law import judge
from examples.kepler.report import Point, curve
from examples.kepler.stopping import Limits, stagnation, time_is_short

LIMITS = Limits(min_rounds=3, patience=4, threshold=0.01)


@pytest.mark.parametrize(
    "tree", [["pow", "a", 1.5], ["*", "a", ["sqrt", "a"]], ["pow", ["*", "a", ["pow", "m", 1e-5]], 1.5]]
)
def test_the_law_is_known_by_what_it_does(tree: Tree) -> None:
    verdict = judge(tree, 1.0)
    assert verdict.found
    assert verdict.exponent == pytest.approx(1.5, abs=0.001)
    assert verdict.test_error < 0.002


@pytest.mark.parametrize(
    ("tree", "scale", "reason"),
    [
        (["pow", "a", 1.48], 1.0, "a^1.5"),
        (["*", ["pow", "a", 1.5], ["pow", "m", 0.01]], 1.0, "eccentricity or mass"),
        (["pow", "a", 1.5], 1.02, "held-out"),
        (["log", ["-", "e", 5.0]], 1.0, "a^1.5"),
        (1.0, 1.0, "a^1.5"),
    ],
)
def test_what_is_not_the_law_is_told_why(tree: Tree, scale: float, reason: str) -> None:
    verdict = judge(tree, scale)
    assert not verdict.found
    assert reason in verdict.reason


def test_steady_progress_is_never_stopped() -> None:
    assert stagnation([0.98**i for i in range(50)], LIMITS) is None


def test_small_steps_add_up_to_progress() -> None:
    assert stagnation([0.996**i for i in range(50)], LIMITS) is None


def test_a_flat_curve_stops_when_patience_ends() -> None:
    assert stagnation([1.0, 0.5, 0.5, 0.5, 0.5], LIMITS) is None
    assert stagnation([1.0, 0.5, 0.5, 0.5, 0.5, 0.5], LIMITS) == "no improvement of 1 % in 4 rounds"


def test_rounds_without_any_prediction_are_fruitless() -> None:
    assert stagnation([math.inf] * 3, LIMITS) is None
    assert stagnation([math.inf] * 9, LIMITS) is not None


def test_a_round_that_would_overrun_is_not_begun() -> None:
    limits = Limits(time_limit_seconds=60.0)
    assert not time_is_short(40.0, 4, limits)
    assert time_is_short(55.0, 4, limits)


def test_the_curve_rises_to_the_right() -> None:
    lines = curve([Point(0.0, 1200.0, 1.0), Point(5.0, 1300.0, 0.1), Point(10.0, 1500.0, 0.01)], 20, 4).splitlines()
    assert lines[1].startswith("  1500 │")
    assert lines[1].rstrip().endswith("●")
    assert lines[4].startswith("  1200 │●")
    assert "10.0 s compute" in lines[-1]
    assert sum(line.count("●") for line in lines) == 20


def test_the_curve_bears_one_point_and_none() -> None:
    assert "●" in curve([Point(1.0, 1200.0, 1.0)])
    assert curve([]) == "no rounds were completed"
