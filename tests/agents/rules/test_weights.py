"""Weights of the agents: targets, steps and bounds."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.agents.rules.weights import (
    AgentScore,
    Evidence,
    WeightPlan,
    WeightPolicy,
    WeightSnapshot,
    add_result,
    adjust,
    earned_target,
    effectiveness,
    step,
)
from app.kernel.agents import AgentType
from app.kernel.shares import Weights, raise_to_floor

ALL = list(AgentType)
POLICY = WeightPolicy()
REFLECTION = AgentType.REFLECTION
CONFIGURED = dict.fromkeys(ALL, 0.17) | {REFLECTION: 0.15}
AVERAGE = dict.fromkeys(ALL, AgentScore(effectiveness=0.5, tasks_per_second=0.1))

weights = st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(any).map(
    lambda raw: raise_to_floor(dict(zip(ALL, raw, strict=True)), POLICY.floor)
)  # fmt: skip
agent_scores = st.dictionaries(
    st.sampled_from(ALL),
    st.builds(
        AgentScore,
        effectiveness=st.one_of(st.none(), st.floats(0, 1)),
        tasks_per_second=st.one_of(st.none(), st.floats(0, 100)),
    ),
)


def plan(current: dict[AgentType, float], scores: dict[AgentType, AgentScore], results: int = 10) -> WeightPlan:
    snapshot = WeightSnapshot(base=CONFIGURED, current=current, scores=scores, new_results=results)
    return adjust(snapshot, POLICY)


def test_example_2_takes_two_steps() -> None:
    """Effectiveness 0.95, and three times faster: 0.15 to 0.25, but by at most half at a time."""
    scores = AVERAGE | {REFLECTION: AgentScore(effectiveness=0.95, tasks_per_second=0.3)}
    first = plan(CONFIGURED, scores)
    assert first.weights[REFLECTION] == pytest.approx(0.225)
    assert first.adjustments[REFLECTION].target == pytest.approx(0.25)
    assert first.adjustments[REFLECTION].reason == "effectiveness 0.95; target 0.25, at most 50% in one step"
    second = plan(dict(first.weights), scores)
    assert second.weights[REFLECTION] == pytest.approx(0.25)
    assert sum(first.weights.values()) == pytest.approx(1.0)
    assert sum(second.weights.values()) == pytest.approx(1.0)
    assert not plan(dict(second.weights), scores).adjustments


def test_being_three_times_faster_alone_moves_nothing() -> None:
    assert not plan(CONFIGURED, AVERAGE | {REFLECTION: AgentScore(effectiveness=0.5, tasks_per_second=0.3)}).adjustments


def test_speed_decides_between_agents_of_equal_quality_by_a_tenth_at_most() -> None:
    fast, slow = ALL[0], ALL[1]
    scores = AVERAGE | {
        fast: AgentScore(effectiveness=0.8, tasks_per_second=50.0),
        slow: AgentScore(effectiveness=0.8, tasks_per_second=0.1),
    }
    target = earned_target(CONFIGURED, scores, POLICY)
    assert target[ALL[2]] < target[slow] < target[fast]
    equal = earned_target(CONFIGURED, scores | {fast: scores[slow]}, POLICY)
    assert target[fast] / equal[fast] < 1.1


def test_equal_agents_have_what_was_configured() -> None:
    assert earned_target(CONFIGURED, AVERAGE, POLICY) == pytest.approx(CONFIGURED)
    assert earned_target(CONFIGURED, {}, POLICY) == pytest.approx(CONFIGURED)


@pytest.mark.parametrize(("results", "since", "why"), [(9, None, "9 new results"), (50, 59.0, "59 s ago")])
def test_a_step_needs_news_and_time(results: int, since: float | None, why: str) -> None:
    scores = AVERAGE | {REFLECTION: AgentScore(effectiveness=0.95)}
    snapshot = WeightSnapshot(
        base=CONFIGURED, current=CONFIGURED, scores=scores, new_results=results, seconds_since_last=since
    )
    assert not adjust(snapshot, POLICY).adjustments
    assert why in adjust(snapshot, POLICY).reason
    assert adjust(replace(snapshot, new_results=10, seconds_since_last=60.0), POLICY).adjustments


@given(current=weights, goal=weights)
def test_a_step_keeps_the_sum_the_floor_and_half(current: dict[AgentType, float], goal: dict[AgentType, float]) -> None:
    new = step(current, goal, POLICY)
    assert sum(new.values()) == pytest.approx(1.0, abs=1e-9)
    assert min(new.values()) >= POLICY.floor
    assert all(abs(new[agent] - weight) <= 0.5 * weight + 1e-12 for agent, weight in current.items())


@given(current=weights, goal=weights)
@settings(max_examples=20, deadline=None)
def test_steps_arrive(current: dict[AgentType, float], goal: dict[AgentType, float]) -> None:
    for _ in range(40):
        current = step(current, goal, POLICY)
    assert current == pytest.approx(goal, abs=1e-6)


@given(configured=weights, scores=agent_scores)
def test_targets_are_weights_whatever_is_known(
    configured: dict[AgentType, float], scores: dict[AgentType, AgentScore]
) -> None:
    target = earned_target(configured, scores, POLICY)
    assert sum(target.values()) == pytest.approx(1.0, abs=1e-9)
    assert min(target.values()) >= POLICY.floor - 1e-12


@given(configured=weights, values=st.lists(st.floats(0, 1), min_size=2, max_size=6), gain=st.floats(0, 1))
def test_a_better_agent_never_has_a_lower_target(
    configured: dict[AgentType, float], values: list[float], gain: float
) -> None:
    scores = {agent: AgentScore(effectiveness=value) for agent, value in zip(ALL, values, strict=False)}
    better = scores | {ALL[0]: AgentScore(effectiveness=min(1.0, values[0] + gain))}
    assert earned_target(configured, better, POLICY)[ALL[0]] >= earned_target(configured, scores, POLICY)[ALL[0]] - 1e-9


@given(current=weights, base=weights, scores=agent_scores, largest_step=st.sampled_from([0.25, 0.5]))
@settings(max_examples=20, deadline=None)
def test_results_take_every_weight_to_its_target_also_from_the_floor(
    current: dict[AgentType, float],
    base: dict[AgentType, float],
    scores: dict[AgentType, AgentScore],
    largest_step: float,
) -> None:
    """Half of 0.02 is as small as noise, and a weight of so little never rose whatever its agent achieved."""
    policy = replace(POLICY, largest_step=largest_step)
    now: Weights = current
    for _ in range(40):
        now = adjust(WeightSnapshot(base=base, current=now, scores=scores, new_results=10), policy).weights
    target = earned_target(base, scores, policy)
    assert all(abs(now[agent] - target[agent]) < policy.least_change for agent in ALL)


def test_an_agent_that_was_configured_with_nothing_earns_its_way_up() -> None:
    current = raise_to_floor(dict.fromkeys(ALL, 0.2) | {REFLECTION: 0.0}, POLICY.floor)
    scores = AVERAGE | {REFLECTION: AgentScore(effectiveness=0.95)}
    first = adjust(WeightSnapshot(base=current, current=current, scores=scores, new_results=10), POLICY)
    assert first.weights[REFLECTION] == pytest.approx(0.03)
    assert first.adjustments[REFLECTION].reason == "effectiveness 0.95; target 0.0371, at most 50% in one step"


def test_zero_is_raised_to_the_floor_and_the_others_keep_their_proportions() -> None:
    target = raise_to_floor(dict.fromkeys(ALL, 0.0) | {ALL[0]: 3.0, ALL[1]: 1.0}, POLICY.floor)
    assert [round(target[agent], 4) for agent in ALL] == [0.69, 0.23, 0.02, 0.02, 0.02, 0.02]
    assert raise_to_floor(dict.fromkeys(ALL, 0.0), POLICY.floor) == pytest.approx(dict.fromkeys(ALL, 1 / 6))


def evidence_after(qualities: list[float], seconds_apart: float = 60.0) -> Evidence:
    evidence = Evidence()
    for quality in qualities:
        evidence = add_result(evidence, quality, seconds_apart, POLICY)
    return evidence


def test_too_few_results_say_nothing() -> None:
    assert effectiveness(evidence_after([1.0] * 9), 0.0, POLICY) is None
    assert effectiveness(evidence_after([1.0] * 10), 0.0, POLICY) is not None
    assert effectiveness(Evidence(), 0.0, POLICY) is None


def test_effectiveness_is_a_lower_bound_that_more_results_raise() -> None:
    few, many = (
        effectiveness(evidence_after([0.8] * 12), 0.0, POLICY),
        effectiveness(evidence_after([0.8] * 200), 0.0, POLICY),
    )
    assert few is not None
    assert many is not None
    assert few < many < 0.8
    assert many == pytest.approx(0.71, abs=0.01)


def test_old_results_fade_by_number_or_by_time_whichever_is_faster() -> None:
    assert evidence_after([1.0] + [0.0] * 50).quality == pytest.approx(0.5)
    assert evidence_after([1.0, 0.0], seconds_apart=86_400.0).quality == pytest.approx(0.9)
    settled = evidence_after([0.9] * 100)
    fresh, stale = effectiveness(settled, 0.0, POLICY), effectiveness(settled, 30 * 86_400.0, POLICY)
    assert fresh is not None
    assert stale is None


@given(qualities=st.lists(st.floats(0, 1), min_size=10, max_size=100))
def test_effectiveness_is_a_share(qualities: list[float]) -> None:
    value = effectiveness(evidence_after(qualities), 0.0, POLICY)
    assert value is not None
    assert 0 <= value <= 1
