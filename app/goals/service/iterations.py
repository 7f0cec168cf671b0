"""Iterations of research goals: reported, decided on, and decided on again from what was known."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Iterations
from app.db.database import now
from app.goals.errors import IterationConflict, IterationNotFound
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Compute, Limits, Usage
from app.goals.rules.exploration import Arm, ExplorationPolicy
from app.goals.rules.goals import GoalAction, GoalDecision, GoalPolicy, GoalSnapshot, GoalState, MeasuredIteration
from app.goals.rules.stopping import Quality, StoppingPolicy, StoppingRule, Unit
from app.goals.service import goals as service
from app.goals.store import compute, goals, iterations
from app.goals.store.compute import GoalCompute
from app.goals.store.goals import Goal
from app.goals.store.iterations import Iteration, NewIteration
from app.kernel.agents import AgentType
from app.queue.errors import GoalStopped
from app.queue.rules.events import GoalEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """An iteration in the words of the client."""

    number: int
    quality: Quality
    new_best: Arm | None = None
    tasks: int | None = None
    compute_seconds: float | None = None
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """An iteration with its decision, and whether this call has made it."""

    iteration: Iteration
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A decision as it was recorded and as the rule makes it from the recorded inputs, as JSON text."""

    recorded: str
    replayed: str


async def record(
    connection: AsyncConnection, goal_id: str, account: IterationReport, configured: Iterations
) -> ReportResult:
    """Record the next iteration and decide. The same account again gets the same answer.

    A goal that was stopped while an iteration was under way takes the account of it and stays stopped.
    Raises GoalNotFound, GoalStopped, IterationConflict.
    """
    goal = await service.lock(connection, goal_id)
    known = await iterations.read(connection, goal_id, account.number)
    if known is not None:
        if known.request_hash != _request_hash(account):
            raise IterationConflict(f"iteration {account.number} was reported with other numbers")
        return ReportResult(iteration=known, created=False)
    policy = rules.goal_policy(goal.terms, configured)
    _check_acceptable(goal, account, policy)
    await _decide_and_store(connection, goal, account, policy)
    made = await iterations.read(connection, goal_id, account.number)
    assert made is not None, "it was written a moment ago"
    return ReportResult(iteration=made, created=True)


async def history(connection: AsyncConnection, goal_id: str, number: int) -> Sequence[Iteration]:
    """A recorded iteration, after those before it. Raises GoalNotFound, IterationNotFound."""
    await service.read(connection, goal_id)
    found = await iterations.read_first(connection, goal_id, number)
    if not found or found[-1].number != number:
        raise IterationNotFound
    return found


def replay(goal_id: str, history: Sequence[Iteration]) -> Replay:
    """Decide again on the last of these iterations. Takes tens of milliseconds where they are many."""
    inputs = json.loads(history[-1].inputs)
    snapshot = GoalSnapshot(
        goal_id=goal_id,
        reports=[_parse_iteration(json.loads(row.report)) for row in history],
        usage=_parse_usage(inputs["usage"]),
    )
    decision = rules.decide(snapshot, _parse_policy(inputs["policy"]))
    # A checkpoint keeps the numbers, and not the blanks between them.
    return Replay(
        recorded=_to_json(json.loads(history[-1].decision)), replayed=_to_json(_decision_fields(decision, inputs))
    )


def _check_acceptable(goal: Goal, account: IterationReport, policy: GoalPolicy) -> None:
    if goal.state is GoalState.STOPPED and _stopped_by_decision(goal):
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)
    if account.number != goal.iterations + 1:
        raise IterationConflict(
            f"iteration {goal.iterations + 1} is the next one to report, not {account.number}",
        )
    if goal.state is GoalState.STOPPED and account.number > policy.limits.max_iterations:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)


def _stopped_by_decision(goal: Goal) -> bool:
    return (goal.last_decision or {}).get("decision") == GoalAction.STOP


