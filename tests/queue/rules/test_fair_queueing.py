"""Shares between agent types."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.queue.rules.fair_queueing import FairnessPolicy, FairQueue

ALL = list(AgentType)


def _serve(queue: FairQueue, backlogged: list[AgentType], leases: int) -> Counter[AgentType]:
    served: Counter[AgentType] = Counter()
    for _ in range(leases):
        agent = queue.next_agent(backlogged)
        assert agent is not None
        queue.charge(agent)
        served[agent] += 1
    return served


weights = st.lists(st.floats(0.05, 1), min_size=6, max_size=6).map(
    lambda raw: {agent: value / sum(raw) for agent, value in zip(ALL, raw, strict=True)}
)
# Each above 0.06. Made so, as to filter for it would reject most, and with many in a row the test itself.
large_weights = weights.map(
    lambda given: {agent: 0.0601 + (1 - 6 * 0.0601) * weight for agent, weight in given.items()}
)


@given(weights=weights)
@settings(max_examples=50)
def test_shares_follow_the_weights_while_all_have_work(weights: dict[AgentType, float]) -> None:
    served = _serve(FairQueue(weights=weights), ALL, 2000)
    assert all(abs(served[agent] / 2000 - weights[agent]) <= 0.05 for agent in ALL)


def test_nobody_starves_at_the_least_weight() -> None:
    weights = dict.fromkeys(ALL, 0.02) | {AgentType.GENERATION: 0.9}
    queue = FairQueue(weights=weights)
    last = dict.fromkeys(ALL, 0)
    for lease in range(1, 3001):
        agent = queue.next_agent(ALL)
        assert agent is not None
        queue.charge(agent)
        last[agent] = lease
        assert all(lease - at <= 6 * 20 for at in last.values())


def test_every_twentieth_lease_goes_to_the_type_unserved_for_longest() -> None:
    starved = AgentType.PROXIMITY
    queue = FairQueue(weights=dict.fromkeys(ALL, 0.25) | {starved: 1e-6}, policy=FairnessPolicy(rescue_every=20))
    served = _serve(queue, ALL, 20 * 6 * 3)
    assert served[starved] >= 3


@given(data=st.data())
def test_somebody_is_served_whenever_somebody_has_work(data: st.DataObject) -> None:
    queue = FairQueue()
    for _ in range(30):
        backlogged = data.draw(st.lists(st.sampled_from(ALL), unique=True))
        agent = queue.next_agent(backlogged)
        assert (agent in backlogged) if backlogged else agent is None
        if agent is not None:
            queue.charge(agent)


def test_a_type_that_was_idle_starts_level_and_has_saved_no_credit() -> None:
    queue = FairQueue()
    _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 1000)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING, AgentType.EVOLUTION], 300)
    assert max(served.values()) - min(served.values()) <= 20


def test_a_charge_that_came_to_nothing_is_refunded() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.refund(queue.charge(AgentType.GENERATION))
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 100)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 10


def test_a_turn_against_starvation_that_came_to_nothing_is_taken_again() -> None:
    """As where a result is refused with which a worker asked for a task: the task is asked for anew."""
    weights = dict.fromkeys(AgentType, 1.0) | {AgentType.RANKING: 1e-6}
    queue, served = FairQueue(weights=weights), Counter[AgentType]()
    queue.charge(AgentType.GENERATION)
    for _ in range(400):
        for is_leased in (False, True):
            agent = queue.next_agent([AgentType.GENERATION, AgentType.RANKING])
            assert agent is not None
            charge = queue.charge(agent)
            if is_leased:
                served[agent] += 1
            else:
                queue.refund(charge)
    assert served[AgentType.RANKING] >= 19


def test_a_type_with_long_tasks_gets_fewer_leases_for_the_same_time() -> None:
    queue = FairQueue()
    for _ in range(200):
        queue.observe(AgentType.GENERATION, 30.0)
        queue.observe(AgentType.RANKING, 10.0)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 400)
    assert 2.3 < served[AgentType.RANKING] / served[AgentType.GENERATION] < 3.5


def test_types_that_wake_together_start_level_whatever_one_of_them_did_alone() -> None:
    """The queue runs dry between two goals; the type that did all the work until then must not pay for it now."""
    queue = FairQueue()
    _serve(queue, [AgentType.GENERATION], 1000)
    queue.mark_idle(AgentType.GENERATION)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 200)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 4


def test_a_type_that_wakes_for_a_specialist_saves_no_credit_either() -> None:
    queue = FairQueue()
    _serve(queue, [AgentType.GENERATION], 1000)
    _serve(queue, [AgentType.RANKING], 1)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 200)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 4


@given(weights=large_weights)
@settings(max_examples=50)
def test_each_share_is_within_a_twentieth_of_its_weight(weights: dict[AgentType, float]) -> None:
    """A type of less than one in twenty may get more: every twentieth lease is for whoever has waited longest."""
    served = _serve(FairQueue(weights=weights), ALL, 2000)
    assert all(abs(served[agent] - 2000 * weights[agent]) <= 0.05 * 2000 * weights[agent] for agent in ALL)


def test_the_least_weight_gets_no_less_than_its_share() -> None:
    weights = dict.fromkeys(ALL, 0.196) | {AgentType.PROXIMITY: 0.02}
    assert 40 <= _serve(FairQueue(weights=weights), ALL, 2000)[AgentType.PROXIMITY] <= 101


preferences = st.lists(st.sampled_from(ALL), min_size=1, max_size=12)


def _preferring(queue: FairQueue, seats: list[AgentType], leases: int, seed: int = 0) -> list[tuple[AgentType, bool]]:
    """What workers with these assignments are given, in any order, and whether it was what they prefer."""
    draw = random.Random(seed)
    given: list[tuple[AgentType, bool]] = []
    for _ in range(leases):
        preferred = draw.choice(seats)
        agent = queue.next_agent(ALL, preference=preferred)
        assert agent is not None
        queue.charge(agent)
        given.append((agent, agent is preferred))
    return given


@given(weights=large_weights, seats=preferences, seed=st.integers(0, 99))
@settings(max_examples=50)
def test_shares_hold_for_any_assignment(weights: dict[AgentType, float], seats: list[AgentType], seed: int) -> None:
    served = Counter(agent for agent, _ in _preferring(FairQueue(weights=weights), seats, 2000, seed))
    assert all(abs(served[agent] - 2000 * weights[agent]) <= 0.05 * 2000 * weights[agent] for agent in ALL)


@given(weights=weights, favourite=st.sampled_from(ALL), seconds=st.lists(st.floats(1, 100), min_size=6, max_size=6))
@settings(max_examples=50)
def test_no_type_falls_back_by_more_than_a_task_while_all_prefer_another(
    weights: dict[AgentType, float], favourite: AgentType, seconds: list[float]
) -> None:
    """In time of service by weight, one task of either type is all that may lie between two of them."""
    costs = {agent: cost / weights[agent] for agent, cost in zip(ALL, seconds, strict=True)}
    queue = FairQueue(weights=weights, policy=FairnessPolicy(rescue_every=10**9))
    for agent, cost in zip(ALL, seconds, strict=True):
        for _ in range(200):
            queue.observe(agent, cost)
    served = dict.fromkeys(ALL, 0.0)
    for _ in range(500):
        given_to = queue.next_agent(ALL, preference=favourite)
        assert given_to is not None
        served[given_to] += queue.charge(given_to).cost
        behind = min(ALL, key=lambda agent: served[agent])
        assert all(served[a] - served[behind] <= (costs[a] + max(costs.values())) * 1.01 for a in ALL)


def test_a_type_that_specialists_bring_ahead_gives_no_other_type_credit() -> None:
    """Ten workers run nothing but generation; the one that can run all prefers ranking, and keeps the rest alive."""
    queue = FairQueue(policy=FairnessPolicy(rescue_every=10**9))
    served: Counter[AgentType] = Counter()
    for _ in range(500):
        _serve(queue, [AgentType.GENERATION], 10)
        ((agent, _),) = _preferring(queue, [AgentType.RANKING], 1)
        served[agent] += 1
    assert max(served.values()) - min(served[agent] for agent in ALL if agent is not AgentType.GENERATION) <= 2


@given(data=st.data())
@settings(max_examples=30)
def test_a_preference_leaves_no_capacity_idle_and_takes_nothing_that_is_less_urgent(data: st.DataObject) -> None:
    queue = FairQueue()
    for _ in range(44):
        backlogged = data.draw(st.lists(st.sampled_from(ALL), unique=True))
        urgent = data.draw(st.lists(st.sampled_from(backlogged), unique=True, min_size=1)) if backlogged else []
        agent = queue.next_agent(backlogged, urgent, data.draw(st.sampled_from(ALL)))
        assert (agent is None) == (not backlogged)
        if agent is not None:
            assert agent in urgent
            queue.charge(agent)
        else:
            queue.charge(AgentType.GENERATION)


def test_every_twentieth_lease_is_for_the_longest_unserved_whatever_the_worker_prefers() -> None:
    weights = dict.fromkeys(ALL, 0.25) | {AgentType.PROXIMITY: 1e-6}
    given_ = _preferring(FairQueue(weights=weights), [AgentType.GENERATION], 20 * 6 * 3)
    assert Counter(agent for agent, _ in given_)[AgentType.PROXIMITY] >= 3


def test_workers_mostly_get_what_they_are_assigned_to() -> None:
    """With seats as the shares are, seven leases in ten; by the fair queue alone it would be one in six."""
    seats = [agent for agent in ALL for _ in range(2)]
    liked = sum(as_preferred for _, as_preferred in _preferring(FairQueue(), seats, 2000))
    assert liked > 2000 * 0.6


def test_a_preference_for_a_type_without_work_changes_nothing() -> None:
    plain, preferring = FairQueue(), FairQueue()
    some = [AgentType.GENERATION, AgentType.RANKING]
    for _ in range(100):
        agent = plain.next_agent(some)
        assert agent == preferring.next_agent(some, preference=AgentType.EVOLUTION)
        assert agent is not None
        plain.charge(agent)
        preferring.charge(agent)
