"""The ladder: a step at a time, slow to move, never for ever, and nobody below the floor."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agents.rules.weights import WeightPolicy, under_degradation
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.shares import raise_to_floor
from app.queue.rules.degradation import (
    TOP_STEP,
    DegradationStep,
    Ladder,
    LadderHold,
    LadderMove,
    LadderPolicy,
    Strain,
    advice,
    decide,
    deferred_lanes,
    effective_step,
    hold_step,
    release_hold,
    suspended_agents,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = LadderPolicy()
TICK = timedelta(seconds=5)
TIGHT = Strain(resources={"memory": 0.95})
EASY = Strain(resources={"memory": 0.50})
BETWEEN = Strain(resources={"memory": 0.80})
UNKNOWN = Strain(resources={"memory": None})


class Player:
    """Plays the duty and the clock."""

    def __init__(self, step: DegradationStep = DegradationStep.NONE) -> None:
        expires_at = START + timedelta(seconds=POLICY.expire_after_seconds) if step else None
        self.now = START
        self.moves: list[tuple[datetime, LadderMove | None, DegradationStep]] = [(START, None, step)]
        self.ladder = Ladder(step=step, since=START, expires_at=expires_at)

    def step(self) -> DegradationStep:
        return self.ladder.step

    def look(self, strain: Strain, after: timedelta = TICK) -> None:
        self.now += after
        before, decision = self.ladder.step, decide(self.ladder, strain, POLICY, self.now)
        self.ladder = decision.ladder
        assert abs(self.ladder.step - before) <= 1
        assert (self.ladder.step != before) == (decision.move in (LadderMove.UP, LadderMove.DOWN, LadderMove.EXPIRED))
        if decision.move is not None:
            self.moves.append((self.now, decision.move, self.ladder.step))

    def looks(self, seconds: float, strain: Strain) -> None:
        for _ in range(round(seconds / TICK.total_seconds())):
            self.look(strain)


def test_a_minute_of_strain_costs_a_step_and_each_step_has_its_minute() -> None:
    player = Player()
    player.looks(60, TIGHT)
    assert player.step() is DegradationStep.NONE
    player.look(TIGHT)
    assert player.step() is DegradationStep.LOW_RANKED_EVOLUTION
    assert player.ladder.reason == "95% of memory is used"
    player.looks(600, TIGHT)
    assert player.step() is TOP_STEP
    gaps = [second[0] - first[0] for first, second in zip(player.moves, player.moves[1:], strict=False)]
    assert all(gap >= timedelta(seconds=POLICY.up_after_seconds) for gap in gaps)


def test_a_break_in_the_strain_begins_its_minute_anew() -> None:
    player = Player()
    for _ in range(20):
        player.looks(55, TIGHT)
        player.look(BETWEEN)
    assert player.step() is DegradationStep.NONE


def test_two_easy_minutes_give_a_step_back() -> None:
    player = Player(DegradationStep.BATCHES)
    player.looks(120, EASY)
    assert player.step() is DegradationStep.BATCHES
    player.look(EASY)
    assert player.step() is DegradationStep.DEPTH
    player.looks(600, EASY)
    assert player.step() is DegradationStep.NONE
    assert [move[1] for move in player.moves[1:]] == [LadderMove.DOWN] * 3


@pytest.mark.parametrize("strain", [BETWEEN, UNKNOWN, Strain()])
def test_a_step_that_nothing_renews_ends_by_itself(strain: Strain) -> None:
    player = Player(DegradationStep.DEPTH)
    player.looks(295, strain)
    assert player.step() is DegradationStep.DEPTH
    player.look(strain)
    assert player.step() is DegradationStep.LOW_RANKED_EVOLUTION
    player.looks(300, strain)
    assert player.step() is DegradationStep.NONE
    assert [move[1] for move in player.moves[1:]] == [LadderMove.EXPIRED] * 2


def test_a_step_that_less_strain_does_not_renew_ends_with_what_is_still_short() -> None:
    """A busy processor keeps no agent away, but it is short all the same."""
    player = Player(TOP_STEP)
    player.looks(300, Strain(resources={"cpu": 0.97}, oldest_wait_seconds=POLICY.late_after_seconds))
    assert player.step() is DegradationStep.BATCHES
    assert player.ladder.reason == "nothing that calls for this step was short for 300 s: 97% of cpu is used"


def test_strain_renews_the_top_step_for_as_long_as_it_lasts() -> None:
    player = Player(TOP_STEP)
    player.looks(3600, TIGHT)
    assert player.step() is TOP_STEP
    assert player.ladder.expires_at == player.now + timedelta(seconds=POLICY.expire_after_seconds)


def test_an_expired_step_ends_for_readers_without_any_loop() -> None:
    expires_at = START + timedelta(seconds=POLICY.expire_after_seconds)
    ladder = Ladder(step=TOP_STEP, since=START, expires_at=expires_at)
    assert effective_step(ladder, expires_at + timedelta(seconds=14)) is TOP_STEP, "the duty may still be about to"
    assert effective_step(ladder, expires_at + timedelta(seconds=15)) is DegradationStep.NONE


def test_unobserved_time_does_not_count() -> None:
    player = Player()
    player.look(TIGHT)
    player.look(TIGHT, after=timedelta(hours=1))
    assert player.step() is DegradationStep.NONE


@pytest.mark.parametrize(
    ("strain", "climbs"),
    [
        (Strain(resources={"cpu": 1.0}), False),
        (Strain(resources={"cpu": 1.0}, oldest_wait_seconds=601), True),
        (Strain(resources={"llm_permits": 1.0}), False),
        (Strain(resources={"database_connections": 0.95}), True),
        (Strain(resources={"cpu": None, "memory": 0.89}, oldest_wait_seconds=999), False),
        (Strain(capacity_lost=0.3), False),
        (Strain(capacity_lost=0.3, oldest_wait_seconds=601), True),
    ],
)
def test_what_counts_as_strain(strain: Strain, climbs: bool) -> None:
    """A processor that is fully used while nothing waits is well used; memory that is full is not."""
    player = Player()
    player.looks(65, strain)
    assert (player.step() > DegradationStep.NONE) is climbs


def test_a_busy_processor_costs_depth_and_batches_and_never_an_agent() -> None:
    busy = Strain(resources={"cpu": 1.0, "llm_permits": 1.0}, oldest_wait_seconds=9999)
    player = Player()
    player.looks(3600, busy)
    assert player.step() is DegradationStep.BATCHES
    player.looks(600, replace(busy, resources={"cpu": 1.0, "memory": 0.95}))
    assert player.step() is DegradationStep.ESSENTIALS
    player.looks(600, busy)
    assert player.step() is DegradationStep.BATCHES


def test_a_pool_that_recovers_gives_its_step_back() -> None:
    player = Player()
    player.looks(65, Strain(resources={"cpu": 0.2}, capacity_lost=0.5, oldest_wait_seconds=900))
    assert player.step() is DegradationStep.LOW_RANKED_EVOLUTION
    player.looks(125, Strain(resources={"cpu": 0.2}, oldest_wait_seconds=900))
    assert player.step() is DegradationStep.NONE


@given(
    st.lists(st.sampled_from([TIGHT, EASY, BETWEEN, UNKNOWN, Strain()]), max_size=200),
    st.sampled_from(list(DegradationStep)),
    st.lists(st.integers(1, 30), min_size=200, max_size=200),
)
def test_under_any_noise_it_moves_a_step_at_a_time_and_seldom(
    noise: list[Strain], step: DegradationStep, pauses: list[int]
) -> None:
    player = Player(step)
    for strain, seconds in zip(noise, pauses, strict=False):
        player.look(strain, timedelta(seconds=seconds))
        assert DegradationStep.NONE <= player.step() <= TOP_STEP
        assert (player.ladder.expires_at is not None) or player.step() is DegradationStep.NONE
    for first, second in zip(player.moves, player.moves[1:], strict=False):
        assert abs(second[2] - first[2]) == 1
        assert second[0] - first[0] >= timedelta(seconds=POLICY.up_after_seconds)


def hold(minutes: float = 10) -> LadderHold:
    return LadderHold(until=START + timedelta(minutes=minutes), by="ann")


def test_an_operator_may_skip_steps_and_nothing_moves_while_the_hold_lasts() -> None:
    player = Player()
    decision = hold_step(player.ladder, DegradationStep.ESSENTIALS, hold(), "upgrade", START, POLICY)
    assert (decision.move, decision.ladder.step, decision.ladder.reason) == (
        LadderMove.HELD,
        DegradationStep.ESSENTIALS,
        "upgrade",
    )
    player.ladder = decision.ladder
    player.looks(595, EASY)
    assert player.step() is DegradationStep.ESSENTIALS
    player.look(EASY)
    assert (player.ladder.hold, player.step()) == (None, DegradationStep.ESSENTIALS)
    player.looks(1000, EASY)
    assert player.step() is DegradationStep.NONE
    assert [move[1] for move in player.moves[1:]] == [LadderMove.RELEASED] + [LadderMove.DOWN] * 4


def test_a_held_step_0_keeps_everything_as_usual_and_then_the_rule_takes_over() -> None:
    player = Player(DegradationStep.DEPTH)
    player.ladder = hold_step(player.ladder, DegradationStep.NONE, hold(), "", START, POLICY).ladder
    player.looks(595, TIGHT)
    assert player.step() is DegradationStep.NONE
    player.looks(100, TIGHT)
    assert player.step() is DegradationStep.LOW_RANKED_EVOLUTION


def test_releasing_a_ladder_without_a_hold_changes_nothing() -> None:
    ladder = Ladder(step=DegradationStep.DEPTH, since=START, expires_at=START)
    assert release_hold(ladder, "", START, POLICY).move is None
    let_go = release_hold(replace(ladder, hold=hold()), "done", START, POLICY)
    assert (let_go.move, let_go.ladder.hold, let_go.ladder.step) == (LadderMove.RELEASED, None, DegradationStep.DEPTH)


def test_each_step_includes_those_below_it() -> None:
    assert [(advice(step).max_depth, advice(step).batch_factor) for step in DegradationStep] == [
        (None, 1.0),
        (None, 1.0),
        (2, 1.0),
        (2, 0.5),
        (2, 0.5),
    ]
    assert [len(deferred_lanes(step)) for step in DegradationStep] == [0, 1, 1, 1, 1]
    (lane,) = deferred_lanes(DegradationStep.ESSENTIALS)
    assert (lane.agent_type, lane.priority) == (AgentType.EVOLUTION, Priority.LOW)
    assert frozenset(AgentType) - suspended_agents(DegradationStep.ESSENTIALS) == {
        AgentType.GENERATION,
        AgentType.REFLECTION,
    }
    assert not any(suspended_agents(step) for step in DegradationStep if step < TOP_STEP)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.sampled_from(list(DegradationStep)))
def test_whatever_is_suspended_keeps_the_floor(values: list[float], step: DegradationStep) -> None:
    policy = WeightPolicy()
    weights = raise_to_floor(dict(zip(AgentType, values, strict=True)), policy.floor)
    under: dict[AgentType, Any] = under_degradation(weights, step)
    assert set(under) == set(AgentType)
    assert sum(under.values()) == pytest.approx(1)
    assert all(weight >= policy.floor - 1e-9 for weight in under.values())
    resting = suspended_agents(step)
    assert all(under[agent] == policy.floor for agent in resting)
    if not resting:
        assert under == weights
    else:
        a, b = AgentType.GENERATION, AgentType.REFLECTION
        assert under[a] * weights[b] == pytest.approx(under[b] * weights[a]), "the others keep their proportions"