async def _decide_and_store(
    connection: AsyncConnection, goal: Goal, account: IterationReport, policy: GoalPolicy
) -> None:
    spent, moment = await compute.read(connection, goal.id), await now(connection)
    history = await iterations.read_first(connection, goal.id, goal.iterations)
    before: Mapping[str, Any] = json.loads(history[-1].inputs) if history else {}
    money = float(before.get("usage", {}).get("money", 0.0)) + account.money
    used = replace(service.usage(goal, spent, moment, money=money), iterations=account.number)
    said = _measure(account, goal, spent, moment, before)
    inputs = {"usage": asdict(used), "by_agent": dict(sorted(spent.by_agent.items())), "at": moment.isoformat()}
    inputs |= {"policy": asdict(policy), "stopped": goal.reason if goal.state is GoalState.STOPPED else None}
    snapshot = GoalSnapshot(
        goal_id=goal.id, reports=[*(_parse_iteration(json.loads(row.report)) for row in history), said], usage=used
    )
    decision = rules.decide(snapshot, policy)
    decided = _decision_fields(decision, inputs)
    new = NewIteration(
        goal_id=goal.id,
        number=account.number,
        claimed_seconds=account.compute_seconds,
        tasks=account.tasks,
        request_hash=_request_hash(account),
        report=_to_json(asdict(said)),
        inputs=_to_json(inputs),
        decision=_to_json(decided),
    )
    await iterations.add(connection, new)
    await goals.append_event(
        connection, GoalEvent.ITERATION, goal.id, {"iteration": account.number, "reason": decided["reason"]}
    )
    if decision.action is GoalAction.STOP and goal.state is not GoalState.STOPPED:
        await service.stop_locked(connection, replace(goal, iterations=account.number), decision.reason)


def _measure(
    account: IterationReport, goal: Goal, spent: GoalCompute, moment: datetime, before: Mapping[str, Any]
) -> MeasuredIteration:
    """The account with what the service has measured itself since the iteration before."""
    agents: Mapping[str, float] = before.get("by_agent", {})
    since = datetime.fromisoformat(before["at"]) if before else goal.started_at
    spent_before = float(before["usage"]["compute"]["spent_seconds"]) if before else 0.0
    return MeasuredIteration(
        number=account.number,
        quality=account.quality,
        new_best=account.new_best,
        seconds=max(0.0, (moment - since).total_seconds()),
        compute_seconds=max(0.0, spent.total.spent_seconds - spent_before),
        exploration_seconds=_agent_seconds(AgentType.GENERATION, spent, agents),
        exploitation_seconds=_agent_seconds(AgentType.EVOLUTION, spent, agents),
        money=account.money,
    )


def _agent_seconds(agent: AgentType, spent: GoalCompute, before: Mapping[str, float]) -> float:
    return max(0.0, spent.by_agent.get(agent, 0.0) - before.get(agent.value, 0.0))


def _decision_fields(decision: GoalDecision, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The decision as it is kept. A goal that was stopped from outside stays so, whatever the rule says."""
    stopped = inputs["stopped"]
    used: Mapping[str, Any] = inputs["usage"]
    return {
        "decision": GoalAction.STOP.value if stopped else decision.action.value,
        "reason": stopped or decision.reason,
        "exploration_share": decision.exploration_share,
        "exploration_reason": decision.exploration_reason,
        "next_compute_seconds": decision.next_compute_seconds,
        "improvement": decision.gain,
        "improvement_per_compute_second": decision.gain_per_compute_second,
        "iterations_without_improvement": decision.fruitless,
        "notices": list(decision.notices),
        "compute_seconds": used["compute"]["spent_seconds"],
        "elapsed_seconds": used["elapsed_seconds"],
        "money_spent": used["money"],
        "draws": [list(pair) for pair in decision.draws],
    }


def _parse_iteration(said: Mapping[str, Any]) -> MeasuredIteration:
    new_best = Arm(said["new_best"]) if said["new_best"] else None
    return MeasuredIteration(**{**said, "quality": Quality(**said["quality"]), "new_best": new_best})


def _parse_usage(used: Mapping[str, Any]) -> Usage:
    return Usage(**{**used, "compute": Compute(**used["compute"])})


def _parse_policy(policy: Mapping[str, Any]) -> GoalPolicy:
    stopping = {
        **policy["stopping"],
        "rule": StoppingRule(policy["stopping"]["rule"]),
        "unit": Unit(policy["stopping"]["unit"]),
    }
    return GoalPolicy(
        stopping=StoppingPolicy(**stopping),
        limits=Limits(**policy["limits"]),
        exploration=ExplorationPolicy(**policy["exploration"]),
    )


def _request_hash(account: IterationReport) -> bytes:
    return hashlib.sha256(json.dumps(asdict(account), sort_keys=True).encode()).digest()


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
