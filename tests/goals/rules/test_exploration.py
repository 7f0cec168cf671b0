"""Exploration against exploitation: floors, evidence, and that a draw can be repeated."""

from hypothesis import given
from hypothesis import strategies as st

from app.goals.rules.exploration import Arm, ExplorationPolicy, Split, Trial, split

POLICY = ExplorationPolicy()


def decide(trials: list[Trial], iteration: int = 1, goal: str = "goal") -> Split:
    return split(trials, POLICY, goal_id=goal, iteration=iteration)


def test_without_evidence_each_gets_half() -> None:
    assert decide([]).share == 0.5
    assert decide([Trial(exploration_seconds=0, exploitation_seconds=0)]).draws == ()


def test_what_finds_more_a_second_gets_more() -> None:
    fresh = [Trial(exploration_seconds=10, exploitation_seconds=10, new_best=Arm.EXPLORATION)] * 20
    refined = [Trial(exploration_seconds=10, exploitation_seconds=10, new_best=Arm.EXPLOITATION)] * 20
    assert sum(decide(fresh, n).share for n in range(50)) / 50 > 0.75
    assert sum(decide(refined, n).share for n in range(50)) / 50 < 0.25


def test_it_is_finds_per_second_that_count() -> None:
    """As many finds, at a tenth of the price."""
    trials = [Trial(exploration_seconds=1, exploitation_seconds=10, new_best=arm) for arm in Arm] * 15
    assert sum(decide(trials, n).share for n in range(50)) / 50 > 0.7


def test_old_finds_fade() -> None:
    past = [Trial(exploration_seconds=10, exploitation_seconds=10, new_best=Arm.EXPLORATION)] * 20
    lately = [Trial(exploration_seconds=10, exploitation_seconds=10, new_best=Arm.EXPLOITATION)] * 40
    assert sum(decide([*past, *lately], n).share for n in range(50)) / 50 < 0.35


trials = st.lists(
    st.builds(
        Trial,
        exploration_seconds=st.floats(0, 1e5),
        exploitation_seconds=st.floats(0, 1e5),
        new_best=st.none() | st.sampled_from(Arm),
    ),
    max_size=40,
)


@given(trials, st.integers(1, 1000), st.text(max_size=10))
def test_floors_hold_and_draws_repeat(past: list[Trial], iteration: int, goal: str) -> None:
    decision = decide(past, iteration, goal)
    assert POLICY.floor <= decision.share <= 1 - POLICY.floor
    assert decision == decide(past, iteration, goal)
    if decision.draws:
        share = sum(first > second for first, second in decision.draws) / len(decision.draws)
        assert decision.share == min(0.8, max(0.2, share))


def test_another_goal_or_iteration_draws_anew() -> None:
    past = [Trial(exploration_seconds=10, exploitation_seconds=10)]
    assert len({decide(past, n, goal).draws[0] for n in range(5) for goal in ("a", "b")}) == 10
