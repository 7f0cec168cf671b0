"""Fitting on the published orbits."""

import math

import pytest

from examples.kepler.data import sample
from examples.kepler.expressions import constants
from examples.kepler.fitting import descend, fit, log_errors, root_mean_square, scaled


def test_the_exponent_is_recovered_from_the_data() -> None:
    fitted = fit(["pow", "a", 0.7], sample("train"), evaluations=60)
    assert fitted is not None
    assert constants(fitted.tree)[0] == pytest.approx(1.5, abs=0.001)
    assert fitted.scale == pytest.approx(1.0, abs=0.001)
    assert fitted.error < 0.001


def test_more_evaluations_never_fit_worse() -> None:
    errors = [fitted.error for n in (0, 8, 20, 80) if (fitted := fit(["pow", "a", 0.2], sample("train"), n))]
    assert len(errors) == 4
    assert errors == sorted(errors, reverse=True)


def test_the_scale_is_the_least_squares_one() -> None:
    fitted = scaled(["square", "a"], sample("train"))
    assert fitted is not None
    for factor in (0.99, 1.01):
        other = root_mean_square(log_errors(fitted.tree, factor * fitted.scale, sample("train")))
        assert other > fitted.error


def test_a_formula_that_is_negative_everywhere_gets_a_negative_scale() -> None:
    fitted = scaled(["*", -1.0, "a"], sample("train"))
    assert fitted is not None
    assert fitted.scale < 0.0


@pytest.mark.parametrize("tree", [["log", "a"], ["-", "a", 5.0], ["sqrt", ["-", 1.0, "a"]], 0.0])
def test_a_formula_without_a_period_for_some_body_has_no_fit(tree: list[object]) -> None:
    assert fit(tree, sample("train"), evaluations=0) is None  # type: ignore[arg-type] # parametrised


def test_an_undefined_prediction_is_infinitely_wrong() -> None:
    errors = log_errors(["-", "a", 5.0], 1.0, sample("held_out"))
    assert math.isinf(errors[0])
    assert math.isfinite(errors[-1])


def test_the_simplex_finds_a_minimum_in_three_dimensions() -> None:
    target = [1.0, -2.0, 0.5]
    found = descend(lambda p: sum((x - t) ** 2 for x, t in zip(p, target, strict=True)), [0.0, 0.0, 0.0], 300)
    assert found == pytest.approx(target, abs=1e-3)


def test_the_simplex_keeps_its_budget() -> None:
    calls: list[float] = []

    def distance(point: list[float]) -> float:
        calls.append(point[0])
        return abs(point[0] - 9.0)

    descend(distance, [0.0], 8)
    # A step that has begun is finished.
    assert 2 <= len(calls) <= 9


def test_the_splits_share_no_body_and_all_are_in_range() -> None:
    names = [name for split in ("train", "held_out", "test") for name in sample(split).names]
    assert len(names) == len(set(names)) == 20
    assert sample("test").names == ["Neptune"]
