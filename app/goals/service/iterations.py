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
from app.goals.rules.goals import GoalAction, GoalDecision, GoalPolicy, GoalSnapshot, GoalState, Report
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
class Answer:
    """An iteration with its decision, and whether this call has made it."""

    iteration: Iteration
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A decision as it was recorded and as the rule makes it from the recorded inputs, as JSON text."""

    recorded: str
    replayed: str


async def report(connection: AsyncConnection, goal_id: str, account: IterationReport, configured: Iterations) -> Answer:
    """Record the next iteration and decide. The same account again gets the same answer.

    A goal that was stopped while an iteration was under way takes the account of it and stays stopped.
    Raises GoalNotFound, GoalStopped, IterationConflict.
    """
    goal = await service.locked(connection, goal_id)
    known = await iterations.read(connection, goal_id, account.number)
    if known is not None:
        if known.request_hash != _hash(account):
            raise IterationConflict(f"iteration {account.number} was reported with other numbers")
        return Answer(iteration=known, created=False)
    policy = rules.policy_of(goal.terms, configured)
    _refuse(goal, account, policy)
    await _add(connection, goal, account, policy)
    made = await iterations.read(connection, goal_id, account.number)
    assert made is not None, "it was written a moment ago"
    return Answer(iteration=made, created=True)


async def history(connection: AsyncConnection, goal_id: str, number: int) -> Sequence[Iteration]:
    """A recorded iteration, after those before it. Raises GoalNotFound, IterationNotFound."""
    await service.found(connection, goal_id)
    found = await iterations.up_to(connection, goal_id, number)
    if not found or found[-1].number != number:
        raise IterationNotFound
    return found


def replay(goal_id: str, history: Sequence[Iteration]) -> Replay:
    """Decide again on the last of these iterations. Takes tens of milliseconds where they are many."""
    inputs = json.loads(history[-1].inputs)
    snapshot = GoalSnapshot(
        goal_id=goal_id, reports=[_report(json.loads(row.report)) for row in history], usage=_usage(inputs["usage"])
    )
    decision = rules.decide(snapshot, _policy(inputs["policy"]))
    # A checkpoint keeps the numbers, and not the blanks between them.
    return Replay(recorded=_text(json.loads(history[-1].decision)), replayed=_text(_decided(decision, inputs)))


def _refuse(goal: Goal, account: IterationReport, policy: GoalPolicy) -> None:
    if goal.state is GoalState.STOPPED and _was_told_to_stop(goal):
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)
    if account.number != goal.iterations + 1:
        raise IterationConflict(
            f"iteration {goal.iterations + 1} is the next one to report, not {account.number}",
        )
    if goal.state is GoalState.STOPPED and account.number > policy.limits.max_iterations:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason)


def _was_told_to_stop(goal: Goal) -> bool:
    return (goal.last_decision or {}).get("decision") == GoalAction.STOP


async def _add(connection: AsyncConnection, goal: Goal, account: IterationReport, policy: GoalPolicy) -> None:
    spent, moment = await compute.of_goal(connection, goal.id), await now(connection)
    history = await iterations.up_to(connection, goal.id, goal.iterations)
    before: Mapping[str, Any] = json.loads(history[-1].inputs) if history else {}
    money = float(before.get("usage", {}).get("money", 0.0)) + account.money
    used = replace(service.usage(goal, spent, moment, money=money), iterations=account.number)
    said = _said(account, goal, spent, moment, before)
    inputs = {"usage": asdict(used), "by_agent": dict(sorted(spent.by_agent.items())), "at": moment.isoformat()}
    inputs |= {"policy": asdict(policy), "stopped": goal.reason if goal.state is GoalState.STOPPED else None}
    snapshot = GoalSnapshot(
        goal_id=goal.id, reports=[*(_report(json.loads(row.report)) for row in history), said], usage=used
    )
    decision = rules.decide(snapshot, policy)
    decided = _decided(decision, inputs)
    new = NewIteration(
        goal_id=goal.id,
        number=account.number,
        claimed_seconds=account.compute_seconds,
        tasks=account.tasks,
        request_hash=_hash(account),
        report=_text(asdict(said)),
        inputs=_text(inputs),
        decision=_text(decided),
    )
    await iterations.add(connection, new)
    await goals.tell(
        connection, GoalEvent.ITERATION, goal.id, {"iteration": account.number, "reason": decided["reason"]}
    )
    if decision.action is GoalAction.STOP and goal.state is not GoalState.STOPPED:
        await service.end(connection, replace(goal, iterations=account.number), decision.reason)


def _said(
    account: IterationReport, goal: Goal, spent: GoalCompute, moment: datetime, before: Mapping[str, Any]
) -> Report:
    """The account with what the service has measured itself since the iteration before."""
    agents: Mapping[str, float] = before.get("by_agent", {})
    since = datetime.fromisoformat(before["at"]) if before else goal.started_at
    spent_before = float(before["usage"]["compute"]["spent_seconds"]) if before else 0.0
    return Report(
        number=account.number,
        quality=account.quality,
        new_best=account.new_best,
        seconds=max(0.0, (moment - since).total_seconds()),
        compute_seconds=max(0.0, spent.total.spent_seconds - spent_before),
        exploration_seconds=_since(AgentType.GENERATION, spent, agents),
        exploitation_seconds=_since(AgentType.EVOLUTION, spent, agents),
        money=account.money,
    )


def _since(agent: AgentType, spent: GoalCompute, before: Mapping[str, float]) -> float:
    return max(0.0, spent.by_agent.get(agent, 0.0) - before.get(agent.value, 0.0))


def _decided(decision: GoalDecision, inputs: Mapping[str, Any]) -> dict[str, Any]:
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


def _report(said: Mapping[str, Any]) -> Report:
    new_best = Arm(said["new_best"]) if said["new_best"] else None
    return Report(**{**said, "quality": Quality(**said["quality"]), "new_best": new_best})


def _usage(used: Mapping[str, Any]) -> Usage:
    return Usage(**{**used, "compute": Compute(**used["compute"])})


def _policy(policy: Mapping[str, Any]) -> GoalPolicy:
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


def _hash(account: IterationReport) -> bytes:
    return hashlib.sha256(json.dumps(asdict(account), sort_keys=True).encode()).digest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
