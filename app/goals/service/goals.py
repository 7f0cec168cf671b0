"""Operations on research goals: create, read, pause, resume, stop, extend, and set the weight."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import IterationConfig
from app.admin.service import audit
from app.db.database import now
from app.goals.errors import GoalConflict, GoalNotFound, LimitsRefused
from app.goals.rules import budgets
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Usage
from app.goals.rules.goals import Constraints, GoalPolicy, GoalState
from app.goals.service import priors
from app.goals.store import compute, goals, iterations
from app.goals.store.compute import DetailedCompute, GoalCompute
from app.goals.store.goals import Goal, GoalRequest
from app.kernel.events import GoalEvent
from app.kernel.namespaces import shown_name
from app.kernel.text import NO_REASON
from app.queue.errors import GoalStopped
from app.queue.rules.holds import Hold
from app.queue.store import holds, meters


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalView:
    """A goal with its usage at a moment, its policy, and the limits that are nearly used up."""

    goal: Goal
    at: datetime
    usage: Usage
    compute: DetailedCompute
    policy: GoalPolicy
    notices: list[str]


async def create(connection: AsyncConnection, request: GoalRequest) -> tuple[Goal, bool]:
    """Create a goal, and True; the same request again gives the same goal, and False. Raises GoalConflict."""
    request_hash = _request_hash(request)
    is_new = await goals.create(connection, request, request_hash)
    goal = await read(connection, request.id)
    if goal.request_hash != request_hash:
        raise GoalConflict(f"the research goal {shown_name(request.id)} exists already with another body")
    if is_new:
        await goals.append_event(connection, GoalEvent.CREATED, goal.id, {"objective": goal.objective})
        # Without its objective, which is for those who may read content.
        _audit(connection, GoalEvent.CREATED, request.created_by, None, goal, None)
        await priors.meter_new_goal(connection, goal)
    return goal, is_new


async def read(connection: AsyncConnection, goal_id: str) -> Goal:
    """A goal that was created. Raises GoalNotFound."""
    goal = await goals.read(connection, goal_id)
    if goal is None:
        raise GoalNotFound
    return goal


async def lock(connection: AsyncConnection, goal_id: str) -> Goal:
    """Read a goal and lock it until the transaction ends. Raises GoalNotFound."""
    goal = await goals.lock(connection, goal_id)
    if goal is None:
        raise GoalNotFound
    return goal


async def view(connection: AsyncConnection, goal_id: str, config: IterationConfig) -> GoalView:
    """A goal with its usage at this moment. Raises GoalNotFound."""
    goal = await read(connection, goal_id)
    goal_compute = await compute.read(connection, goal_id)
    constraints = goal.constraints
    if constraints.improvement_unit is None:
        unit = await iterations.read_unit(connection, goal_id, goal.iterations)
        constraints = replace(constraints, improvement_unit=unit)
    moment, policy = await now(connection), rules.goal_policy(constraints, config)
    usage = usage_at(goal, goal_compute, moment)
    notices = budgets.notices(policy.limits, usage)
    return GoalView(goal=goal, at=moment, usage=usage, compute=goal_compute, policy=policy, notices=notices)


def usage_at(goal: Goal, goal_compute: GoalCompute, moment: datetime, *, money: float | None = None) -> Usage:
    """Usage of a goal at a moment, its time counted until its end if it has one.

    `money` is by default the sum that the last decision has recorded, with what calls of language models cost since.
    """
    assert goal.state is not None
    until = goal.ended_at or moment
    recorded_money = goal.money_base + goal.calls_usd - goal.money_since
    return Usage(
        iterations=goal.iterations,
        elapsed_seconds=max(0.0, (until - goal.started_at).total_seconds()),
        compute=goal_compute.total,
        money=recorded_money if money is None else money,
        tokens=goal.calls_tokens,
    )


async def pause(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """Lease no task of the goal from the commit on; running tasks go on. Raises GoalNotFound, GoalStopped."""

    async def carry_out(goal: Goal) -> None:
        await holds.close(connection, goal.id, Hold.PAUSED)

    return await _change_state(connection, goal_id, GoalEvent.PAUSED, reason, by, carry_out)


async def resume(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """Lease the tasks of a paused goal again, in their old order. Raises GoalNotFound, GoalStopped."""

    async def carry_out(goal: Goal) -> None:
        # Running tasks may have used up a budget during the pause.
        limits = goal.constraints
        if (limits.compute_budget_seconds, limits.money_budget, limits.token_budget) == (None, None, None):
            await holds.reopen(connection, goal.id, Hold.PAUSED)
        else:
            await holds.change_reason(connection, goal.id, Hold.PAUSED, Hold.BUDGET)
            await _leave_to_budget(connection, goal.id)

    return await _change_state(connection, goal_id, GoalEvent.RESUMED, reason, by, carry_out)


async def stop(connection: AsyncConnection, goal_id: str, reason: str, by: str) -> Goal:
    """End a goal for good: none of its tasks is leased any more, and soon after all of them are canceled.

    Safe to repeat. Raises GoalNotFound.
    """
    goal = await lock(connection, goal_id)
    if goal.state is GoalState.STOPPED:
        return goal
    await stop_locked(connection, goal, reason)
    stopped_goal = await read(connection, goal_id)
    _audit(connection, GoalEvent.STOPPED, by, goal, stopped_goal, reason)
    return stopped_goal


async def stop_locked(connection: AsyncConnection, goal: Goal, reason: str) -> None:
    """Stop a live goal; the caller holds its lock."""
    await goals.set_state(connection, goal.id, rules.next_state(goal.state, GoalEvent.STOPPED), reason or NO_REASON)
    # No task is canceled here, because there may be a million: claims skip them from the commit on, and the duty on
    # holds cancels them in batches.
    await holds.close(connection, goal.id, Hold.STOPPED)
    await goals.append_event(connection, GoalEvent.STOPPED, goal.id, {"reason": reason, "iterations": goal.iterations})


async def set_weight(connection: AsyncConnection, goal_id: str, weight: float, by: str) -> None:
    """Weigh a goal for the tasks that are submitted from now on; it need not exist yet."""
    old_weight = await goals.set_weight(connection, goal_id, weight)
    if weight != old_weight:
        old_state, new_state = {"weight": old_weight}, {"goal_id": goal_id, "weight": weight}
        audit.record(connection, "goal.weight", by=by, old_state=old_state, new_state=new_state)


async def extend(
    connection: AsyncConnection, goal_id: str, constraints: Constraints, by: str, reason: str | None = None
) -> Goal:
    """Set those limits that are not None; tasks held for the budget go on after the next check if there is room now.

    Safe to repeat: limits that the goal has already change nothing, and are told nowhere. Raises GoalNotFound,
    GoalStopped, LimitsRefused.
    """
    goal = await lock(connection, goal_id)
    _next_state(goal, GoalEvent.EXTENDED)
    changes = {name: value for name, value in asdict(constraints).items() if value is not None}
    extended = replace(goal.constraints, **changes)
    if extended == goal.constraints:
        return goal
    _check_iteration_bounds(extended, changes)
    await _check_use(connection, goal, changes)
    await goals.change_limits(connection, goal_id, constraints)
    if goal.hold is Hold.BUDGET:
        await _leave_to_budget(connection, goal_id)
    await goals.append_event(connection, GoalEvent.EXTENDED, goal_id, {"limits": changes})
    extended_goal = await read(connection, goal_id)
    _audit(connection, GoalEvent.EXTENDED, by, goal, extended_goal, reason)
    return extended_goal


async def _leave_to_budget(connection: AsyncConnection, goal_id: str) -> None:
    """Meter a locked goal that its budget holds, without room for any task, until the next check has decided.

    A hold that goes on then begins anew and is told of: its client was told last that the goal goes on.
    """
    total = (await compute.read(connection, goal_id)).total
    # What came back from workers meanwhile is set aside first, as nothing else would keep it from being leased.
    await holds.restart_sweep(connection, goal_id)
    await meters.create(connection, goal_id, total.attempts + total.running)


async def _change_state(
    connection: AsyncConnection,
    goal_id: str,
    event: GoalEvent,
    reason: str,
    by: str,
    carry_out: Callable[[Goal], Awaitable[None]],
) -> Goal:
    """Change the state of a goal; one that is already in that state stays as it is, with its first reason."""
    goal = await lock(connection, goal_id)
    state = _next_state(goal, event)
    if state is goal.state:
        return goal
    await goals.set_state(connection, goal_id, state, reason or NO_REASON)
    # The goal is locked before its hold, as everywhere: see the lock order of holds.
    await carry_out(goal)
    await goals.append_event(connection, event, goal_id, {"reason": reason})
    moved_goal = await read(connection, goal_id)
    _audit(connection, event, by, goal, moved_goal, reason)
    return moved_goal


def _audit(
    connection: AsyncConnection, event: GoalEvent, by: str, previous: Goal | None, current: Goal, reason: str | None
) -> None:
    """Record what a person did to a goal; what the rules do by themselves is in its events only."""
    old_state = _audit_fields(previous) if previous else None
    new_state = _audit_fields(current)
    audit.record(connection, event.value, by=by, old_state=old_state, new_state=new_state, reason=reason)


def _audit_fields(goal: Goal) -> dict[str, Any]:
    constraints = {name: value for name, value in asdict(goal.constraints).items() if value is not None}
    return {"goal_id": goal.id, "state": goal.state.value, "weight": goal.weight, "constraints": constraints}


def _next_state(goal: Goal, event: GoalEvent) -> GoalState:
    try:
        return rules.next_state(goal.state, event)
    except GoalStopped:
        raise GoalStopped(f"the research goal has stopped: {goal.reason}", reason=goal.reason) from None


def _check_iteration_bounds(constraints: Constraints, changes: Collection[str]) -> None:
    """Refuse bounds on iterations that contradict each other, as in one body. Raises LimitsRefused.

    Bounds that contradicted each other before are no reason to refuse a change of other limits.
    """
    minimum, maximum = constraints.min_iterations, constraints.max_iterations
    if minimum is None or maximum is None or minimum <= maximum:
        return
    if "min_iterations" in changes:
        raise LimitsRefused([("constraints.min_iterations", f"must not be above max_iterations, which is {maximum}")])
    if "max_iterations" in changes:
        raise LimitsRefused([("constraints.max_iterations", f"must not be below min_iterations, which is {minimum}")])


async def _check_use(connection: AsyncConnection, goal: Goal, changes: Mapping[str, Any]) -> None:
    """Refuse to lower a limit to what is used of it, which would end the goal for good. Raises LimitsRefused."""
    usage = usage_at(goal, await compute.read(connection, goal.id), await now(connection))
    # Money and tokens hold a goal until it is extended: they end nothing.
    used = {
        "time_limit_seconds": usage.elapsed_seconds,
        "compute_budget_seconds": usage.compute.spent_seconds + usage.compute.running_seconds,
        "max_iterations": usage.iterations,
    }
    refused = [
        (f"constraints.{name}", f"must be above {used[name]:.10g}, which is used already; to end the goal, stop it")
        for name, limit in changes.items()
        if name in used and limit <= used[name] and _is_lower(limit, getattr(goal.constraints, name))
    ]
    if refused:
        raise LimitsRefused(refused)


def _is_lower(limit: float, former: float | None) -> bool:
    return former is None or limit < former


def _request_hash(request: GoalRequest) -> bytes:
    constraints = asdict(request.constraints)
    if constraints["token_budget"] is None:
        # As it was before there were any, so that requests from then are recognized.
        del constraints["token_budget"]
    body = [request.id, request.objective, constraints, request.weight]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
