"""The stopping rule: its stops on known curves, and its guarantees on any."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.goals.rules.stopping import (
    Quality,
    QualityReading,
    StoppingPolicy,
    StoppingRule,
    Unit,
    improvement,
    judge,
    measured_value,
)


def readings(values: Sequence[float | None]) -> list[QualityReading]:
    return [QualityReading(number=n, quality=Quality(best=value)) for n, value in enumerate(values, 1)]


def stops_at(values: Sequence[float | None], policy: StoppingPolicy) -> int | None:
    history = readings(values)
    return next((n for n in range(1, len(history) + 1) if judge(history[:n], policy).stop), None)


DEFAULT = StoppingPolicy()
RULES = [StoppingPolicy(rule=rule, unit=unit) for rule in StoppingRule for unit in Unit]
RANGE_ENDS = (0.001, 0.1)


def test_35_elo_are_an_improvement_of_5_percent() -> None:
    assert improvement(Unit.WIN_PROBABILITY, 1235, 1200) == pytest.approx(0.05, abs=0.001)
    assert improvement(Unit.WIN_PROBABILITY, 1200, 1235) == pytest.approx(-0.05, abs=0.001)
    assert improvement(Unit.RELATIVE, 1.1, 1.0) == pytest.approx(0.1)


def test_example_3_an_increase_of_5_percent_an_iteration_goes_on_up_to_the_maximum() -> None:
    climb = [1200 + 34.9 * n for n in range(100)]
    for threshold in (0.001, 0.01, 0.05):
        policy = StoppingPolicy(threshold=threshold)
        assert stops_at(climb, policy) is None
        assert judge(readings(climb), policy).reason.startswith("improved by 0.05")


@pytest.mark.parametrize("threshold", RANGE_ENDS)
@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("level", [1200.0, 0.0, -3.0, 1e-12, 1e12])
def test_a_flat_curve_stops_when_patience_is_at_its_end(level: float, unit: Unit, threshold: float) -> None:
    flat = [level] * 40
    assert stops_at(flat, StoppingPolicy(unit=unit, threshold=threshold)) == 11
    assert stops_at(flat, StoppingPolicy(unit=unit, threshold=threshold, patience=3)) == 4
    assert stops_at(flat, StoppingPolicy(unit=unit, threshold=threshold, rule=StoppingRule.SLOPE)) == 10


@pytest.mark.parametrize("policy", RULES)
def test_what_was_never_measured_stops_too(policy: StoppingPolicy) -> None:
    nothing: list[float | None] = [None, math.nan, math.inf, -math.inf] * 10
    assert stops_at(nothing, policy) in (10, 11)


@pytest.mark.parametrize("policy", RULES)
def test_a_falling_curve_stops(policy: StoppingPolicy) -> None:
    assert stops_at([1300 - 20.0 * n for n in range(40)], policy) in (10, 11)


def test_one_huge_jump_is_one_improvement() -> None:
    assert stops_at([1200.0] * 5 + [5000.0] * 40, DEFAULT) == 16
    assert stops_at([0.0] * 5 + [1e12] * 40, StoppingPolicy(unit=Unit.RELATIVE)) == 16


def test_a_glitch_does_not_hide_a_climb() -> None:
    climb = [1300 + 8.0 * n for n in range(40)]
    climb[4] += 1000
    assert stops_at(climb, DEFAULT) is None
    assert stops_at(climb, StoppingPolicy(climb_errors=None)) == 15


def test_small_steps_add_up() -> None:
    """0.01 are 7 Elo; 2 an iteration are enough in four of them."""
    assert stops_at([1200 + 2.0 * n for n in range(60)], DEFAULT) is None
    assert stops_at([1200 + 0.1 * n for n in range(60)], DEFAULT) == 11


def test_the_reason_has_the_numbers() -> None:
    reason = judge(readings([1200.0] * 11), DEFAULT).reason
    assert reason == "no improvement of 0.01 in win probability in the last 10 iterations"
    assert judge(readings([1200.0] * 5), DEFAULT).reason.endswith("in the last 4 iterations; patience is 10")
    assert "of 1 % in" in judge(readings([1.0] * 11), StoppingPolicy(unit=Unit.RELATIVE)).reason


def test_min_iterations_come_first() -> None:
    policy = StoppingPolicy(min_iterations=20)
    assert stops_at([1200.0] * 40, policy) == 20
    assert "at least 20 iterations are wanted" in judge(readings([1200.0] * 12), policy).reason


def test_quality_is_not_judged_where_that_is_switched_off() -> None:
    assert stops_at([1200.0] * 100, StoppingPolicy(judges=False)) is None
    rising = [1200.0 + 50 * number for number in range(100)]
    assert stops_at(rising, StoppingPolicy(judges=False, ends_at_minimum=True, min_iterations=4)) == 4


def test_the_tested_top_is_judged_where_it_is_known() -> None:
    assert measured_value(Quality(best=1300, top=1200, matches=3)) == ("the mean of the top", 1200)
    assert measured_value(Quality(best=1300, top=1200)) == ("the mean of the top", 1200)
    assert measured_value(Quality(best=1300, top=1200, matches=2)) == ("the best", 1300)
    assert measured_value(Quality(top=1200, matches=2)) is None
    assert measured_value(Quality(best=math.nan, top=math.nan)) is None
    assert measured_value(Quality(best=0.0)) == ("the best", 0.0)


def test_measures_are_never_compared_with_each_other() -> None:
    """A best of 1300 after a top of 1200 is no improvement, however often they take turns."""
    turns = [Quality(top=1200) if n % 2 else Quality(best=1300) for n in range(40)]
    history = [QualityReading(number=n, quality=quality) for n, quality in enumerate(turns, 1)]
    assert judge(history[:11], DEFAULT).stop


scores = st.none() | st.floats() | st.floats(-2000, 3000) | st.sampled_from([0.0, -0.0, 1200.0])
curves = st.lists(scores, min_size=1, max_size=60)
policies = st.builds(
    StoppingPolicy,
    rule=st.sampled_from(StoppingRule),
    unit=st.sampled_from(Unit),
    threshold=st.floats(0.001, 0.1),
    min_iterations=st.integers(1, 10),
    patience=st.integers(1, 15),
)


@given(curves, policies)
def test_a_decision_needs_nothing_but_says_why(values: list[float | None], policy: StoppingPolicy) -> None:
    judgement = judge(readings(values), policy)
    assert judgement.reason
    assert judgement.gain >= 0
    assert math.isfinite(judgement.gain)
    assert 0 <= judgement.stalled_iterations < len(values)
    assert not (judgement.stop and len(values) < policy.min_iterations)


@given(curves, policies, st.randoms())
def test_neither_order_nor_repetition_matters(values: list[float | None], policy: StoppingPolicy, chance) -> None:  # type: ignore[no-untyped-def]
    history = readings(values)
    again = [*history, *history[:3]]
    chance.shuffle(again)
    assert judge(again, policy) == judge(history, policy)


def plainly_stops(values: Sequence[float], policy: StoppingPolicy) -> bool:
    """Anchored best with patience, as it is written on paper."""
    anchor, count = values[0], 0
    for value in values[1:]:
        gain = 1 / (1 + 10 ** ((anchor - value) / 400)) - 0.5
        anchor, count = (value, 0) if gain >= policy.threshold else (anchor, count + 1)
    return count >= policy.patience and len(values) >= policy.min_iterations


elo = st.lists(st.integers(1000, 1600).map(float), min_size=1, max_size=40)


@given(elo, policies)
def test_without_its_refinements_it_is_the_rule_on_paper(values: list[float], policy: StoppingPolicy) -> None:
    plain = replace(
        policy, rule=StoppingRule.ANCHORED_BEST, unit=Unit.WIN_PROBABILITY, noise_share=0.0, climb_errors=None
    )
    assert judge(readings(values), plain).stop == plainly_stops(values, plain)


@given(elo, policies)
def test_nothing_goes_on_without_measurable_improvement(values: list[float], policy: StoppingPolicy) -> None:
    """Past its patience a goal goes on for an improvement by the threshold or for a line that rises by as much."""
    policy = replace(policy, rule=StoppingRule.ANCHORED_BEST, unit=Unit.WIN_PROBABILITY)
    judgement = judge(readings(values), policy)
    if judgement.stop or len(values) <= max(policy.patience, policy.min_iterations):
        return
    threshold = policy.threshold - 1e-6
    if judgement.stalled_iterations >= policy.patience:
        recent = values[-policy.patience :]
        assert f"but the line through the last {policy.patience} iterations rises by" in judgement.reason
        assert statistics.linear_regression(range(len(recent)), recent).slope > 0
    else:
        last = len(values) - 1 - judgement.stalled_iterations
        assert last > len(values) - 1 - policy.patience
        assert improvement(policy.unit, values[last], min(values[:last])) >= threshold


@given(st.floats(-1e6, 1e6), st.integers(1, 40), policies)
def test_no_constant_curve_outlasts_its_patience(level: float, length: int, policy: StoppingPolicy) -> None:
    patience = policy.window if policy.rule is StoppingRule.SLOPE else policy.patience + 1
    assert judge(readings([level] * length), policy).stop == (length >= max(patience, policy.min_iterations))


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(-500, 500), policies)
def test_a_win_probability_knows_no_zero(values: list[int], shift: int, policy: StoppingPolicy) -> None:
    assume(policy.unit is Unit.WIN_PROBABILITY)
    moved = [float(value + shift) for value in values]
    assert judge(readings(moved), policy).stop == judge(readings([float(v) for v in values]), policy).stop


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=40), st.sampled_from([0.25, 8.0, 1024.0]), policies)
def test_a_relative_gain_knows_no_scale(values: list[int], factor: float, policy: StoppingPolicy) -> None:
    assume(policy.unit is Unit.RELATIVE)
    scaled = [value * factor for value in values]
    assert judge(readings(scaled), policy).stop == judge(readings([float(v) for v in values]), policy).stop
