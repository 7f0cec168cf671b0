"""What counts as the law, and how the result is shown."""

import pytest

from examples.kepler.expressions import Tree
from examples.kepler.law import judge
from examples.kepler.report import Point, curve


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
