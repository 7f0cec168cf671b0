"""What the size of the pool must never be, whatever it sees."""

from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.idle import IdleSample
from app.scaling.rules.target import DecisionType, ScalingPlan, ScalingPolicy, ScalingSnapshot, decide, required_workers
from app.workers.rules.hosts import WorkerLimit

NOW = datetime(2026, 11, 24, tzinfo=UTC)
_T = TypeVar("_T")


def _some(random: Random, *values: _T) -> _T:
    return values[random.randrange(len(values))]


def _group(random: Random, services: list[float]) -> WaitingGroup:
    tasks = _some(random, 0, 1, 2, 7, 60, 900)
    age = random.random() * _some(random, 0.0, 5.0, 24.0, 40.0, 900.0)
    return WaitingGroup(tasks=tasks, work_seconds=tasks * _some(random, *services), oldest_age_seconds=age)


def _snapshot(random: Random) -> ScalingSnapshot:
    services = [_some(random, 1.0, 2.5, 20.0, 300.0) for _ in range(_some(random, 1, 3))]
    start = _some(random, 0.0, 1.0, 5.0, 30.0, 90.0)
    idle = _some(random, 0, 0, 1, 5, 80)
    return ScalingSnapshot(
        idle=idle,
        busy=_some(random, 0, 1, 4, 30, 400),
        idle_unable=_some(random, 0, 0, idle // 2, idle),
        starting=[random.random() * start for _ in range(_some(random, 0, 0, 2, 50))],
        draining=_some(random, 0, 0, 3, 60),
        waiting=_some(random, None, [], [_group(random, services) for _ in range(random.randrange(8))]),
        idle_history=[IdleSample(seconds=_some(random, 2.0, 5.0), idle=random.randrange(idle + 2)) for _ in range(70)],
        cpu=_some(random, None, 0.0, 0.5, 0.95),
        start_seconds=start,
        limits=[
            WorkerLimit(resource="memory", workers=_some(random, 0, 5, 40, 5000)) for _ in range(random.randrange(3))
        ],
        running_mean_seconds=_some(random, None, 1.0, 4.0, 30.0, 900.0),
    )


def _policy(random: Random) -> ScalingPolicy:
    least = _some(random, 1, 2, 10, 100)
    return ScalingPolicy(
        min_workers=least,
        max_workers=least + _some(random, 0, 1, 30, 900),
        scale_up_threshold=_some(random, 0.0, 0.5, 0.8, 1.0),
        scale_down_threshold=_some(random, 0.0, 0.3, 0.7),
        wait_target_seconds=_some(random, 1.0, 30.0, 300.0),
        growth=_some(random, 1.25, 2.0),
        is_fixed=random.random() < 0.1,
        deviations=_some(random, 0.0, 2.0, 5.0),
    )


def _bounds_hold(seen: ScalingSnapshot, policy: ScalingPolicy, plan: ScalingPlan) -> None:
    assert policy.min_workers <= plan.target <= policy.max_workers
    assert plan.target <= max(2 * plan.current, policy.min_workers) or plan.current == 0
    grown = plan.target > max(plan.current, policy.min_workers)
    if grown:
        tasks = sum(group.tasks for group in seen.waiting or ())
        assert plan.target <= min(
            [tasks + seen.busy + seen.idle_unable, *(max(limit.workers, policy.min_workers) for limit in seen.limits)]
        )
    assert not plan.start or plan.current + seen.draining + plan.start <= policy.max_workers


def _removal_is_gentle(seen: ScalingSnapshot, policy: ScalingPolicy, plan: ScalingPlan) -> None:
    assert 0 <= plan.remove_idle <= seen.idle
    assert plan.remove_idle + plan.drain_busy <= max(0, plan.current - plan.target)
    if plan.current <= policy.max_workers:
        assert plan.drain_busy == 0
        assert plan.remove_idle == max(0, plan.current - plan.target)
        waiting = seen.waiting is None or any(group.tasks for group in seen.waiting)
        assert not waiting or plan.target >= plan.current


def _is_explained(plan: ScalingPlan, policy: ScalingPolicy) -> None:
    assert plan.reasons
    assert all(plan.reasons)
    assert (plan.decision_type is DecisionType.SCALE_UP) == (plan.target > plan.current)
    assert (plan.decision_type is DecisionType.SCALE_DOWN) == (plan.target < plan.current)
    assert plan.decide_again_after_seconds in (policy.tick_seconds, policy.hurry_seconds)
    assert all(clamp.old_target != clamp.new_target for clamp in plan.clamps)


def _need_never_falls(random: Random, seen: ScalingSnapshot, policy: ScalingPolicy) -> None:
    groups = list(seen.waiting or ())
    if not groups:
        return
    place = random.randrange(len(groups))
    group = groups[place]
    more = group.tasks + 1
    longer = replace(group, tasks=more, work_seconds=more * (group.work_seconds / group.tasks if group.tasks else 9.0))
    newcomer = WaitingGroup(
        tasks=1, work_seconds=random.random() * 100 + 1, oldest_age_seconds=group.oldest_age_seconds
    )
    later = random.random() * 60
    worse = [
        [*groups[:place], longer, *groups[place + 1 :]],
        [*groups[:place], newcomer, *groups[place:]],
        [*groups, newcomer],
        [replace(one, oldest_age_seconds=one.oldest_age_seconds + later) for one in groups],
        [*groups[:place], replace(group, oldest_age_seconds=group.oldest_age_seconds + later), *groups[place + 1 :]],
    ]
    before = required_workers(seen, policy)
    assert all(required_workers(replace(seen, waiting=changed), policy) >= before for changed in worse)


def _check(random: Random) -> None:
    seen, policy = _snapshot(random), _policy(random)
    plan = decide(seen, policy, NOW)
    _bounds_hold(seen, policy, plan)
    _removal_is_gentle(seen, policy, plan)
    _is_explained(plan, policy)
    _need_never_falls(random, seen, policy)
    assert decide(seen, policy, NOW) == plan


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_what_must_never_happen(seed: int) -> None:
    _check(Random(seed))


@pytest.mark.slow
def test_what_must_never_happen_in_sixty_thousand_cases() -> None:
    random = Random(20261124)
    for _ in range(60_000):
        _check(random)
