"""Keeping goals within their limits between their reports, and their tasks out of the way while they are held."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import Iterations
from app.db import duties
from app.db.database import Database, now
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Compute
from app.goals.rules.goals import EnforcementAction, GoalState
from app.goals.service import goals as service
from app.goals.service import priors as prior_service
from app.goals.store import compute, goals
from app.goals.store.goals import Goal
from app.queue.rules.events import GoalEvent
from app.queue.rules.holds import Hold
from app.queue.store import cancel, holds
from app.queue.store.holds import Held, Meter
from app.queue.store.listing import Selection

RECAPTURE_DUTY = "look for strays of held goals"
# So many rows are changed in some 50 ms: no transaction that readers of events would have to wait for.
BATCH = 1000
# Longer than a transaction usually takes between the time that it writes into a row and its commit.
_OVERLAP = timedelta(seconds=20)
_MAX_BATCHES = 5


async def fold_compute(connection: AsyncConnection) -> dict[str, Any]:
    """Add what has ended to the compute of its goal."""
    folded = 0
    for _ in range(_MAX_BATCHES):
        bite = await compute.fold(connection)
        folded += bite.events
        if not bite.more:
            return {"events": folded}
    return {"events": folded, "behind": True}


async def enforce_budgets(connection: AsyncConnection) -> dict[str, Any]:
    """Stop goals whose time or compute is used up, and lease no more of those whose budget is committed."""
    limited, moment = await goals.read_limited(connection), await now(connection)
    if not limited:
        return {"stopped": [], "held": [], "let_through": 0}
    ids, rush = [goal.id for goal in limited], await prior_service.lease_capacity(connection)
    spent, meters = await compute.read_many(connection, ids), await holds.metered(connection, ids)
    new = [goal.id for goal in limited if goal.terms.compute_budget_seconds and not spent[goal.id].total.attempts]
    priors = await prior_service.expected_seconds(connection, new)
    stopped, held, let = [], [], 0
    for goal in limited:
        used, meter = service.usage(goal, spent[goal.id], moment), meters.get(goal.id)
        used = replace(used, compute=replace(used.compute, prior_seconds=priors.get(goal.id, 0.0)))
        # The bounds on iterations, which the configuration may set, are for reports.
        limits = rules.goal_policy(goal.terms, Iterations()).limits
        due = rules.enforce(used, limits, rush, is_metered=meter is not None)
        if due.measure is EnforcementAction.STOP:
            stopped += await _stop_goal(connection, goal.id, due.reason)
        elif due.measure is EnforcementAction.HOLD and goal.hold is None:
            held += await _hold_goal(connection, goal.id, due.reason)
        elif due.measure is EnforcementAction.METER:
            let += await _meter(connection, goal, meter, due.room, used.compute)
        elif due.measure is EnforcementAction.LEAVE and (meter is not None or goal.hold is Hold.BUDGET):
            await _allow(connection, goal.id)
    return {"stopped": stopped, "held": held, "let_through": let}


async def _meter(connection: AsyncConnection, goal: Goal, meter: Meter | None, room: int, used: Compute) -> int:
    """Let through what there is room for and was not let through before; what has just begun counts by then."""
    if goal.state is not GoalState.RUNNING or await goals.lock(connection, goal.id) is None:
        return 0
    attempts = used.attempts + used.running
    if meter is None:
        await holds.meter(connection, goal.id, attempts)
        return 0
    count = room - max(0, meter.allowed - attempts)
    return await holds.let_through(connection, goal.id, count) if meter.is_ready and count > 0 else 0


async def _allow(connection: AsyncConnection, goal_id: str) -> None:
    if await goals.lock(connection, goal_id) is not None:
        await holds.open_up(connection, goal_id, Hold.BUDGET)


async def _stop_goal(connection: AsyncConnection, goal_id: str, reason: str) -> list[str]:
    goal = await goals.lock(connection, goal_id)
    if goal is None or goal.state is GoalState.STOPPED:
        return []
    await service.stop_locked(connection, goal, reason)
    return [goal_id]


async def _hold_goal(connection: AsyncConnection, goal_id: str, reason: str) -> list[str]:
    goal = await goals.lock(connection, goal_id)
    if goal is None or goal.state is not GoalState.RUNNING or goal.hold is not None:
        return []
    await holds.close(connection, goal_id, Hold.BUDGET)
    await goals.append_event(connection, GoalEvent.HELD, goal_id, {"reason": reason})
    return [goal_id]


async def process_holds(database: Database) -> int:
    """Do all the work on holds that there is, a batch a transaction; returns how many batches."""
    batches = 0
    while await process_batch(database):
        batches += 1
    return batches


async def process_batch(database: Database) -> bool:
    """Do one batch of the work on one hold; False when there is none."""
    async with database.transaction() as connection:
        held = await holds.next_to_do(connection)
        if held is None:
            return False
        if not held.is_closed:
            await holds.bring_back(connection, held, BATCH)
        elif held.reason is Hold.STOPPED:
            await _cancel_tasks(connection, held)
        else:
            await holds.sweep(connection, held, BATCH)
        return True


async def recapture_tasks(connection: AsyncConnection) -> dict[str, Any]:
    """Find tasks of held goals that are in the way of claims: they came back from a worker, or were on their way in."""
    turn = (await duties.turns(connection, [RECAPTURE_DUTY])).get(RECAPTURE_DUTY)
    found = await holds.strays(connection, await now(connection) - (turn.ago if turn else timedelta(days=1)) - _OVERLAP)
    for goal_id in {stray.goal_id for stray in found if stray.reason == Hold.STOPPED}:
        await holds.again(connection, goal_id)
    await holds.take_away(connection, [stray.id for stray in found if stray.reason != Hold.STOPPED])
    return {"strays": len(found), "forgotten": await holds.forget(connection)}


async def _cancel_tasks(connection: AsyncConnection, held: Held) -> None:
    """Running tasks too: their workers hear of it with their next heartbeat or call."""
    ids = await holds.live(connection, held, BATCH)
    if ids:
        goal = await goals.read(connection, held.goal_id)
        reason = f"the research goal has stopped: {goal.reason}" if goal else "the research goal has stopped"
        await cancel.cancel(connection, ids, Selection(goal_id=held.goal_id), reason)
