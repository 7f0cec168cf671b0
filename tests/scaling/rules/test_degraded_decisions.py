"""What a decision makes of a step of degradation: workers for what is left, nobody above the base, and no judgement."""

from datetime import UTC, datetime
from uuid import UUID

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS
from app.scaling.rules import record as records
from app.scaling.rules.allocation import Load
from app.scaling.rules.decision import DecisionInputs, Member, resolve
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot


def inputs(step: DegradationStep) -> DecisionInputs:
    """Twenty workers without an agent yet, and the same work for generation and ranking."""
    members = [Member(worker_id=WorkerId(UUID(int=n)), assigned_agent=None, busy=True) for n in range(20)]
    load = Load(work_seconds=1000.0, oldest_age_seconds=5.0)
    return DecisionInputs(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        config_version=1,
        mode=Mode.PRODUCTION,
        policy=ScalingPolicy(min_workers=20, max_workers=20),
        snapshot=ScalingSnapshot(idle=0, busy=20, waiting=[], cpu=None),
        members=members,
        loads={AgentType.GENERATION: load, AgentType.RANKING: load},
        weights=EQUAL_WEIGHTS,
        previous_weights=EQUAL_WEIGHTS,
        first_new_id=UUID(int=100),
        step=step,
    )


def seats(step: DegradationStep) -> dict[AgentType, int]:
    assignments = resolve(inputs(step)).assignments.values()
    return {
        agent: sum(assignment.agent is agent for assignment in assignments)
        for agent in (AgentType.GENERATION, AgentType.RANKING)
    }


def test_suspended_agents_keep_few_workers_and_some() -> None:
    assert seats(DegradationStep.NONE) == {AgentType.GENERATION: 10, AgentType.RANKING: 10}
    assert seats(DegradationStep.BATCHES) == seats(DegradationStep.NONE)
    few = seats(DegradationStep.ESSENTIALS)
    assert few[AgentType.GENERATION] >= 18
    assert few[AgentType.RANKING] >= 1


def test_a_suspension_is_no_adjustment_of_a_weight() -> None:
    assert resolve(inputs(DegradationStep.ESSENTIALS)).weight_changes == {}


def test_it_replays() -> None:
    wanted = inputs(DegradationStep.ESSENTIALS)
    roster, text = records.roster(wanted.members), records.inputs_text(wanted)
    assert records.replay(roster, text) == records.canonical(records.outcome(resolve(wanted), wanted))
    assert records.inputs_of(roster, text.replace('"step":4,', "")).step is DegradationStep.NONE
