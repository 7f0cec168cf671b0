"""Where the weights are headed: no order of events breaks the sum, the floor, the step or the pause between steps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.agents.rules.steering import (
    AgentView,
    Cause,
    Course,
    Heading,
    Override,
    SteeringStep,
    advance,
    commanded,
    outset,
    overridden,
    policy_in,
    released,
)
from app.agents.rules.weights import Standing, WeightPolicy
from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.kernel.shares import Weights, raise_to_floor

ALL = list(AgentType)
POLICY = WeightPolicy()
REFLECTION = AgentType.REFLECTION
CONFIGURED = dict.fromkeys(ALL, 0.17) | {REFLECTION: 0.15}
AVERAGE = dict.fromkeys(ALL, Standing(effectiveness=0.5, tasks_per_second=0.1))
EXCELLENT = AVERAGE | {REFLECTION: Standing(effectiveness=0.95, tasks_per_second=0.3)}
START = datetime(2026, 1, 1, tzinfo=UTC)
HALF = dict.fromkeys(ALL, 0.1) | {REFLECTION: 0.5}


def sight(
    after: float,
    standings: dict[AgentType, Standing] = AVERAGE,
    results: int = 0,
    configured: Weights = CONFIGURED,
) -> AgentView:
    return AgentView(configured=configured, standings=standings, results=results, now=START + timedelta(seconds=after))


def run(course: Course, *sights: AgentView) -> list[SteeringStep]:
    legs = []
    for each in sights:
        legs.append(advance(course, each, POLICY))
        course = legs[-1].course
    return legs


def share(leg: SteeringStep) -> float:
    return leg.course.current[REFLECTION]


def test_example_2_takes_two_steps_a_minute_apart() -> None:
    early, first, soon, few, second = run(
        outset(CONFIGURED),
        sight(0, EXCELLENT, 9),
        sight(1, EXCELLENT, 10),
        sight(60, EXCELLENT, 20),
        sight(61, EXCELLENT, 19),
        sight(62, EXCELLENT, 20),
    )
    assert [round(share(leg), 9) for leg in (early, first, soon, few)] == [0.15, 0.225, 0.225, 0.225]
    reason = "effectiveness 0.95; target 0.25, at most 50% in one step"
    assert first.adjustments[REFLECTION].reason == reason
    assert share(second) == pytest.approx(0.25)
    assert second.adjustments[REFLECTION].reason == "effectiveness 0.95; target 0.25"
    assert (first.cause, second.cause) == (Cause.TICK, Cause.TICK)


def test_a_command_is_reached_in_steps_that_need_no_results() -> None:
    legs = run(commanded(outset(CONFIGURED), HALF, POLICY), *(sight(t) for t in (0, 59, 60, 120, 180, 240)))
    assert [round(share(leg), 4) for leg in legs] == [0.225, 0.225, 0.3375, 0.5, 0.5, 0.5]
    assert legs[0].adjustments[REFLECTION].reason == "ordered; target 0.5, at most 50% in one step"
    assert legs[3].course.heading is Heading.EARNING
    assert not legs[4].adjustments


def test_after_a_command_results_move_the_weights_around_what_was_commanded() -> None:
    course = replace(outset(CONFIGURED), current=HALF, base=HALF)
    (leg,) = run(course, sight(0, EXCELLENT, 10))
    assert share(leg) > 0.5
    assert run(course, sight(0, AVERAGE, 10))[0].course == course


def test_the_same_command_again_changes_nothing() -> None:
    course = replace(outset(CONFIGURED), current=HALF, base=HALF)
    assert commanded(course, HALF, POLICY) == course


def test_a_change_of_the_configuration_takes_the_same_small_steps() -> None:
    course = commanded(outset(CONFIGURED), {**HALF, AgentType.RANKING: 0.3}, POLICY)
    legs = run(course, *(sight(t, configured=HALF) for t in (0, 60, 120, 180)))
    assert legs[0].cause is Cause.CONFIG
    assert [round(share(leg), 4) for leg in legs] == [0.225, 0.3375, 0.5, 0.5]
    assert legs[-1].course.base == HALF


def test_an_override_goes_before_everything_until_it_expires() -> None:
    for_a_while = Override(weights=HALF, expires_at=START + timedelta(seconds=130))
    legs = run(
        overridden(outset(CONFIGURED), for_a_while, POLICY), *(sight(t, results=100) for t in (0, 60, 120, 131, 180))
    )
    assert [round(share(leg), 4) for leg in legs[:3]] == [0.225, 0.3375, 0.5]
    assert legs[3].cause is Cause.EXPIRY
    assert legs[3].course.override is None
    assert share(legs[3]) == pytest.approx(0.5)
    assert share(legs[4]) == pytest.approx(0.25)


def test_after_an_override_the_way_back_needs_no_new_results() -> None:
    course = replace(released(overridden(outset(CONFIGURED), Override(weights=HALF, expires_at=START), POLICY)))
    course = replace(course, current=HALF)
    legs = run(course, *(sight(t) for t in (0, 60, 120)))
    assert [round(share(leg), 4) for leg in legs] == [0.25, 0.15, 0.15]
    assert legs[-1].course.heading is Heading.EARNING


def test_an_override_that_expires_during_a_command_leaves_the_way_to_the_command() -> None:
    ordered = commanded(outset(CONFIGURED), HALF, POLICY)
    back = released(overridden(ordered, Override(weights=CONFIGURED, expires_at=START), POLICY))
    assert back.heading is Heading.ORDERED
    assert run(back, sight(0), sight(60), sight(120))[-1].course.current == pytest.approx(HALF)


def test_trusted_testers_get_smaller_steps_and_development_the_same_as_production() -> None:
    assert policy_in(Mode.DEVELOPMENT) == policy_in(Mode.PRODUCTION) == POLICY
    careful = policy_in(Mode.TRUSTED_TESTER)
    first = advance(outset(CONFIGURED), sight(0, EXCELLENT, 10), careful)
    assert first.course.current[REFLECTION] == pytest.approx(0.1875)
    assert not advance(first.course, sight(299, EXCELLENT, 99), careful).adjustments
    assert advance(first.course, sight(300, EXCELLENT, 99), careful).adjustments


weights = st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(any).map(
    lambda raw: raise_to_floor(dict(zip(ALL, raw, strict=True)), POLICY.floor)
)  # fmt: skip
standings = st.dictionaries(
    st.sampled_from(ALL), st.builds(Standing, effectiveness=st.one_of(st.none(), st.floats(0, 1)))
)
deeds = st.one_of(
    st.tuples(st.just("command"), weights),
    st.tuples(st.just("override"), weights),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("configure"), weights),
    st.tuples(st.just("results"), standings),
    st.tuples(st.just("mode"), st.sampled_from(Mode)),
    st.tuples(st.just("wait"), st.none()),
)


@given(history=st.lists(st.tuples(deeds, st.floats(0, 400)), max_size=25))
@settings(max_examples=150, deadline=None)
def test_nothing_breaks_the_sum_the_floor_the_step_or_the_pause(
    history: list[tuple[tuple[str, object], float]],
) -> None:
    course, policy = outset(CONFIGURED), POLICY
    seen, at = sight(0), 0.0
    for (what, with_what), later in history:
        at += later
        seen = replace(seen, now=START + timedelta(seconds=at))
        if what == "command":
            course = commanded(course, with_what, policy)  # type: ignore[arg-type]
        elif what == "override":
            expires = seen.now + timedelta(seconds=300)
            course = overridden(course, Override(weights=with_what, expires_at=expires), policy)  # type: ignore[arg-type]
        elif what == "release":
            course = released(course)
        elif what == "configure":
            seen = replace(seen, configured=with_what)  # type: ignore[arg-type]
        elif what == "results":
            seen = replace(seen, standings=with_what, results=seen.results + 7)  # type: ignore[arg-type]
        elif what == "mode":
            policy = policy_in(with_what)  # type: ignore[arg-type]
        leg = advance(course, seen, policy)
        _check(course, leg, seen, policy)
        course = leg.course


def _check(before: Course, leg: SteeringStep, seen: AgentView, policy: WeightPolicy) -> None:
    after = leg.course.current
    assert sum(after.values()) == pytest.approx(1.0, abs=1e-9)
    assert min(after.values()) >= policy.floor - 1e-12
    for agent, weight in before.current.items():
        assert abs(after[agent] - weight) <= policy.largest_step * weight + 1e-12
    if after != before.current and before.stepped_at is not None:
        assert seen.now - before.stepped_at >= timedelta(seconds=policy.least_seconds)


@given(first=weights, then=weights, standing=standings)
@settings(max_examples=30, deadline=None)
def test_orders_are_reached(first: Weights, then: Weights, standing: dict[AgentType, Standing]) -> None:
    course = commanded(replace(outset(CONFIGURED), current=first), then, POLICY)
    for minute in range(40):
        course = advance(course, sight(60.0 * minute, standing), POLICY).course
    assert course.current == pytest.approx(then, abs=1e-6)
    assert course.heading is Heading.EARNING
