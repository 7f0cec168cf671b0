"""What happens to research goals: created, paused, resumed, extended, stopped, and weighed."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Iterations
from app.admin.service import audit
from app.db.database import now
from app.goals.errors import GoalConflict, GoalNotFound, LimitsRefused
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Usage, notices
from app.goals.rules.goals import Constraints, GoalPolicy, GoalState
from app.goals.service import priors
from app.goals.store import compute, goals
from app.goals.store.compute import GoalCompute
from app.goals.store.goals import Goal, NewGoal
from app.queue.errors import GoalStopped
from app.queue.rules.events import GoalEvent
from app.queue.rules.holds import Hold
from app.queue.store import holds


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalRequest:
    """A goal that somebody wants."""

    id: str
    objective: str
    terms: Constraints
    weight: float | None
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalView:
    """A goal with what it has used by now, how it is judged, and what is nearly used up."""

    goal: Goal
    at: datetime
    usage: Usage
    compute: GoalCompute
    policy: GoalPolicy
    notices: list[str]


async def create(connection: AsyncConnection, order: GoalRequest) -> tuple[Goal, bool]:
    """Create a goal; the same order again gives the same goal, and False. Raises GoalConflict."""
    request_hash = _request_hash(order)
    new = NewGoal(
        id=order.id,
        objective=order.objective,
        terms=order.terms,
        weight=order.weight,
        created_by=order.by,
        request_hash=request_hash,
    )
    created = await goals.create(connection, new)
    goal = await read(connection, order.id)
    if goal.request_hash != request_hash:
        raise GoalConflict(f"the research goal {order.id} exists already with another body")
    if created:
        await goals.append_event(connection, GoalEvent.CREATED, order.id, {"objective": order.objective})
        await _audit(connection, GoalEvent.CREATED, order.by, None, goal, order.objective)
        await priors.meter_new_goal(connection, goal)
    return goal, created


async def read(connection: AsyncConnection, goal_id: str) -> Goal:
    """A goal that was created. Raises GoalNotFound."""
    goal = await goals.read(connection, goal_id)
    if goal is None:
        raise GoalNotFound
    return goal


async def view(connection: AsyncConnection, goal_id: str, configured: Iterations) -> GoalView:
    """A goal as it stands now. Raises GoalNotFound."""
    goal = await read(connection, goal_id)
    spent = await compute.read(connection, goal_id)
    moment, policy = await now(connection), rules.goal_policy(goal.terms, configured)
    used = usage(goal, spent, moment)
    return GoalView(
        goal=goal, at=moment, usage=used, compute=spent, policy=policy, notices=notices(policy.limits, used)
    )


def usage(goal: Goal, spent: GoalCompute, moment: datetime, *, money: float | None = None) -> Usage:
    """How much of its limits a goal has used at this moment; time stands still once it has ended."""
    assert goal.state is not None
    until = goal.ended_at or moment
    known = (goal.last_decision or {}).get("money_spent", 0.0)
    return Usage(
        iterations=goal.iterations,
        elapsed_seconds=max(0.0, (until - goal.started_at).total_seconds()),
        compute=spent.total,
        money=known if money is None else money,
    )


async def pause(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """From the commit on no task of the goal is leased; those that run go on. Raises GoalNotFound, GoalStopped."""

    async def carry_out(goal: Goal) -> None:
        await holds.close(connection, goal.id, Hold.PAUSED)

    return await _change_state(connection, goal_id, GoalEvent.PAUSED, reason, by, carry_out)


async def resume(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """Its tasks are leased again, in their old order. Raises GoalNotFound, GoalStopped.

    Where there is a compute budget, whoever keeps goals within their limits looks first how much of it is left.
    """

    async def carry_out(goal: Goal) -> None:
        if goal.terms.compute_budget_seconds is None:
            await holds.open_up(connection, goal.id, Hold.PAUSED)
        else:
            await holds.hand_over(connection, goal.id, Hold.PAUSED, Hold.BUDGET)

    return await _change_state(connection, goal_id, GoalEvent.RESUMED, reason, by, carry_out)


async def stop(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """End a goal for good: nothing of it is leased any more, and a moment later all its tasks are cancelled.

    Safe to repeat. Raises GoalNotFound.
    """
    goal = await lock(connection, goal_id)
    if goal.state is GoalState.STOPPED:
        return goal
    await stop_locked(connection, goal, reason)
    stopped = await read(connection, goal_id)
    await _audit(connection, GoalEvent.STOPPED, by, goal, stopped, reason)
    return stopped


async def stop_locked(connection: AsyncConnection, goal: Goal, reason: str) -> None:
    """Stop a goal that goes on and that we hold the lock of."""
    await goals.set_state(connection, goal.id, rules.next_state(goal.state, GoalEvent.STOPPED), reason)
    await holds.close(connection, goal.id, Hold.STOPPED)
    await goals.append_event(connection, GoalEvent.STOPPED, goal.id, {"reason": reason, "iterations": goal.iterations})


async def extend(connection: AsyncConnection, goal_id: str, terms: Constraints, by: str) -> Goal:
    """Give a goal other limits; what waits for a budget goes on at the next look if there is room for it now.

    Raises GoalNotFound, GoalStopped, LimitsRefused.
    """
    goal = await lock(connection, goal_id)
    _next_state(goal, GoalEvent.EXTENDED)
    given = {name: value for name, value in asdict(terms).items() if value is not None}
    _check_iteration_bounds(replace(goal.terms, **given), given)
    await goals.change_limits(connection, goal_id, terms)
    await goals.append_event(connection, GoalEvent.EXTENDED, goal_id, {"limits": given})
    extended = await read(connection, goal_id)
    await _audit(connection, GoalEvent.EXTENDED, by, goal, extended, "")
    return extended


def _check_iteration_bounds(terms: Constraints, given: Collection[str]) -> None:
    """What one body may not say, two may not either. Limits that stand already are no fault of other ones."""
    least, most = terms.min_iterations, terms.max_iterations
    if least is None or most is None or least <= most:
        return
    if "min_iterations" in given:
        raise LimitsRefused([("constraints.min_iterations", f"must not be above max_iterations, which is {most}")])
    if "max_iterations" in given:
        raise LimitsRefused([("constraints.max_iterations", f"must not be below min_iterations, which is {least}")])


async def set_weight(connection: AsyncConnection, goal_id: str, weight: float) -> None:
    """Give a goal its share of the lanes; processes that submit for it learn of it within a second."""
    await goals.set_weight(connection, goal_id, weight)


async def lock(connection: AsyncConnection, goal_id: str) -> Goal:
    """A goal that is ours until the transaction ends. Raises GoalNotFound."""
    goal = await goals.lock(connection, goal_id)
    if goal is None:
        raise GoalNotFound
    return goal


async def _change_state(
    connection: AsyncConnection,
    goal_id: str,
    move: GoalEvent,
    reason: str,
    by: str,
    carry_out: Callable[[Goal], Awaitable[None]],
) -> Goal:
    """Change the state of a goal; a goal that is in it already stays as it is, with the reason that was given first."""
    goal = await lock(connection, goal_id)
    state = _next_state(goal, move)
    if state is goal.state:
        return goal
    await goals.set_state(connection, goal_id, state, reason)
    await carry_out(goal)
    await goals.append_event(connection, move, goal_id, {"reason": reason})
    moved = await read(connection, goal_id)
    await _audit(connection, move, by, goal, moved, reason)
    return moved


async def _audit(
    connection: AsyncConnection, move: GoalEvent, by: str, before: Goal | None, after: Goal, reason: str
) -> None:
    """What somebody has done to a goal; what the rule does by itself is in its events."""
    known = None if before is None else _audit_fields(before)
    await audit.record(connection, move.value, by=by, before=known, after=_audit_fields(after), reason=reason)


def _audit_fields(goal: Goal) -> dict[str, Any]:
    terms = {name: value for name, value in asdict(goal.terms).items() if value is not None}
    return {"goal_id": goal.id, "state": goal.state.value, "constraints": terms}


def _next_state(goal: Goal, move: GoalEvent) -> GoalState:
    try:
        return rules.next_state(goal.state, move)
    except GoalStopped:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason) from None


def _request_hash(order: GoalRequest) -> bytes:
    body = [order.id, order.objective, asdict(order.terms), order.weight]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
