"""How many workers: the specification's example to the number, limits, and the words that go with a decision."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from app.kernel.modes import Mode
from app.scaling.rules.blocks import Blocks, WorkerGroup
from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.idle import IdlePolicy, IdleSample
from app.scaling.rules.target import (
    Clamp,
    DecisionType,
    ScalingPlan,
    ScalingPolicy,
    ScalingSnapshot,
    decide,
    decision_type,
    in_mode,
    is_burst,
    priced,
    required_workers,
)
from app.workers.rules.hosts import WorkerLimit, permit_limit

NOW = datetime(2026, 11, 24, tzinfo=UTC)
POLICY = ScalingPolicy(min_workers=2, max_workers=100)


def waiting(tasks: int, *, seconds: float = 20.0, age: float = 0.0) -> WaitingGroup:
    return WaitingGroup(tasks=tasks, work_seconds=tasks * seconds, oldest_age_seconds=age)


def snapshot(*groups: WaitingGroup, **changes: Any) -> ScalingSnapshot:
    usual: dict[str, Any] = {"idle": 0, "busy": 10, "waiting": groups, "cpu": 0.85}
    return ScalingSnapshot(**(usual | changes))


def plan(*groups: WaitingGroup, policy: ScalingPolicy = POLICY, **changes: Any) -> ScalingPlan:
    return decide(snapshot(*groups, **changes), policy, NOW)


@pytest.mark.parametrize("seconds", [0.9, 1.0, 3.0, 5.0, 20.0, 120.0, 3600.0])
def test_example_1(seconds: float) -> None:
    """500 generation tasks, 10 workers, CPU at 85 %: 20 workers, whatever a task is believed to take."""
    decided = plan(waiting(500, seconds=seconds))
    assert (decided.decision_type, decided.current, decided.target) == (DecisionType.SCALE_UP, 10, 20)
    assert decided.start == 10
    assert decided.reasons[0].startswith("500 tasks of about")


def test_example_1_with_idle_workers_by_the_cpu_alone() -> None:
    assert plan(waiting(500), busy=5, idle=5).target == 20


def test_growth_that_was_cut_by_doubling_goes_on_soon() -> None:
    cut = plan(waiting(500), policy=ScalingPolicy())
    assert cut.clamps == (Clamp(limit="at most +100% in one step", old_target=261, new_target=20),)
    assert cut.decide_again_after_seconds == 0.5
    assert plan(waiting(5, age=20.0)).decide_again_after_seconds == 5
    limited = plan(waiting(500), policy=replace(POLICY, max_workers=15))
    assert (limited.target, limited.decide_again_after_seconds) == (15, 5)


def test_need_to_the_number() -> None:
    """24 s to start 60 tasks of 10 s: 10 workers start 240 s of it, each new one 24 - 5 + 10 = 29 s: 13 more."""
    assert required_workers(snapshot(waiting(60, seconds=10.0)), POLICY) == 10 + 13
    # Two that will be ready in 4 s start 2 x (24 + 10) - 8 = 60 s of the 360 that are left.
    assert required_workers(snapshot(waiting(60, seconds=10.0), starting=[4.0, 4.0]), POLICY) == 12 + 11
    # With 14 s gone, 100 s are started by those who are there, and a new one starts 10 - 5 + 10.
    assert required_workers(snapshot(waiting(60, seconds=10.0, age=14.0)), POLICY) == 10 + 34


def test_tasks_at_work_that_take_long_free_few_workers_in_time() -> None:
    """Of 100 workers with tasks of 180 s, 12.5 are free within 24 s, and at two deviations fewer (3.3 each) 5.9."""
    short = waiting(300, seconds=1.0)
    blocked = snapshot(short, busy=100, running_mean_seconds=180.0)
    # Each of the 5.9 has 24 / 0.125 - 180 = 12.2 s left and starts 13.2 s of work, 77 s in all; a new one 20 s.
    assert required_workers(blocked, POLICY) == 100 + 12
    assert required_workers(snapshot(short, busy=100, running_mean_seconds=1.0), POLICY) == 100
    assert required_workers(snapshot(short, busy=100), POLICY) == 100


def test_tasks_at_work_that_are_soon_over_free_all_workers_for_long_ones() -> None:
    long = waiting(10, seconds=180.0)
    assert required_workers(snapshot(long, busy=10, running_mean_seconds=1.0), POLICY) == 10
    # By the mean of what waits each would start no more than 24 s of it.
    assert required_workers(snapshot(long, busy=10), POLICY) == 10 + 8


def test_without_allowance_tasks_alike_are_started_at_the_rate_at_which_others_end() -> None:
    level = replace(POLICY, deviations=0.0)
    for seconds in (1.0, 10.0, 300.0):
        groups = [waiting(60, seconds=seconds), waiting(900, seconds=seconds)]
        known = snapshot(*groups, busy=40, running_mean_seconds=seconds)
        assert required_workers(known, level) == required_workers(replace(known, running_mean_seconds=None), level)


def test_never_more_workers_than_tasks() -> None:
    assert required_workers(snapshot(waiting(3, seconds=3600.0, age=500.0)), POLICY) == 13


def test_a_later_group_may_be_the_one_that_needs_most() -> None:
    first, second = waiting(10, seconds=5.0, age=3.0), waiting(200, seconds=5.0)
    assert required_workers(snapshot(first, second), POLICY) > required_workers(snapshot(first), POLICY)


def test_no_more_workers_where_they_are_not_what_is_short() -> None:
    decided = plan(waiting(500), busy=2, idle=8, cpu=0.3)
    assert decided.decision_type is DecisionType.MAINTAIN
    assert decided.reasons[-1] == "tasks wait although 8 of 10 workers are idle: more cannot help"


def test_what_is_not_known_changes_nothing() -> None:
    blind = plan(waiting=None)
    assert blind.decision_type is DecisionType.MAINTAIN
    assert "not known" in blind.reasons[0]
    no_cpu = plan(waiting(500), busy=5, idle=5, cpu=None)
    assert no_cpu.decision_type is DecisionType.MAINTAIN
    assert "CPU is not measured" in no_cpu.reasons[-1]


def test_what_is_not_known_does_not_matter_where_it_cannot() -> None:
    assert plan(waiting(500), cpu=None).target == 20
    assert plan(busy=1, waiting=None, cpu=None).target == 2


def test_below_the_minimum_it_is_refilled_at_once() -> None:
    decided = plan(idle=0, busy=0, policy=replace(POLICY, min_workers=30))
    assert (decided.target, decided.start) == (30, 30)
    assert decided.reasons == ("0 workers, and the minimum is 30",)


@pytest.mark.parametrize(("at_most", "idle", "busy"), [(12, 0, 0), (10, 0, 0), (8, 2, 0), (4, 3, 3)])
def test_above_the_maximum_those_that_have_not_started_leave_first(at_most: int, idle: int, busy: int) -> None:
    policy = replace(POLICY, max_workers=at_most)
    decided = plan(waiting(50), idle=3, busy=7, starting=[5.0] * 5, policy=policy)
    assert (decided.target, decided.remove_idle, decided.drain_busy) == (at_most, idle, busy)


def test_above_the_maximum_the_idle_leave_now_and_the_busy_when_they_are_done() -> None:
    decided = plan(waiting(50), idle=3, busy=7, policy=replace(POLICY, max_workers=4))
    assert (decided.target, decided.remove_idle, decided.drain_busy) == (4, 3, 3)
    assert decided.decision_type is DecisionType.SCALE_DOWN


def test_draining_workers_still_take_their_place() -> None:
    decided = plan(waiting(500), draining=95)
    assert (decided.target, decided.start) == (10, 0)
    assert "95 draining workers still count" in decided.reasons[-1]
    refill = plan(idle=0, busy=0, draining=99)
    assert (refill.target, refill.start) == (2, 1)


@pytest.mark.parametrize(("caps", "target"), [((12,), 12), ((12, 11), 11), ((3,), 10), ((500,), 20)])
def test_resources_limit_growth_and_say_so(caps: Sequence[int], target: int) -> None:
    decided = plan(waiting(500), limits=[WorkerLimit(resource="LLM permits", workers=cap) for cap in caps])
    assert decided.target == target
    assert target == 20 or f"LLM permits suffice for {min(caps)} workers" in decided.reasons[-1]


def test_resources_never_limit_the_minimum() -> None:
    assert plan(busy=1, limits=[WorkerLimit(resource="memory", workers=0)]).target == 2


def test_permits_suffice_for_a_fifth_more_workers_than_hold_one() -> None:
    assert permit_limit(20, 0.5) == WorkerLimit(resource="LLM permits", workers=48)
    assert permit_limit(20, 0.0) is None


def idle(*samples: tuple[float, int]) -> list[IdleSample]:
    return [IdleSample(seconds=seconds, idle=count) for seconds, count in samples]


@pytest.mark.parametrize(
    ("samples", "busy", "target", "why"),
    [
        ([(4.0, 8)], 2, 10, "4.5 s have not passed"),
        ([(4.75, 8)], 8, 16, "8 x 4.75 s are less than 40 s in a busy pool"),
        ([(5.0, 8)], 8, 8, "8 x 5 s are the price in a busy pool"),
        ([(5.0, 8)], 2, 2, "8 x 5 s are more than the price in a calm one"),
        ([(5.0, 1), (5.0, 1), (4.0, 8)], 2, 10, "4 s at 8 are not enough, then it is only one"),
        ([(5.0, 1)] * 7, 30, 38, "1 x 35 s are less than 40 s in a busy pool"),
        ([(5.0, 1)] * 8, 30, 37, "1 x 40 s are the price in a busy pool"),
        ([(5.0, 8), (5.0, 0), (4.75, 8)], 8, 16, "tasks waited meanwhile"),
    ],
)
def test_idle_workers_go_once_they_have_cost_the_price(
    samples: list[tuple[float, int]], busy: int, target: int, why: str
) -> None:
    policy = ScalingPolicy(min_workers=1, max_workers=100)
    decided = plan(idle=8, busy=busy, idle_history=idle(*samples), policy=policy)
    assert decided.target == target, why
    assert decided.remove_idle == 8 + busy - target
    assert decided.drain_busy == 0


@pytest.mark.parametrize(("start_seconds", "ticks"), [(1.0, 1), (5.0, 4), (20.0, 16)])
def test_idle_workers_are_kept_for_longer_where_new_ones_take_longer_to_start(start_seconds: float, ticks: int) -> None:
    policy = priced(ScalingPolicy(min_workers=1, max_workers=100), start_seconds)
    assert plan(idle=8, busy=2, idle_history=idle(*[(5.0, 1)] * ticks), policy=policy).target == 9
    assert plan(idle=8, busy=2, idle_history=idle(*[(5.0, 1)] * (ticks - 1)), policy=policy).target == 10


def test_nobody_idles_for_more_than_five_minutes_whatever_the_price() -> None:
    dear = ScalingPolicy(min_workers=1, max_workers=100, idle=IdlePolicy(busy_price=400.0))
    assert plan(idle=8, busy=30, idle_history=idle(*[(5.0, 1)] * 59), policy=dear).target == 38
    assert plan(idle=8, busy=30, idle_history=idle(*[(5.0, 1)] * 60), policy=dear).target == 37


def test_idle_workers_of_others_stay_and_the_reason_says_so() -> None:
    kept = plan(busy=0, idle=5, idle_elsewhere=5, idle_history=idle((3600.0, 5)))
    assert (kept.target, kept.reasons) == (5, ("nothing waits; 5 of 5 workers idle, and those are not ours to remove",))


def test_tasks_that_are_late_already_are_not_said_to_start_in_time() -> None:
    """Each has an idle worker that does not take it, for a reason that more of them would not mend."""
    kept = plan(waiting(3, age=600.0), busy=2, idle=5)
    reason = "3 tasks of about 60 s of work wait, and 7 workers are one for each of them beside those at work"
    assert (kept.target, kept.reasons) == (7, (reason,))


def test_shrinking_stops_at_the_minimum() -> None:
    decided = plan(idle=9, busy=1, idle_history=idle((60.0, 9)), policy=replace(POLICY, min_workers=4))
    assert (decided.target, decided.remove_idle) == (4, 6)
    assert decided.clamps == (Clamp(limit="min_workers is 4", old_target=1, new_target=4),)


def groups(*sizes: int | tuple[int, int]) -> list[WorkerGroup]:
    """Groups of workers that are all idle, or not so many of them."""
    return [WorkerGroup(*size) if isinstance(size, tuple) else WorkerGroup(size, size) for size in sizes]


@pytest.mark.parametrize(
    ("removable", "target"),
    [
        (None, 3),
        (groups(2, 2, 2, 2), 4),  # 7 may go, so three blocks
        (groups(4, 4), 6),
        (groups(2, 6), 4),  # the larger one of both
        (groups((6, 5), (2, 1), (2, 2)), 4),
        (groups((4, 3), (4, 4)), 6),
        (groups(8), 10),
        (groups(4, 1, 2), 3),
        (groups(), 10),  # others of their blocks have just registered
    ],
)
def test_of_blocks_whole_ones_go_and_the_target_is_what_remains(
    removable: list[WorkerGroup] | None, target: int
) -> None:
    policy = replace(POLICY, min_workers=3)
    blocks = None if removable is None else Blocks(removable=removable, smallest=1)
    decided = plan(idle=8, busy=2, idle_history=idle((60.0, 8)), blocks=blocks, policy=policy)
    assert (decided.target, decided.remove_idle, decided.drain_busy) == (target, 10 - target, 0)
    clamp = Clamp(limit="the workers of a block go together", old_target=3, new_target=target)
    assert decided.clamps[1:] == (() if target == 3 else (clamp,))
    assert decided.kept_with_blocks == target - 3
    assert decided.decision_type is (DecisionType.MAINTAIN if target == 10 else DecisionType.SCALE_DOWN)


def test_a_part_of_a_block_above_a_bound_is_none_too_many() -> None:
    """A pool of blocks of 4 that is to have 10 workers has 12."""
    seen = {"blocks": Blocks(removable=groups(4, 4, (4, 0)), smallest=4)}
    at_most = replace(POLICY, max_workers=10)
    busy_pool = plan(waiting(50), idle=8, busy=4, policy=at_most, **seen)
    assert (busy_pool.target, busy_pool.remove_idle) == (12, 0)
    calm = plan(idle=8, busy=4, idle_history=idle((60.0, 8)), policy=at_most, **seen)
    assert (calm.target, calm.remove_idle) == (4, 8)
    above = plan(idle=8, busy=4, policy=replace(POLICY, max_workers=8), **seen)
    assert (above.target, above.remove_idle, above.drain_busy) == (8, 4, 0)
    fixed = replace(POLICY, is_fixed=True)
    assert plan(idle=8, busy=4, fixed_size=10, policy=fixed, **seen).decision_type is DecisionType.MAINTAIN
    assert plan(idle=8, busy=4, fixed_size=8, policy=fixed, **seen).target == 8
    assert plan(idle=8, busy=4, fixed_size=13, policy=fixed, **seen).start == 1


@pytest.mark.parametrize("starting", [6, 2, 0])
def test_workers_that_start_are_no_reason_to_end_those_of_the_minimum(starting: int) -> None:
    """As they may never be ready, such as those of others whose handlers do not load."""
    policy = replace(POLICY, min_workers=6)
    seen = {"idle": 6, "busy": 0, "starting": (5.0,) * starting, "idle_history": idle((60.0, 6))}
    decided = plan(policy=policy, **seen)
    assert (decided.current, decided.target, decided.remove_idle) == (6 + starting, 6 + starting, 0)
    words = "min_workers is 6" + (f" besides {starting} that start" if starting else "")
    assert decided.clamps == (Clamp(limit=words, old_target=starting, new_target=6 + starting),)
    # More than the minimum may go.
    decided = plan(policy=policy, **seen | {"idle": 9, "idle_history": idle((60.0, 9))})
    assert (decided.target, decided.remove_idle) == (6 + starting, 3)


def test_nobody_leaves_while_something_waits() -> None:
    assert plan(waiting(1), idle=9, busy=1, idle_history=idle((600.0, 9))).target == 10


def test_development_holds_its_size_but_for_the_bounds() -> None:
    fixed = in_mode(ScalingPolicy(min_workers=2, max_workers=5), Mode.DEVELOPMENT)
    assert plan(waiting(500), busy=3, policy=fixed).decision_type is DecisionType.MAINTAIN
    assert plan(busy=0, idle=5, idle_history=idle((900.0, 5)), policy=fixed).target == 5
    assert plan(busy=1, policy=fixed).target == 2
    assert plan(busy=7, policy=fixed).target == 5


def test_trusted_tester_takes_small_steps_and_its_time() -> None:
    careful = in_mode(ScalingPolicy(min_workers=5, max_workers=50), Mode.TRUSTED_TESTER)
    assert plan(waiting(500), busy=10, policy=careful).target == 12
    assert plan(waiting(500), busy=5, policy=careful).target == 6
    assert plan(idle=10, busy=10, idle_history=idle((295.0, 10)), policy=careful).target == 20
    assert plan(idle=10, busy=10, idle_history=idle((300.0, 10)), policy=careful).target == 10


def test_a_burst_is_half_a_budget_of_work_for_everybody() -> None:
    assert not is_burst(119.0, 10, 60.0, POLICY)
    assert is_burst(121.0, 10, 60.0, POLICY)
    assert not is_burst(121.0, 10, 0.4, POLICY)


def test_what_a_decision_is_called() -> None:
    assert decision_type(5, 6, is_rearranged=True) is DecisionType.SCALE_UP
    assert decision_type(5, 4) is DecisionType.SCALE_DOWN
    assert decision_type(5, 5, is_rearranged=True) is DecisionType.REBALANCE
    assert decision_type(5, 5) is DecisionType.MAINTAIN
