"""A decision in writing: read back it is the same, whatever the order of its fields, and with fields yet unknown."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.scaling.rules import record as records
from app.scaling.rules.allocation import Load
from app.scaling.rules.blocks import Blocks, WorkerGroup
from app.scaling.rules.decision import ClassInputs, DecisionInputs, ExcludedTasks, Member, resolve
from app.scaling.rules.demand import WaitingGroup
from app.scaling.rules.explanation import explain
from app.scaling.rules.idle import IdlePolicy, IdleSample
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot, in_mode
from app.workers.rules.hosts import WorkerLimit

_agents = st.sampled_from(AgentType)
_able = st.none() | st.frozensets(_agents)
_members = st.lists(
    st.builds(
        Member,
        worker_id=st.builds(WorkerId, st.uuids()),
        capabilities=_able,
        assigned_agent=st.none() | _agents,
        busy=st.booleans(),
        memory_gb=st.none() | st.floats(0.1, 64),
        cpu_cores=st.none() | st.floats(0.1, 64),
    ),
    max_size=12,
    unique_by=lambda member: member.worker_id,
).map(lambda found: sorted(found, key=lambda member: member.worker_id))
_groups = st.lists(
    st.builds(
        lambda tasks, one, age: WaitingGroup(tasks=tasks, work_seconds=tasks * one, oldest_age_seconds=age),
        st.integers(0, 500),
        st.floats(1, 1e3),
        st.floats(0, 1e4),
    ),
    max_size=4,
)
_worker_groups = st.lists(st.builds(WorkerGroup, st.integers(1, 4), st.integers(0, 4)), max_size=3)
_snapshots = st.builds(
    ScalingSnapshot,
    idle=st.integers(0, 9),
    busy=st.integers(0, 9),
    blocks=st.none() | st.builds(Blocks, removable=_worker_groups, smallest=st.integers(1, 4)),
    starting=st.lists(st.floats(0, 30), max_size=3),
    draining=st.integers(0, 3),
    waiting=st.none() | _groups,
    idle_history=st.lists(st.builds(IdleSample, seconds=st.floats(0, 300), idle=st.integers(0, 9)), max_size=3),
    cpu=st.none() | st.floats(0, 1),
    start_seconds=st.floats(0.1, 60),
    limits=st.lists(st.builds(WorkerLimit, resource=st.text(max_size=5), workers=st.integers(0, 20)), max_size=2),
    fixed_size=st.none() | st.integers(0, 9),
    running_mean_seconds=st.none() | st.floats(1, 1e3),
)
_classes = st.lists(
    st.builds(ClassInputs, name=st.text(max_size=5), max_workers=st.integers(0, 20), snapshot=_snapshots),
    max_size=2,
    unique_by=lambda each: each.name,
)
_shares = st.fixed_dictionaries({agent: st.floats(0.02, 1) for agent in AgentType})
_inputs = st.builds(
    DecisionInputs,
    at=st.datetimes(timezones=st.just(UTC)),
    config_version=st.integers(1, 100),
    mode=st.sampled_from(Mode),
    policy=st.builds(
        lambda least, more, mode: in_mode(ScalingPolicy(min_workers=least, max_workers=least + more), mode),
        st.integers(1, 9),
        st.integers(0, 30),
        st.sampled_from(Mode),
    ),
    snapshot=_snapshots,
    classes=_classes,
    members=_members,
    loads=st.dictionaries(
        _agents,
        st.builds(
            Load,
            work_seconds=st.floats(0, 1e5),
            oldest_age_seconds=st.floats(0, 1e4),
            waiting_seconds=st.none() | st.floats(0, 1e5),
        ),
    ),
    weights=_shares,
    previous_weights=_shares,
    weight_reasons=st.dictionaries(_agents, st.text(max_size=9)),
    excluded_tasks=st.lists(
        st.builds(ExcludedTasks, agent_type=_agents, tasks=st.integers(0, 9), reason=st.text(max_size=9)), max_size=2
    ),
    first_new_id=st.uuids(version=4),
    new_capabilities=st.frozensets(_agents, min_size=1).map(sorted),
    may_move=st.booleans(),
    provisions=st.booleans(),
    notes=st.lists(st.text(max_size=9), max_size=2),
)


def _reversed(value: Any) -> Any:
    """The same JSON value with the members of every object the other way round."""
    if isinstance(value, dict):
        return {name: _reversed(part) for name, part in reversed(value.items())}
    return [_reversed(part) for part in value] if isinstance(value, list) else value


def _text(inputs: DecisionInputs) -> str:
    return records.canonical(records.outcome(resolve(inputs), inputs))


@settings(max_examples=30)
@given(inputs=_inputs)
def test_what_was_kept_decides_the_same_to_the_byte(inputs: DecisionInputs) -> None:
    roster, text = records.roster(inputs.members), records.inputs_text(inputs)
    assert records.replay(roster, text) == _text(inputs)
    other = [json.dumps(_reversed(json.loads(part)), indent=1) for part in (roster, text)]
    assert records.replay(*other) == _text(inputs)


@settings(max_examples=30)
@given(inputs=_inputs)
def test_everybody_who_can_work_is_shown_with_an_agent(inputs: DecisionInputs) -> None:
    decision = resolve(inputs)
    shown = records.published_outcome(records.outcome(decision, inputs), records.roster(inputs.members))
    assignments = {str(worker_id): assignment for worker_id, assignment in decision.assignments.items()}
    assert {name: one["assigned_agent"] for name, one in shown["resource_allocation"].items()} == {
        name: f"{assignment.agent}_agent" for name, assignment in assignments.items()
    }
    for name, one in shown["resource_allocation"].items():
        assert (one["memory_gb"], one["cpu_cores"]) == (assignments[name].memory_gb, assignments[name].cpu_cores)


@settings(max_examples=30)
@given(inputs=_inputs)
def test_every_decision_can_be_explained(inputs: DecisionInputs) -> None:
    decision = resolve(inputs)
    words = explain(inputs, decision)
    assert words.reasons
    assert words.alternatives
    assert len(words.limits) == len(decision.plan.clamps)
    assert all(one.alternative and one.because for one in words.alternatives)


def _plain(**changes: Any) -> DecisionInputs:
    usual: dict[str, Any] = {
        "at": datetime(2026, 11, 24, tzinfo=UTC),
        "config_version": 1,
        "mode": Mode.PRODUCTION,
        "policy": ScalingPolicy(min_workers=2, max_workers=9),
        "snapshot": ScalingSnapshot(idle=1, busy=2, waiting=[], cpu=0.5),
        "loads": {},
        "weights": dict.fromkeys(AgentType, 1 / 6),
        "previous_weights": dict.fromkeys(AgentType, 1 / 6),
        "first_new_id": UUID(int=7),
    }
    return DecisionInputs(**(usual | changes))


@pytest.mark.parametrize("field", ["step", "quality_gains"])
def test_what_was_not_known_yet_has_its_default(field: str) -> None:
    inputs = _plain()
    kept = json.loads(records.inputs_text(inputs))
    del kept[field]
    assert records.replay(records.roster([]), json.dumps(kept)) == _text(inputs)


def test_a_decision_from_before_the_mean_of_tasks_at_work_was_kept_is_made_again_as_it_was() -> None:
    """By the rule of then 10 workers start 240 s of the 600 s of work within 24 s, and each new one 29 s."""
    waits = [WaitingGroup(tasks=60, work_seconds=600.0, oldest_age_seconds=0.0)]
    seen = ScalingSnapshot(idle=0, busy=10, waiting=waits, cpu=0.9)
    inputs = _plain(policy=ScalingPolicy(min_workers=2, max_workers=99), snapshot=seen)
    kept = json.loads(records.inputs_text(inputs))
    del kept["snapshot"]["running_mean_seconds"], kept["policy"]["deviations"]
    again = records.replay(records.roster([]), json.dumps(kept))
    assert again == _text(inputs)
    assert json.loads(again)["need"] == 10 + 13


@pytest.mark.parametrize(("is_former", "reason"), [(True, "base: 60 s of"), (False, "4.0 times the base")])
def test_a_decision_from_before_waiting_work_was_kept_apart_is_made_again_as_it_was(
    is_former: bool, reason: str
) -> None:
    member = Member(worker_id=WorkerId(UUID(int=1)), assigned_agent=AgentType.EVOLUTION, busy=True)
    inputs = _plain(
        members=[member],
        loads={AgentType.EVOLUTION: Load(work_seconds=60.0, waiting_seconds=0.0)},
        quality_gains={AgentType.EVOLUTION: 0.05},
    )
    kept = json.loads(records.inputs_text(inputs))
    if is_former:
        del kept["waiting"]
    again = json.loads(records.replay(records.roster([member]), json.dumps(kept)))
    assert again["allocation"]["sizes"]["evolution_agent"]["reason"].startswith(reason)


def test_the_former_version_reads_decisions_of_this_one() -> None:
    """While both run it answers for them too, and counts the columns of a load: with one more it told of none."""
    load = Load(work_seconds=60.0, oldest_age_seconds=5.0, waiting_seconds=20.0)
    kept = json.loads(records.inputs_text(_plain(loads={AgentType.EVOLUTION: load})))
    assert kept["loads"] == {"evolution": [60.0, 5.0]}


@pytest.mark.parametrize(("is_former", "target"), [(True, 6), (False, 12)])
def test_a_decision_from_before_ready_workers_were_kept_is_made_again_as_it_was(is_former: bool, target: int) -> None:
    history = [IdleSample(seconds=60.0, idle=6)] * 2
    seen = ScalingSnapshot(idle=6, busy=0, starting=(5.0,) * 6, waiting=[], idle_history=history, cpu=0.5)
    kept = json.loads(records.inputs_text(_plain(policy=ScalingPolicy(min_workers=6, max_workers=99), snapshot=seen)))
    if is_former:
        del kept["policy"]["keeps_ready"], kept["policy"]["size_step"]
    assert json.loads(records.replay(records.roster([]), json.dumps(kept)))["target_workers"] == target


@pytest.mark.parametrize(("is_former", "seconds"), [(True, 0.5), (False, 5.0)])
def test_a_recommendation_that_was_made_in_a_hurry_is_made_again_as_it_was(is_former: bool, seconds: float) -> None:
    waits = [WaitingGroup(tasks=60, work_seconds=600.0, oldest_age_seconds=0.0)]
    seen = ScalingSnapshot(idle=0, busy=1, waiting=waits, cpu=0.9)
    kept = json.loads(records.inputs_text(_plain(provisions=False, snapshot=seen)))
    if is_former:
        del kept["policy"]["awaits_others"]
    again = json.loads(records.replay(records.roster([]), json.dumps(kept)))
    assert again["decide_again_after_seconds"] == seconds


@pytest.mark.parametrize(("price", "target"), [(50.0, 2), (200.0, 10)])
def test_a_decision_is_made_again_at_the_price_of_then(price: float, target: int) -> None:
    policy = ScalingPolicy(min_workers=2, max_workers=99, idle=IdlePolicy(price=price))
    seen = ScalingSnapshot(idle=8, busy=2, waiting=[], idle_history=[IdleSample(seconds=5.0, idle=8)] * 2, cpu=0.5)
    text = records.inputs_text(_plain(policy=policy, snapshot=seen))
    assert json.loads(records.replay(records.roster([]), text))["target_workers"] == target


def test_a_decision_about_blocks_is_made_again_with_the_sizes_of_then() -> None:
    blocks = Blocks(removable=[WorkerGroup(4, 4), WorkerGroup(8, 1)], smallest=4)
    snapshot = ScalingSnapshot(idle=5, busy=7, waiting=(), cpu=0.5, blocks=blocks)
    inputs = _plain(snapshot=snapshot, policy=ScalingPolicy(min_workers=1, max_workers=10))
    read = records.inputs_of(records.roster([]), records.inputs_text(inputs))
    assert read.snapshot.blocks == blocks
    assert records.replay(records.roster([]), records.inputs_text(inputs)) == _text(inputs)


def test_what_is_not_known_any_more_is_passed_over() -> None:
    inputs = _plain()
    kept = json.loads(records.inputs_text(inputs))
    kept["policy"]["of_old"] = kept["policy"]["spare"]["of_old"] = kept["limits"]["of_old"] = kept["of_old"] = 1
    assert records.replay(records.roster([]), json.dumps(kept)) == _text(inputs)


def test_what_is_kept_of_a_worker_does_not_grow_with_its_id() -> None:
    """A thousand decisions share a roster: what each keeps of a worker is three letters."""
    members = [
        Member(worker_id=WorkerId(UUID(int=n)), assigned_agent=AgentType.RANKING, busy=True) for n in range(1000)
    ]
    inputs = _plain(members=members, may_move=False)
    assert len(records.inputs_text(inputs)) + len(_text(inputs)) < 6000
