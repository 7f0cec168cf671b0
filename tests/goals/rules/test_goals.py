"""Rules of research goals: moves, enforcement of budgets between reports, and the decision after one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admin.rules.config import IterationConfig
from app.goals.rules.budgets import Compute, Limits, Usage
from app.goals.rules.exploration import Arm
from app.goals.rules.goals import (
    Constraints,
    EnforcementAction,
    GoalAction,
    GoalPolicy,
    GoalSnapshot,
    GoalState,
    LeaseCapacity,
    MeasuredIteration,
    decide,
    enforce,
    goal_policy,
    next_state,
)
from app.goals.rules.stopping import Quality, StoppingPolicy, Unit
from app.kernel.events import GoalEvent
from app.queue.errors import GoalStopped

BUDGET = Limits(max_iterations=10, compute_seconds=100.0)
CAPACITY = LeaseCapacity(workers=4)


def used(spent: float = 0.0, attempts: int = 0) -> Usage:
    return Usage(compute=Compute(spent_seconds=spent, attempts=attempts))


def test_a_stopped_goal_stays_so() -> None:
    assert next_state(GoalState.RUNNING, GoalEvent.PAUSED) is GoalState.PAUSED
    assert next_state(GoalState.PAUSED, GoalEvent.EXTENDED) is GoalState.PAUSED
    assert next_state(GoalState.PAUSED, GoalEvent.STOPPED) is GoalState.STOPPED
    for move in (GoalEvent.PAUSED, GoalEvent.RESUMED, GoalEvent.EXTENDED, GoalEvent.STOPPED):
        with pytest.raises(GoalStopped):
            next_state(GoalState.STOPPED, move)


def test_from_plenty_to_nothing() -> None:
    """Tasks of half a second and four workers, who can take twelve until the next look."""
    plenty = enforce(used(10, 20), BUDGET, CAPACITY)
    assert plenty.action is EnforcementAction.ALLOW
    metered = enforce(used(70, 140), BUDGET, CAPACITY, ages=[0.2, 0.1])
    assert (metered.action, metered.remaining_attempts) == (EnforcementAction.METER, 11)
    assert metered.reason == "the compute budget of 100 s has room for 11 more tasks"
    still_metered = enforce(used(50, 100), BUDGET, CAPACITY, is_metered=True)
    assert still_metered.action is EnforcementAction.METER, "not back and forth"
    assert enforce(used(50, 100), BUDGET, CAPACITY).action is EnforcementAction.ALLOW
    held = enforce(used(95, 190), BUDGET, CAPACITY, ages=[0.5, 0.4])
    assert held.action is EnforcementAction.HOLD
    assert "begin until those under way end: 95 s are spent, and 0.9 s taken by the 2 under way" in held.reason
    assert enforce(used(97, 19), BUDGET, CAPACITY).action is EnforcementAction.STOP, "and nothing runs"


def test_tasks_may_end_within_the_overrun() -> None:
    due = enforce(used(60, 12), BUDGET, CAPACITY, ages=[41, 2])
    assert (due.action, due.excess_attempts) == (EnforcementAction.HOLD, 0)
    assert due.reason == "the limit of 100 s of compute (103 s so far) is used up"
    crowd = enforce(used(60, 12), BUDGET, CAPACITY, ages=[41, *[0.1] * 9])
    assert (crowd.action, crowd.excess_attempts) == (EnforcementAction.HOLD, 8), "just one more will end"
    assert enforce(used(60, 12), BUDGET, CAPACITY, ages=[49.5]).action is EnforcementAction.STOP


def test_the_first_tasks_keep_within_a_budget_too() -> None:
    """By what tasks of other goals took; and no goal stops for that alone."""
    few = Usage(compute=Compute(prior_seconds=0.8))
    due = enforce(few, BUDGET, CAPACITY)
    assert (due.action, due.remaining_attempts) == (EnforcementAction.METER, 3)
    assert enforce(Usage(compute=Compute(prior_seconds=0.01)), BUDGET, CAPACITY).action is EnforcementAction.METER
    assert enforce(Usage(compute=Compute(prior_seconds=0.2)), BUDGET, CAPACITY).action is EnforcementAction.METER
    few_workers = LeaseCapacity(workers=1)
    assert enforce(Usage(compute=Compute(prior_seconds=0.5)), BUDGET, few_workers).action is EnforcementAction.ALLOW
    for prior in (0.0, 3000.0):
        untried = Usage(compute=Compute(prior_seconds=prior))
        due = enforce(untried, BUDGET, CAPACITY)
        assert (due.action, due.remaining_attempts) == (EnforcementAction.METER, 1)
        assert enforce(untried, BUDGET, CAPACITY, ages=[1.0]).action is EnforcementAction.HOLD


def test_iterations_are_for_reports_and_money_and_tokens_hold_a_goal() -> None:
    limits = Limits(max_iterations=1, money=1.0, tokens=100)
    assert enforce(Usage(iterations=5, money=0.9, tokens=99), limits, CAPACITY).action is EnforcementAction.ALLOW
    for usage in (Usage(money=1.0), Usage(tokens=100)):
        assert enforce(usage, limits, CAPACITY).action is EnforcementAction.HOLD


@given(
    st.floats(0, 99), st.integers(1, 1000), st.lists(st.floats(0, 50), max_size=64), st.integers(0, 1000), st.booleans()
)
def test_what_is_let_through_fits(spent: float, attempts: int, ages: list[float], workers: int, metered: bool) -> None:
    due = enforce(used(spent, attempts), BUDGET, LeaseCapacity(workers=workers), ages=ages, is_metered=metered)
    mean = spent / attempts
    if due.action is EnforcementAction.METER and ages:
        assert spent + sum(ages) + due.remaining_attempts * mean <= 100 + 1e-6
    if due.action is EnforcementAction.ALLOW and mean >= 0.01:
        assert spent + sum(ages) + workers * mean <= 100 + 1e-6
    assert due.excess_attempts < max(1, len(ages)), "one always goes on"


def test_a_goal_has_what_it_asks_for_and_else_what_is_configured() -> None:
    default = goal_policy(
        Constraints(), IterationConfig(min_iterations=4, max_iterations=40, improvement_threshold=0.02)
    )
    assert (default.stopping.min_iterations, default.stopping.threshold, default.limits.max_iterations) == (4, 0.02, 40)
    own = goal_policy(
        Constraints(patience=3, improvement_unit=Unit.RELATIVE, max_iterations=7), IterationConfig(enabled=False)
    )
    assert (own.stopping.patience, own.stopping.unit, own.limits.max_iterations) == (3, Unit.RELATIVE, 7)
    assert not own.stopping.judges
    assert own.stopping.ends_at_minimum
    assert goal_policy(Constraints(max_iterations=14), IterationConfig(max_iterations=10)).limits.max_iterations == 10


@pytest.mark.parametrize(
    ("qualities", "unit"),
    [
        ([], Unit.WIN_PROBABILITY),
        ([1200.0, 1210.0], Unit.WIN_PROBABILITY),
        ([0.08, 0.9], Unit.RELATIVE),
        ([0.0, 1.0], Unit.RELATIVE),
        ([0.5, 1.01], Unit.RELATIVE),
        ([-0.01, 0.5], Unit.RELATIVE),
        ([-0.9, -0.2], Unit.RELATIVE),
        ([3.5, 9.0], Unit.RELATIVE),
        ([100.0, 101.0], Unit.RELATIVE),
        ([100.1, 99.0], Unit.WIN_PROBABILITY),
        ([-1200.0, 3.0], Unit.WIN_PROBABILITY),
    ],
)
def test_scores_of_at_most_100_are_judged_as_a_share_unless_told_otherwise(qualities: list[float], unit: Unit) -> None:
    def judged_by(constraints: Constraints) -> Unit:
        return goal_policy(constraints, IterationConfig(), iterations(*qualities)).stopping.unit

    assert judged_by(Constraints()) is unit
    for other in Unit:
        assert judged_by(Constraints(improvement_unit=other)) is other


@pytest.mark.parametrize(
    ("first", "rise"), [(-0.9, 0.02), (-0.4, 0.03), (1.0, 0.2), (50.0, 1.0), (80.0, 0.4), (0.5, 0.03), (25.0, 0.3)]
)
def test_a_score_of_any_range_goes_on_while_it_rises_and_stops_where_it_does_not(first: float, rise: float) -> None:
    """Negated losses, correlations, marks, percentages, scores that pass 1, and ratings that begin at 25."""
    climb = [first + rise * number for number in range(30)]
    for values, action in ((climb, GoalAction.CONTINUE), ([*climb, *[climb[-1]] * 11], GoalAction.STOP)):
        rows = iterations(*values)
        policy = goal_policy(Constraints(), IterationConfig(), rows)
        goal = GoalSnapshot(goal_id="g", iterations=rows, usage=Usage(iterations=len(rows)))
        assert decide(goal, policy).action is action, values[-1]


def iterations(*qualities: float, compute: float = 10.0) -> list[MeasuredIteration]:
    return [
        MeasuredIteration(
            number=n, quality=Quality(best=quality), seconds=20.0, compute_seconds=compute, new_best=Arm.EXPLORATION
        )
        for n, quality in enumerate(qualities, 1)
    ]


def test_a_decision_says_what_it_is_made_of() -> None:
    policy = GoalPolicy(stopping=StoppingPolicy(), limits=Limits(max_iterations=10, compute_seconds=100.0))
    usage = Usage(iterations=3, compute=Compute(spent_seconds=81.0, attempts=9))
    decision = decide(GoalSnapshot(goal_id="g", iterations=iterations(1200, 1235, 1270), usage=usage), policy)
    assert decision.action is GoalAction.CONTINUE
    assert decision.gain == pytest.approx(0.05, abs=0.001)
    assert decision.gain_per_compute_second == pytest.approx(decision.gain / 10)
    assert decision.next_compute_seconds == 12.5, "a little more while it pays"
    assert decision.notices == ["at least 80 % are used: the limit of 100 s of compute (81 s so far)"]
    flat = decide(GoalSnapshot(goal_id="g", iterations=iterations(1200, 1200, 1200), usage=usage), policy)
    assert (flat.gain, flat.next_compute_seconds) == (0.0, 10.0)


def test_limits_come_before_quality() -> None:
    policy = GoalPolicy(stopping=StoppingPolicy(), limits=Limits(max_iterations=30, compute_seconds=100.0))
    usage = Usage(iterations=3, compute=Compute(spent_seconds=95.0, attempts=9))
    decision = decide(GoalSnapshot(goal_id="g", iterations=iterations(1200, 1400, 1600), usage=usage), policy)
    assert decision.action is GoalAction.STOP
    assert decision.reason.startswith("one more iteration would overrun the limit of 100 s of compute")
