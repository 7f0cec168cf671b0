"""What the scaling loop learns from look to look."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.scaling.rules.estimates import (
    ClassHistory,
    CounterReading,
    Estimates,
    ServiceTimePolicy,
    TaskTotals,
    after_removal,
    class_history,
    mean_after,
    next_mean,
    start_seconds,
    task_seconds,
    update,
)
from app.scaling.rules.idle import IdleSample, surplus
from app.scaling.rules.target import ScalingPolicy

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LANE = Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM)
POLICY, SERVICE = ScalingPolicy(), ServiceTimePolicy()
FIRST = CounterReading(at=NOW, pending={}, leases={}, totals={}, workers=4)


def _next(before: Estimates, seconds: float = 5.0, **changes: object) -> Estimates:
    look = replace(FIRST, at=before.at + timedelta(seconds=seconds), **changes)  # type: ignore[arg-type]
    return update(before, look, POLICY, SERVICE)


def test_the_first_look_teaches_nothing_of_what_was_before() -> None:
    ended = {AgentType.GENERATION: TaskTotals(tasks=1000, seconds=5000.0)}
    known = update(None, replace(FIRST, totals=ended, leases={LANE: 1000}), POLICY, SERVICE)
    assert (known.service_times, known.arrivals) == ({}, ())
    assert task_seconds(known, AgentType.GENERATION) == SERVICE.prior_seconds
    again = _next(known, totals=ended, leases={LANE: 1000})
    assert again.service_times == {}


def test_run_times_are_learned_from_what_ended_between_two_looks() -> None:
    known = update(None, FIRST, POLICY, SERVICE)
    for count in (10, 20, 60, 200):
        known = _next(known, totals={AgentType.GENERATION: TaskTotals(tasks=count, seconds=3.0 * count)})
    assert task_seconds(known, AgentType.GENERATION) == pytest.approx(3.0, rel=0.01)
    assert known.service_times[AgentType.GENERATION].tasks == 200


def test_many_alike_at_once_are_many_one_by_one() -> None:
    mean = 20.0
    for tasks in range(7):
        mean = next_mean(mean, tasks, 5.0, SERVICE)
    assert mean_after(20.0, 0, 7, 35.0, SERVICE) == pytest.approx(mean)
    assert mean_after(20.0, 0, 10**9, 5.0 * 10**9, SERVICE) == pytest.approx(5.0, rel=0.001)


def test_a_high_percentile_of_the_last_starts_counts() -> None:
    known = update(None, FIRST, POLICY, SERVICE)
    assert start_seconds(known) == 5.0
    known = _next(known, starts=[1.0] * 17 + [2.0, 3.0, 60.0])
    assert start_seconds(known) == 3.0
    assert start_seconds(_next(known, starts=[0.5] * 20)) == 0.5


def test_who_idled_and_was_removed_counts_no_more() -> None:
    known = _next(update(None, FIRST, POLICY, SERVICE), idle=3)
    assert [spare.idle for spare in known.idle_history] == [3]
    assert [spare.idle for spare in after_removal(known, 2, 2).idle_history] == [1]


def test_who_left_of_its_own_accord_has_not_idled_in_vain() -> None:
    known = after_removal(_next(update(None, FIRST, POLICY, SERVICE), idle=3), 0, 4)
    assert [spare.idle for spare in _next(known, idle=1, workers=2).idle_history] == [1, 0]


def test_nobody_has_idled_while_nobody_looked() -> None:
    """With the loops off for two hours, all who idled at their first look left, as if they had idled for all that."""
    known = _next(update(None, FIRST, POLICY, SERVICE), seconds=7200.0, idle=3)
    of_class = class_history(ClassHistory(workers=3), 7200.0, 3, 3, POLICY)
    for history in (known.idle_history, of_class.idle_history):
        assert history == (IdleSample(seconds=POLICY.tick_seconds, idle=3),), "as after any look"
        assert surplus(history, 3, POLICY.idle, busy=False) == (0, 0.0)
    assert surplus(_next(known, idle=3).idle_history, 3, POLICY.idle, busy=False) == (3, 10.0)


def test_a_class_starts_in_its_own_time_once_that_is_known() -> None:
    known = _next(update(None, FIRST, POLICY, SERVICE), starts=[2.0])
    of_class = class_history(ClassHistory(), 5.0, 0, 1, POLICY)
    assert start_seconds(known, of_class) == 2.0
    of_class = class_history(of_class, 5.0, 0, 1, POLICY, starts=[280.0, 300.0])
    assert (start_seconds(known, of_class), start_seconds(known)) == (300.0, 2.0)
