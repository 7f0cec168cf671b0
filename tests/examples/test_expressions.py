"""Expression trees: values, simplification that keeps them, and notation."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from examples.kepler.data import Table
from examples.kepler.expressions import (
    BINARY,
    UNARY,
    Tree,
    constants,
    evaluate,
    part,
    paths,
    replace_part,
    size,
    variables,
    with_constants,
)
from examples.kepler.notation import formula, text
from examples.kepler.simplify import simplify, without_coefficient

TABLE: Table = {"a": [0.39, 1.0, 39.5], "e": [0.21, 0.017, 0.25], "m": [0.055, 1.0, 0.0022]}

leaves = st.one_of(
    st.sampled_from(["a", "e", "m"]),
    st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5]),
    st.floats(-9.0, 9.0).map(lambda value: round(value, 2)),
)
trees: st.SearchStrategy[Tree] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(UNARY)), inner).map(list),
        st.tuples(st.sampled_from(sorted(BINARY)), inner, inner).map(list),
        st.tuples(st.just("pow"), inner, st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0])).map(list),
    ),
    max_leaves=8,
)


def well_conditioned(tree: Tree) -> bool:
    """Whether rounding cannot matter: a nudge of 1e-10 to the inputs hardly moves the value."""
    nudged = {name: [value * (1.0 + 1e-10) for value in column] for name, column in TABLE.items()}
    values, moved = evaluate(tree, TABLE), evaluate(tree, nudged)
    return all(
        math.isnan(x) or (1e-80 < abs(x) < 1e80 and abs(x - y) < 1e-6 * abs(x)) or x == y == 0.0
        for x, y in zip(values, moved, strict=True)
    )


@given(trees)
def test_simplification_keeps_the_value_wherever_there_is_one(tree: Tree) -> None:
    assume(all(well_conditioned(part(tree, path)) for path in paths(tree)))
    for value, simple in zip(evaluate(tree, TABLE), evaluate(simplify(tree), TABLE), strict=True):
        assert math.isnan(value) or simple == pytest.approx(value, rel=1e-5, abs=1e-9)


@given(trees)
def test_simplification_adds_little_and_no_variables(tree: Tree) -> None:
    # Collected powers may need one more node each: 1 / x / x becomes x^-2.
    assert size(simplify(tree)) <= size(tree) + 2 * len(paths(tree))
    assert variables(simplify(tree)) <= variables(tree)


@given(trees)
def test_simplification_is_finished_after_one_pass(tree: Tree) -> None:
    once = simplify(tree)
    assert size(simplify(once)) <= size(once)


@given(trees)
def test_a_value_is_a_bounded_number_or_undefined(tree: Tree) -> None:
    assert all(math.isnan(value) or abs(value) < 1e100 for value in evaluate(tree, TABLE))


@pytest.mark.parametrize(
    ("tree", "simple"),
    [
        (["*", "a", ["sqrt", "a"]], ["pow", "a", 1.5]),
        (["sqrt", ["cube", "a"]], ["pow", "a", 1.5]),
        (["/", ["square", "a"], ["sqrt", "a"]], ["pow", "a", 1.5]),
        (["*", ["/", "m", "e"], ["/", "e", "m"]], 1.0),
        (["-", "a", "a"], 0.0),
        (["log", ["exp", "e"]], "e"),
        (["+", "m", ["-", 2.0, 2.0]], "m"),
        # sqrt(x^2) is |x|: the sign of a difference is not known.
        (["sqrt", ["square", ["-", "a", 1.0]]], ["sqrt", ["square", ["-", "a", 1.0]]]),
    ],
)
def test_equal_formulas_are_brought_to_one_form(tree: Tree, simple: Tree) -> None:
    assert simplify(tree) == simple


def test_the_leading_coefficient_is_split_off() -> None:
    assert without_coefficient(["*", ["*", 2.0, "a"], ["*", 3.0, ["sqrt", "a"]]]) == (["pow", "a", 1.5], 6.0)


def test_undefined_parts_are_not_hidden() -> None:
    assert all(math.isnan(value) for value in evaluate(["pow", ["log", -1.0], 0.0], TABLE))
    assert all(math.isnan(value) for value in evaluate(["/", 1.0, ["exp", ["exp", 9.0]]], TABLE))


def test_parts_can_be_found_and_exchanged() -> None:
    tree: Tree = ["+", ["pow", "a", 2.0], 3.0]
    assert [part(tree, path) for path in paths(tree)] == [tree, ["pow", "a", 2.0], "a", 2.0, 3.0]
    assert replace_part(tree, (1, 1), "m") == ["+", ["pow", "m", 2.0], 3.0]
    assert with_constants(tree, iter([7.0, 8.0])) == ["+", ["pow", "a", 7.0], 8.0]
    assert constants(tree) == [2.0, 3.0]
    assert size(tree) == 5


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (["pow", "a", 1.5], "a^1.500"),
        (["-", "a", ["-", "e", "m"]], "a - (e - m)"),
        (["*", ["+", "a", 1.0], "e"], "(a + 1) * e"),
        (["cube", ["/", "a", "m"]], "(a / m)^3.000"),
        (["pow", "a", -0.5], "a^(-0.500)"),
        (["*", "a", -2.0], "a * (-2)"),
        (["exp", ["log", "a"]], "exp(log(a))"),
    ],
)
def test_notation(tree: Tree, expected: str) -> None:
    assert text(tree) == expected


def test_a_formula_shows_its_scale() -> None:
    assert formula(["pow", "a", 1.4999], 1.00004) == "T = 1.0000 * a^1.500"
    assert formula(["+", "a", "e"], 12345.0) == "T = 1.234e+04 * (a + e)"
    assert formula(1.0, 4.0) == "T = 4.0000"
