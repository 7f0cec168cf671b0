"""Classes of workers in a decision: each has what its own tasks need, within its limit and that of all."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.scaling.rules import record as records
from app.scaling.rules.decision import ClassInputs, DecisionInputs, resolve
from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.idle import IdleSample
from app.scaling.rules.target import DecisionType, ScalingPolicy, ScalingSnapshot

_WAITS = [WaitingGroup(tasks=40, work_seconds=2400.0, oldest_age_seconds=0.0)]


def _snapshot(idle: int = 0, busy: int = 0, **changes: Any) -> ScalingSnapshot:
    return ScalingSnapshot(**{"idle": idle, "busy": busy, "waiting": [], "cpu": 0.9, **changes})


def _inputs(usual: ScalingSnapshot, *classes: ClassInputs, **policy: Any) -> DecisionInputs:
    weights = dict.fromkeys(AgentType, 1.0)
    return DecisionInputs(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        config_version=1,
        mode=Mode.PRODUCTION,
        policy=ScalingPolicy(**{"min_workers": 2, "max_workers": 10, **policy}),
        snapshot=usual,
        loads={},
        weights=weights,
        previous_weights=weights,
        first_new_id=UUID(int=1),
        classes=classes,
    )


def _class(name: str = "gpu", most: int = 100, **snapshot: Any) -> ClassInputs:
    return ClassInputs(name=name, max_workers=most, snapshot=_snapshot(**snapshot))


def test_a_class_grows_from_none_for_its_tasks_and_the_usual_pool_does_not() -> None:
    inputs = _inputs(_snapshot(idle=2), _class(waiting=_WAITS))
    decision = resolve(inputs)
    assert (decision.plan.start, decision.plan.target) == (0, 2)
    assert decision.class_plans["gpu"].start == 1
    assert (decision.current, decision.target, decision.decision_type) == (2, 3, DecisionType.SCALE_UP)
    assert any(reason.startswith("gpu: 40 tasks of about 2,400 s of work wait") for reason in decision.reasons)
    # The doubling cut it, so that another decision comes soon.
    assert decision.decide_again_after_seconds == inputs.policy.hurry_seconds
    text = records.inputs_text(inputs)
    again = records.replay(records.roster(inputs.members), text)
    assert again == records.canonical(records.outcome(decision, inputs))
    assert records.inputs_text(records.inputs_of(records.roster(inputs.members), text)) == text


def test_all_classes_and_the_usual_pool_together_keep_to_the_maximum() -> None:
    usual = _snapshot(busy=3, waiting=_WAITS)
    decision = resolve(_inputs(usual, _class("a", busy=3, waiting=_WAITS), _class("b", busy=2, waiting=_WAITS)))
    # Of ten two are left, which the usual pool takes: it comes first.
    assert decision.plan.target == 5
    assert [plan.start for plan in decision.class_plans.values()] == [0, 0]
    decision = resolve(
        _inputs(_snapshot(busy=3), _class("a", busy=3, waiting=_WAITS), _class("b", busy=2, waiting=_WAITS))
    )
    assert [plan.start for plan in decision.class_plans.values()] == [2, 0]
    assert decision.target == 10


def test_a_class_keeps_to_its_own_limit() -> None:
    decision = resolve(_inputs(_snapshot(busy=3), _class(most=3, busy=2, waiting=_WAITS)))
    assert decision.class_plans["gpu"].start == 1


def test_draining_workers_of_a_class_still_take_their_place() -> None:
    decision = resolve(_inputs(_snapshot(busy=3), _class(most=4, busy=2, draining=2, waiting=_WAITS)))
    assert decision.class_plans["gpu"].start == 0


def test_an_idle_class_shrinks_to_none_and_leaves_the_minimum_to_the_usual_pool() -> None:
    history = [IdleSample(seconds=300.0, idle=3)]
    decision = resolve(_inputs(_snapshot(idle=2), _class(idle=3, idle_history=history)))
    assert (decision.class_plans["gpu"].remove_idle, decision.plan.remove_idle) == (3, 0)
    assert decision.target == 2


def test_a_smaller_maximum_drains_classes_after_idle_ones_and_keeps_the_minimum() -> None:
    decision = resolve(_inputs(_snapshot(busy=2), _class(busy=4), max_workers=4))
    assert decision.plan.target == 2
    assert decision.class_plans["gpu"].drain_busy == 2


def test_a_decision_without_classes_is_written_as_ever() -> None:
    inputs = _inputs(_snapshot(idle=2))
    assert "classes" not in records.inputs_text(inputs)
    assert "classes" not in records.outcome(resolve(inputs), inputs)


def test_workers_of_a_class_are_kept_by_the_time_that_its_own_take_to_start() -> None:
    """One that a cluster starts after five minutes went after 10 s of idleness, as if it were back in 5 s."""
    history = [IdleSample(seconds=5.0, idle=1)] * 20
    usual = _snapshot(idle=1, busy=1, idle_history=history)
    slow, quick = (
        _class(name, idle=1, idle_history=history, start_seconds=s) for name, s in (("a", 300.0), ("b", 5.0))
    )
    plans = resolve(_inputs(usual, slow, quick)).class_plans
    assert {name: plan.target for name, plan in plans.items()} == {"a": 1, "b": 0}
