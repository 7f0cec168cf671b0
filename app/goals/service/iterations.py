"""IterationConfig of research goals: record and decide, and replay a decision from its recorded inputs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import IterationConfig
from app.admin.service import audit
from app.db.database import now
from app.goals.errors import IterationConflict, IterationNotFound
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Compute, Limits, Usage
from app.goals.rules.exploration import Arm, ExplorationPolicy
from app.goals.rules.goals import GoalAction, GoalDecision, GoalPolicy, GoalSnapshot, GoalState, MeasuredIteration
from app.goals.rules.stopping import Quality, StoppingPolicy, StoppingRule, Unit
from app.goals.service import goals as service
from app.goals.store import compute, goals, iterations
from app.goals.store.compute import DetailedCompute
from app.goals.store.goals import Goal
from app.goals.store.iterations import Iteration, NewIteration
from app.kernel.agents import AgentType
from app.kernel.events import GoalEvent
from app.queue.errors import GoalStopped


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """An iteration as the client reports it."""

    number: int
    quality: Quality
    new_best: Arm | None = None
    tasks: int | None = None
    compute_seconds: float | None = None
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedIteration:
    """A stored iteration, and whether this call has stored it."""

    iteration: Iteration
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A decision as it was recorded, and as the rule makes it from the recorded inputs; both as JSON text."""

    recorded_json: str
    replayed_json: str


async def record(
    connection: AsyncConnection,
    goal_id: str,
    report: IterationReport,
    config: IterationConfig,
    *,
    by: str | None = None,
) -> RecordedIteration:
    """Record the next iteration and decide on it; the same report again gets the same answer.

    The report of the key `by` is audited.
    A goal that was stopped while an iteration was under way still accepts its report, and stays stopped.
    Raises GoalNotFound, GoalStopped, IterationConflict.
    """
    # The lock makes two reports of one goal follow each other, so that iteration numbers have no gaps and no twins.
    goal = await service.lock(connection, goal_id)
    iteration = await iterations.read(connection, goal_id, report.number)
    if iteration is not None:
        if iteration.request_hash != _request_hash(report):
            raise IterationConflict(f"iteration {report.number} was reported with other numbers")
        return RecordedIteration(iteration=iteration, is_new=False)
    _check_acceptable(goal, report, config)
    await _decide_and_store(connection, goal, report, config)
    iteration = await iterations.read(connection, goal_id, report.number)
    assert iteration is not None, "it was written a moment ago"
    if by is not None:
        reported = {"goal_id": goal_id, "iteration": report.number}
        audit.record(connection, GoalEvent.ITERATION.value, by=by, new_state=reported)
    return RecordedIteration(iteration=iteration, is_new=True)


async def read_history(connection: AsyncConnection, goal_id: str, number: int) -> Sequence[Iteration]:
    """Iterations up to and including `number`, in order. Raises GoalNotFound, IterationNotFound."""
    await service.read(connection, goal_id)
    history = await iterations.read_up_to(connection, goal_id, number)
    if not history or history[-1].number != number:
        raise IterationNotFound
    return history


def replay(goal_id: str, history: Sequence[Iteration]) -> Replay:
    """Decide again on the last of these iterations. Takes tens of milliseconds where there are many."""
    inputs = json.loads(history[-1].inputs)
    snapshot = GoalSnapshot(
        goal_id=goal_id,
        iterations=[_parse_iteration(json.loads(row.report)) for row in history],
        usage=Usage(**{**inputs["usage"], "compute": Compute(**inputs["usage"]["compute"])}),
    )
    decision = rules.decide(snapshot, _parse_policy(inputs["policy"]))
    # The recorded text is written anew, because a checkpoint preserves the numbers but not the blanks between them.
    return Replay(
        recorded_json=_to_json(json.loads(history[-1].decision)),
        replayed_json=_to_json(_decision_fields(decision, inputs)),
    )


def _check_acceptable(goal: Goal, report: IterationReport, config: IterationConfig) -> None:
    """Raise GoalStopped or IterationConflict where the report of a new iteration must be refused."""
    last_action = (goal.last_decision or {}).get("decision")
    if goal.state is GoalState.STOPPED and last_action == GoalAction.STOP:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)
    if report.number != goal.iterations + 1:
        raise IterationConflict(f"iteration {goal.iterations + 1} is the next one to report, not {report.number}")
    # Stopped from outside: the iteration under way is still accepted, unless it was one too many anyway.
    limits = rules.goal_policy(goal.constraints, config).limits
    if goal.state is GoalState.STOPPED and report.number > limits.max_iterations:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)


