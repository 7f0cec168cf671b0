"""In which order fair queueing serves what waits."""

from app.kernel.agents import AgentType
from app.scaling.rules.demand import WaitingGroup, in_dispatch_order

A, B = AgentType.GENERATION, AgentType.RANKING


def group(tasks: int, age: float, seconds: float = 10.0) -> WaitingGroup:
    return WaitingGroup(tasks=tasks, work_seconds=tasks * seconds, oldest_age_seconds=age)


def test_one_type_is_served_in_its_own_order() -> None:
    groups = [group(5, 9.0), group(1, 3.0), group(2, 1.0)]
    assert in_dispatch_order({A: groups}, {A: 1.0}) == groups


def test_a_short_queue_is_served_before_the_end_of_a_long_one_however_old_that_is() -> None:
    old, older, young = group(100, 20.0), group(2, 21.0), group(3, 1.0)
    assert in_dispatch_order({A: [older, old], B: [young]}, {A: 0.5, B: 0.5}) == [older, young, old]


def test_a_larger_weight_is_served_sooner() -> None:
    ours, theirs = group(4, 1.0), group(3, 9.0)
    assert in_dispatch_order({A: [ours], B: [theirs]}, {A: 0.8, B: 0.2}) == [ours, theirs]
    assert in_dispatch_order({A: [ours], B: [theirs]}, {A: 0.5, B: 0.5}) == [theirs, ours]
