"""Runtime metrics: what counts as work, and which figures nobody has measured."""

import pytest

from app.health.rules.runtime import (
    LanguageModel,
    arrivals_per_second,
    bottleneck_agent,
    completion_seconds,
    unmeasured_metrics,
)
from app.kernel.agents import AgentType
from app.scaling.rules.estimates import ServiceTimePolicy
from tests.support.snapshots import minute, pool, queue

_POLICY = ServiceTimePolicy()
_RANKING, _EVOLUTION = AgentType.RANKING, AgentType.EVOLUTION


def test_a_pool_counts_each_worker_once() -> None:
    counts = pool(starting=1, idle=2, busy=3, draining=4, silent=2)
    assert (counts.total, counts.healthy) == (10, 7)
    assert counts.busy_share == pytest.approx(0.6)
    assert pool(idle=0, busy=0, draining=3).busy_share is None


def test_the_narrowest_has_the_most_work_for_each_of_its_workers() -> None:
    waiting = queue({_RANKING: {"pending": 60}, _EVOLUTION: {"pending": 30}})
    assert bottleneck_agent(waiting, pool(), _POLICY) is _RANKING
    assert bottleneck_agent(waiting, pool(assigned_workers={_RANKING: 9, _EVOLUTION: 1}), _POLICY) is _EVOLUTION
    # Nobody is assigned ranking at all.
    assert bottleneck_agent(waiting, pool(assigned_workers={_EVOLUTION: 1}), _POLICY) is _RANKING


def test_work_is_tasks_times_how_long_they_take() -> None:
    took = [minute(_RANKING, "task.completed", 10, 2.0), minute(_EVOLUTION, "task.completed", 10, 50.0)]
    waiting = queue({_RANKING: {"pending": 60}, _EVOLUTION: {"pending": 30}}, recent=took)
    assert bottleneck_agent(waiting, pool(), _POLICY) is _EVOLUTION


def test_what_runs_is_outstanding_but_makes_no_bottleneck_alone() -> None:
    assert bottleneck_agent(queue({_RANKING: {"executing": 60}}), pool(), _POLICY) is None
    both = queue({_RANKING: {"pending": 1, "executing": 60}, _EVOLUTION: {"pending": 30, "delayed": 600}})
    assert bottleneck_agent(both, pool(), _POLICY) is _RANKING


def test_means_and_rates() -> None:
    recent = [
        minute(_RANKING, "task.completed", 3, 2.0),
        minute(_EVOLUTION, "task.completed", 1, 10.0),
        minute(_RANKING, "task.submitted", 30),
        minute(_RANKING, "task.failed", 5, 100.0),
    ]
    snapshot = queue(recent=recent)
    assert completion_seconds(snapshot) == pytest.approx(4.0)
    assert arrivals_per_second(snapshot, _RANKING) == pytest.approx(0.1)
    assert arrivals_per_second(snapshot, _EVOLUTION) == 0


def test_what_was_not_measured_is_said() -> None:
    named = [reason.message.split(" ")[0] for reason in unmeasured_metrics(queue(count_age=None), LanguageModel())]
    assert named == ["avg_task_completion_time_ms", "tasks_per_second", "llm_call_latency_ms"]
    snapshot = queue(recent=[minute(_RANKING, "task.completed", 3, 2.0)])
    assert unmeasured_metrics(snapshot, LanguageModel(latency_ms=3.0)) == []