async def _decide_and_store(
    connection: AsyncConnection, goal: Goal, report: IterationReport, config: IterationConfig
) -> None:
    goal_compute, moment = await compute.read(connection, goal.id), await now(connection)
    history = await iterations.read_up_to(connection, goal.id, goal.iterations)
    previous: Mapping[str, Any] = json.loads(history[-1].inputs) if history else {}
    # Clients may report what their calls have cost, or leave it out, or know of less: nothing is counted twice.
    iteration_money = max(report.money, goal.calls_usd - goal.money_since)
    money = float(previous.get("usage", {}).get("money", 0.0)) + iteration_money
    usage = replace(service.usage_at(goal, goal_compute, moment, money=money), iterations=report.number)
    measurement = _measure(replace(report, money=iteration_money), goal, goal_compute, moment, previous)
    all_iterations = [*(_parse_iteration(json.loads(row.report)) for row in history), measurement]
    policy = rules.goal_policy(goal.constraints, config, all_iterations)
    # Everything the decision depends on is stored with it, so that a replay needs nothing else.
    inputs = {"usage": asdict(usage), "by_agent": dict(sorted(goal_compute.by_agent.items())), "at": moment.isoformat()}
    inputs |= {"policy": asdict(policy), "stopped": goal.reason if goal.state is GoalState.STOPPED else None}
    decision = rules.decide(GoalSnapshot(goal_id=goal.id, iterations=all_iterations, usage=usage), policy)
    fields = _decision_fields(decision, inputs)
    new = NewIteration(
        goal_id=goal.id,
        number=report.number,
        claimed_seconds=report.compute_seconds,
        tasks=report.tasks,
        request_hash=_request_hash(report),
        report=_to_json(asdict(measurement)),
        inputs=_to_json(inputs),
        decision=_to_json(fields),
    )
    await iterations.add(connection, new)
    await goals.note_money(connection, goal.id, money, goal.calls_usd)
    detail = {"iteration": report.number, "reason": fields["reason"]}
    await goals.append_event(connection, GoalEvent.ITERATION, goal.id, detail)
    if decision.action is GoalAction.STOP and goal.state is not GoalState.STOPPED:
        await service.stop_locked(connection, replace(goal, iterations=report.number), decision.reason)


def _measure(
    report: IterationReport, goal: Goal, goal_compute: DetailedCompute, moment: datetime, previous: Mapping[str, Any]
) -> MeasuredIteration:
    """The report completed by what the service has measured since `previous`, the inputs of the last decision."""
    agents: Mapping[str, float] = previous.get("by_agent", {})
    since = datetime.fromisoformat(previous["at"]) if previous else goal.started_at
    # Differences against the recorded inputs, not sums of events: what ended between two reports counts exactly once.
    previous_seconds = float(previous["usage"]["compute"]["spent_seconds"]) if previous else 0.0
    return MeasuredIteration(
        number=report.number,
        quality=report.quality,
        new_best=report.new_best,
        seconds=max(0.0, (moment - since).total_seconds()),
        compute_seconds=max(0.0, goal_compute.total.spent_seconds - previous_seconds),
        exploration_seconds=_seconds_since(AgentType.GENERATION, goal_compute, agents),
        exploitation_seconds=_seconds_since(AgentType.EVOLUTION, goal_compute, agents),
        money=report.money,
    )


def _seconds_since(agent: AgentType, goal_compute: DetailedCompute, previous: Mapping[str, float]) -> float:
    return max(0.0, goal_compute.by_agent.get(agent, 0.0) - previous.get(agent.value, 0.0))


def _decision_fields(decision: GoalDecision, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The decision as it is stored. A goal that was stopped from outside stays so, whatever the rule says."""
    stop_reason = inputs["stopped"]
    usage: Mapping[str, Any] = inputs["usage"]
    return {
        "decision": GoalAction.STOP.value if stop_reason else decision.action.value,
        "reason": stop_reason or decision.reason,
        "exploration_share": decision.exploration_share,
        "exploration_reason": decision.exploration_reason,
        "next_compute_seconds": decision.next_compute_seconds,
        "improvement": decision.gain,
        "improvement_per_compute_second": decision.gain_per_compute_second,
        "iterations_without_improvement": decision.stalled_iterations,
        "notices": list(decision.notices),
        "compute_seconds": usage["compute"]["spent_seconds"],
        "elapsed_seconds": usage["elapsed_seconds"],
        "money_spent": usage["money"],
        "draws": [list(pair) for pair in decision.draws],
    }


def _parse_iteration(fields: Mapping[str, Any]) -> MeasuredIteration:
    new_best = Arm(fields["new_best"]) if fields["new_best"] else None
    return MeasuredIteration(**{**fields, "quality": Quality(**fields["quality"]), "new_best": new_best})


def _parse_policy(policy: Mapping[str, Any]) -> GoalPolicy:
    stopping = policy["stopping"]
    enums = {"rule": StoppingRule(stopping["rule"]), "unit": Unit(stopping["unit"])}
    return GoalPolicy(
        stopping=StoppingPolicy(**{**stopping, **enums}),
        limits=Limits(**policy["limits"]),
        exploration=ExplorationPolicy(**policy["exploration"]),
    )


def _request_hash(report: IterationReport) -> bytes:
    return hashlib.sha256(json.dumps(asdict(report), sort_keys=True).encode()).digest()


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
