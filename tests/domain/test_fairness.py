"""Shares between agent types."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.agents import AgentType
from app.domain.fairness import FairnessPolicy, FairQueue

ALL = list(AgentType)


def _serve(queue: FairQueue, backlogged: list[AgentType], leases: int) -> Counter[AgentType]:
    served: Counter[AgentType] = Counter()
    for _ in range(leases):
        agent = queue.next(backlogged)
        assert agent is not None
        queue.charge(agent)
        served[agent] += 1
    return served


weights = st.lists(st.floats(0.05, 1), min_size=6, max_size=6).map(
    lambda raw: {agent: value / sum(raw) for agent, value in zip(ALL, raw, strict=True)}
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
        agent = queue.next(ALL)
        assert agent is not None
        queue.charge(agent)
        last[agent] = lease
        assert all(lease - at <= 6 * 20 for at in last.values())


def test_every_twentieth_lease_goes_to_whoever_has_waited_longest() -> None:
    starved = AgentType.PROXIMITY
    queue = FairQueue(weights=dict.fromkeys(ALL, 0.25) | {starved: 1e-6}, policy=FairnessPolicy(rescue_every=20))
    served = _serve(queue, ALL, 20 * 6 * 3)
    assert served[starved] >= 3


@given(data=st.data())
def test_somebody_is_served_whenever_somebody_has_work(data: st.DataObject) -> None:
    queue = FairQueue()
    for _ in range(30):
        backlogged = data.draw(st.lists(st.sampled_from(ALL), unique=True))
        agent = queue.next(backlogged)
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
        queue.refund(AgentType.GENERATION, queue.charge(AgentType.GENERATION))
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 100)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 10


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
    queue.fell_idle(AgentType.GENERATION)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 200)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 4


def test_a_type_that_wakes_for_a_specialist_saves_no_credit_either() -> None:
    queue = FairQueue()
    _serve(queue, [AgentType.GENERATION], 1000)
    _serve(queue, [AgentType.RANKING], 1)
    served = _serve(queue, [AgentType.GENERATION, AgentType.RANKING], 200)
    assert abs(served[AgentType.GENERATION] - served[AgentType.RANKING]) <= 4


@given(weights=weights.filter(lambda weights: min(weights.values()) > 0.06))
@settings(max_examples=50)
def test_each_share_is_within_a_twentieth_of_its_weight(weights: dict[AgentType, float]) -> None:
    """A type of less than one in twenty may get more: every twentieth lease is for whoever has waited longest."""
    served = _serve(FairQueue(weights=weights), ALL, 2000)
    assert all(abs(served[agent] - 2000 * weights[agent]) <= 0.05 * 2000 * weights[agent] for agent in ALL)


def test_the_least_weight_gets_no_less_than_its_share() -> None:
    weights = dict.fromkeys(ALL, 0.196) | {AgentType.PROXIMITY: 0.02}
    assert 40 <= _serve(FairQueue(weights=weights), ALL, 2000)[AgentType.PROXIMITY] <= 101
