"""Where the weights are headed: no order of events breaks the sum, the floor, the step or the pause between steps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.agents.rules.steering import (
    Cause,
    Heading,
    Override,
    SteeringSnapshot,
    SteeringState,
    SteeringStep,
    advance,
    command,
    initial_state,
    override,
    policy_in,
    release,
)
from app.agents.rules.weights import AgentScore, WeightPolicy
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.kernel.shares import Weights
from tests.agents.rules.test_weights import ALL, AVERAGE, CONFIGURED, POLICY, REFLECTION, weights

EXCELLENT = AVERAGE | {REFLECTION: AgentScore(effectiveness=0.95, tasks_per_second=0.3)}
START = datetime(2026, 1, 1, tzinfo=UTC)
HALF = dict.fromkeys(ALL, 0.1) | {REFLECTION: 0.5}


def snapshot(
    at: float,
    scores: dict[AgentType, AgentScore] = AVERAGE,
    results: int = 0,
    configured: Weights = CONFIGURED,
) -> SteeringSnapshot:
    return SteeringSnapshot(
        configured_weights=configured, scores=scores, results=results, now=START + timedelta(seconds=at)
    )


def run(state: SteeringState, *snapshots: SteeringSnapshot) -> list[SteeringStep]:
    steps = []
    for each in snapshots:
        steps.append(advance(state, each, POLICY))
        state = steps[-1].state
    return steps


def share(step: SteeringStep) -> float:
    return step.state.current[REFLECTION]


def test_example_2_takes_two_steps_a_minute_apart() -> None:
    early, first, soon, few, second = run(
        initial_state(CONFIGURED),
        snapshot(0, EXCELLENT, 9),
        snapshot(1, EXCELLENT, 10),
        snapshot(60, EXCELLENT, 20),
        snapshot(61, EXCELLENT, 19),
        snapshot(62, EXCELLENT, 20),
    )
    assert [round(share(step), 9) for step in (early, first, soon, few)] == [0.15, 0.225, 0.225, 0.225]
    reason = "effectiveness 0.95; target 0.25, at most 50% in one step"
    assert first.adjustments[REFLECTION].reason == reason
    assert share(second) == pytest.approx(0.25)
    assert second.adjustments[REFLECTION].reason == "effectiveness 0.95; target 0.25"
    assert (first.cause, second.cause) == (Cause.TICK, Cause.TICK)


def test_a_command_is_reached_in_steps_that_need_no_results() -> None:
    steps = run(command(initial_state(CONFIGURED), HALF, POLICY), *(snapshot(t) for t in (0, 59, 60, 120, 180, 240)))
    assert [round(share(step), 4) for step in steps] == [0.225, 0.225, 0.3375, 0.5, 0.5, 0.5]
    assert steps[0].adjustments[REFLECTION].reason == "ordered; target 0.5, at most 50% in one step"
    assert steps[3].state.heading is Heading.EARNING
    assert not steps[4].adjustments


def test_steps_go_on_after_the_clock_was_set_back() -> None:
    ordered_state = command(initial_state(CONFIGURED), HALF, POLICY)
    steps = run(ordered_state, snapshot(0), snapshot(-3600), snapshot(-3541), snapshot(-3540))
    assert [round(share(step), 9) for step in steps] == [0.225, 0.3375, 0.3375, 0.5]


def test_after_a_command_results_move_the_weights_around_what_was_commanded() -> None:
    state = replace(initial_state(CONFIGURED), current=HALF, base=HALF)
    (step,) = run(state, snapshot(0, EXCELLENT, 10))
    assert share(step) > 0.5
    assert run(state, snapshot(0, AVERAGE, 10))[0].state == state


def test_the_same_command_again_changes_nothing() -> None:
    state = replace(initial_state(CONFIGURED), current=HALF, base=HALF)
    assert command(state, HALF, POLICY) == state


def test_a_change_of_the_configuration_takes_the_same_small_steps() -> None:
    state = command(initial_state(CONFIGURED), {**HALF, AgentType.RANKING: 0.3}, POLICY)
    steps = run(state, *(snapshot(t, configured=HALF) for t in (0, 60, 120, 180)))
    assert steps[0].cause is Cause.CONFIG
    assert [round(share(step), 4) for step in steps] == [0.225, 0.3375, 0.5, 0.5]
    assert steps[-1].state.base == HALF


def test_an_override_goes_before_everything_until_it_expires() -> None:
    for_a_while = Override(weights=HALF, expires_at=START + timedelta(seconds=130))
    steps = run(
        override(initial_state(CONFIGURED), for_a_while, POLICY),
        *(snapshot(t, results=100) for t in (0, 60, 120, 131, 180)),
    )
    assert [round(share(step), 4) for step in steps[:3]] == [0.225, 0.3375, 0.5]
    assert steps[3].cause is Cause.EXPIRY
    assert steps[3].state.override is None
    assert share(steps[3]) == pytest.approx(0.5)
    assert share(steps[4]) == pytest.approx(0.25)


def test_after_an_override_the_way_back_needs_no_new_results() -> None:
    state = replace(release(override(initial_state(CONFIGURED), Override(weights=HALF, expires_at=START), POLICY)))
    state = replace(state, current=HALF)
    steps = run(state, *(snapshot(t) for t in (0, 60, 120)))
    assert [round(share(step), 4) for step in steps] == [0.25, 0.15, 0.15]
    assert steps[-1].state.heading is Heading.EARNING


def test_an_override_that_expires_during_a_command_leaves_the_way_to_the_command() -> None:
    ordered = command(initial_state(CONFIGURED), HALF, POLICY)
    back = release(override(ordered, Override(weights=CONFIGURED, expires_at=START), POLICY))
    assert back.heading is Heading.ORDERED
    assert run(back, snapshot(0), snapshot(60), snapshot(120))[-1].state.current == pytest.approx(HALF)


def test_trusted_testers_get_smaller_steps_and_development_the_same_as_production() -> None:
    assert policy_in(Mode.DEVELOPMENT) == policy_in(Mode.PRODUCTION) == POLICY
    careful = policy_in(Mode.TRUSTED_TESTER)
    first = advance(initial_state(CONFIGURED), snapshot(0, EXCELLENT, 10), careful)
    assert first.state.current[REFLECTION] == pytest.approx(0.1875)
    assert not advance(first.state, snapshot(299, EXCELLENT, 99), careful).adjustments
    assert advance(first.state, snapshot(300, EXCELLENT, 99), careful).adjustments


scores = st.dictionaries(
    st.sampled_from(ALL), st.builds(AgentScore, effectiveness=st.one_of(st.none(), st.floats(0, 1)))
)
actions = st.one_of(
    st.tuples(st.just("command"), weights),
    st.tuples(st.just("override"), weights),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("configure"), weights),
    st.tuples(st.just("results"), scores),
    st.tuples(st.just("mode"), st.sampled_from(Mode)),
    st.tuples(st.just("wait"), st.none()),
)


@given(history=st.lists(st.tuples(actions, st.floats(0, 400)), max_size=25))
@settings(max_examples=150, deadline=None)
def test_nothing_breaks_the_sum_the_floor_the_step_or_the_pause(
    history: list[tuple[tuple[str, object], float]],
) -> None:
    state, policy = initial_state(CONFIGURED), POLICY
    current, at = snapshot(0), 0.0
    for (action, content), later in history:
        at += later
        current = replace(current, now=START + timedelta(seconds=at))
        if action == "command":
            state = command(state, content, policy)  # type: ignore[arg-type]
        elif action == "override":
            expires = current.now + timedelta(seconds=300)
            state = override(state, Override(weights=content, expires_at=expires), policy)  # type: ignore[arg-type]
        elif action == "release":
            state = release(state)
        elif action == "configure":
            current = replace(current, configured_weights=content)  # type: ignore[arg-type]
        elif action == "results":
            current = replace(current, scores=content, results=current.results + 7)  # type: ignore[arg-type]
        elif action == "mode":
            policy = policy_in(content)  # type: ignore[arg-type]
        step = advance(state, current, policy)
        _check(state, step, current, policy)
        state = step.state


def _check(previous: SteeringState, step: SteeringStep, current: SteeringSnapshot, policy: WeightPolicy) -> None:
    weights = step.state.current
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-9)
    assert min(weights.values()) >= policy.floor - 1e-12
    for agent, weight in previous.current.items():
        assert abs(weights[agent] - weight) <= policy.largest_step * weight + 1e-12
    if weights != previous.current and previous.stepped_at is not None:
        assert current.now - previous.stepped_at >= timedelta(seconds=policy.least_seconds)


@given(first=weights, then=weights, agent_scores=scores)
@settings(max_examples=30, deadline=None)
def test_orders_are_reached(first: Weights, then: Weights, agent_scores: dict[AgentType, AgentScore]) -> None:
    state = command(replace(initial_state(CONFIGURED), current=first), then, POLICY)
    for minute in range(40):
        state = advance(state, snapshot(60.0 * minute, agent_scores), POLICY).state
    assert state.current == pytest.approx(then, abs=1e-6)
    assert state.heading is Heading.EARNING
