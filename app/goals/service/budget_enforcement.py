"""Duties that keep goals within their limits between reports, and set their tasks aside while a hold lasts."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import IterationConfig
from app.db import duties, folds
from app.db.database import Database, now
from app.goals.rules import budgets
from app.goals.rules import goals as rules
from app.goals.rules.budgets import Compute
from app.goals.rules.goals import EnforcementAction, GoalState
from app.goals.service import goals as service
from app.goals.service import priors
from app.goals.store import compute, goals
from app.goals.store.compute import RunningAttempt
from app.goals.store.goals import Goal
from app.kernel import resources
from app.kernel.events import GoalEvent
from app.queue.rules.holds import Hold
from app.queue.service.leases import give_back
from app.queue.store import attempts, cancel, holds, meters, resource_classes
from app.queue.store.holds import LockedHold
from app.queue.store.listing import Selection
from app.queue.store.meters import Meter, Served
from app.workers.store import offers as worker_offers

FOLD_DUTY = "fold goals"
RECAPTURE_DUTY = "look for strays of held goals"
# So many rows are changed in some 50 ms: readers of events wait for the oldest open transaction that has written.
BATCH = 1000
# Longer than a transaction usually takes from writing a row to its commit.
_COMMIT_DELAY = timedelta(seconds=20)
# So many goals are judged in some 10 ms of the event loop; then others have a turn.
_SHARE = 200


class _Room(NamedTuple):
    """Number of tasks that may be let through, and of those that may be as well where a present worker can run them.

    The latter take the place of tasks that wait for workers which are not there.
    """

    tasks: int = 0
    spare: int = 0


_NO_ROOM = _Room()


async def fold_compute(connection: AsyncConnection) -> dict[str, Any]:
    """Add attempts that have ended to the compute of their goals, at most a few batches a turn."""
    return await folds.fold_batches(connection, compute.fold)


async def enforce_budgets(connection: AsyncConnection) -> dict[str, Any]:
    """Stop goals whose time or compute is used up; hold or meter those whose budget is used up or nearly committed.

    All goals are judged from one reading, without locks, since nearly always there is nothing to do. Only a goal that
    is to change is locked, and read again then, because its client may have paused or stopped it meanwhile.
    """
    limited_goals, moment = await goals.read_limited(connection), await now(connection)
    if not limited_goals:
        return {"stopped": [], "held": [], "let_through": 0, "taken_back": 0}
    ids, capacity = [goal.id for goal in limited_goals], await priors.lease_capacity(connection)
    served = await _served_kinds(connection)
    computes, present_meters = await compute.read_many(connection, ids), await meters.read(connection, ids, served)
    budgeted_ids = [goal.id for goal in limited_goals if goal.constraints.compute_budget_seconds]
    untried_ids = [goal_id for goal_id in budgeted_ids if not computes[goal_id].total.attempts]
    prior_seconds = await priors.expected_seconds(connection, untried_ids)
    stopped_ids, held_ids = [], []
    counts: dict[str, _Room] = {}
    excess: list[RunningAttempt] = []
    async for goal in _with_pauses(limited_goals):
        usage, meter = service.usage_at(goal, computes[goal.id], moment), present_meters.get(goal.id)
        usage = replace(usage, compute=replace(usage.compute, prior_seconds=prior_seconds.get(goal.id, 0.0)))
        # The bounds on iterations, which the configuration may set, are enforced when an iteration is reported.
        limits = rules.goal_policy(goal.constraints, IterationConfig()).limits
        due = rules.enforce(usage, limits, capacity, ages=computes[goal.id].ages, is_metered=meter is not None)
        await _tell_of_low_budget(connection, goal, budgets.notices(limits, usage, budgets.SPENDING))
        if due.action is EnforcementAction.STOP:
            stopped_ids += await _stop_goal(connection, goal, due.reason)
        elif due.action is EnforcementAction.HOLD:
            held_ids += await _hold_goal(connection, goal, due.reason)
            if due.excess_attempts and await _lock_as_judged(connection, goal) is not None:
                excess += computes[goal.id].running[-due.excess_attempts :]
        elif due.action is EnforcementAction.METER:
            counts[goal.id] = await _meter(connection, goal, meter, due.remaining_attempts, usage.compute, served)
        elif meter is not None or goal.hold is Hold.BUDGET:
            await _allow(connection, goal)
    # Goals are locked before tasks: whoever submits to one goal may hold it and wait for a task of another.
    let_through, taken_back = await _change_tasks(connection, counts, excess, served)
    return {"stopped": stopped_ids, "held": held_ids, "let_through": let_through, "taken_back": taken_back}


async def _with_pauses(limited_goals: Sequence[Goal]) -> AsyncIterator[Goal]:
    for number, goal in enumerate(limited_goals, 1):
        if number % _SHARE == 0:
            await asyncio.sleep(0)
        yield goal


async def process_holds(database: Database) -> int:
    """Process all holds with pending work, one batch in a transaction; return the number of batches."""
    batches = 0
    while await process_batch(database):
        batches += 1
    return batches


async def process_batch(database: Database) -> bool:
    """Process one batch of one hold: bring its tasks back, cancel them, or set them aside; False when none is due."""
    async with database.transaction() as connection:
        hold = await holds.lock_next(connection)
        if hold is None:
            return False
        if not hold.is_closed:
            await holds.bring_back(connection, hold, BATCH)
        elif hold.reason is Hold.STOPPED:
            await _cancel_tasks(connection, hold)
        else:
            await holds.sweep(connection, hold, BATCH)
        return True


async def recapture_tasks(connection: AsyncConnection) -> dict[str, Any]:
    """Set aside ready tasks of held goals, which came back from a worker or were submitted while the hold began.

    Claims skip such tasks, so they do no harm but cost each claim a little. Without any, this looks for the opposite.
    """
    turn = (await duties.last_turns(connection, [RECAPTURE_DUTY])).get(RECAPTURE_DUTY)
    moment, last = await now(connection), turn.result if turn else {}
    # A task may have become ready before the last turn, in a transaction that committed only after it.
    latest_since = moment - _COMMIT_DELAY
    since = latest_since - (turn.ago if turn else timedelta(days=1))
    if last.get("unseen_since"):
        since = datetime.fromisoformat(last["unseen_since"])
    after, lost = last.get("looked_at", ""), 0
    tasks, unseen_since = await holds.ready_in_closed_goals(connection, since)
    if tasks:
        await _set_strays_aside(connection, tasks)
    else:
        # Not in the turns that lock holds: it adds some, and others that wait for both would be deadlocked.
        lost, after = await holds.reopen_lost(connection, after)
    forgotten = await holds.prune(connection)
    result = {"strays": len(tasks), "forgotten": forgotten, "lost": lost, "looked_at": after}
    if unseen_since is not None:
        next_since = min(unseen_since, latest_since)
        result |= {"unseen_since": next_since.isoformat(), "behind": unseen_since < latest_since}
    return result


async def _set_strays_aside(connection: AsyncConnection, tasks: Sequence[Any]) -> None:
    # A goal may have been resumed, and all its tasks brought back, since these were found.
    reasons = await holds.lock_closed(connection, {task.goal_id for task in tasks})
    for goal_id, reason in reasons.items():
        if reason is Hold.STOPPED:
            await holds.restart_sweep(connection, goal_id)
    held_ids = {goal_id for goal_id, reason in reasons.items() if reason is not Hold.STOPPED}
    await holds.set_aside(connection, [task.id for task in tasks if task.goal_id in held_ids])


async def _tell_of_low_budget(connection: AsyncConnection, goal: Goal, notices: list[str]) -> None:
    """Write an event when four fifths of the money or the tokens are used, once until the limits are changed."""
    if not notices or goal.is_budget_low or await _lock_as_judged(connection, goal) is None:
        return
    if await goals.note_low_budget(connection, goal.id):
        await goals.append_event(connection, GoalEvent.BUDGET_LOW, goal.id, {"notices": notices})


async def _served_kinds(connection: AsyncConnection) -> Served:
    offers, requests = await worker_offers.present(connection), await resource_classes.requests(connection)
    kinds = [(agent, 0) for agent in offers]
    for number, request in requests.items():
        requested = resources.parse(request)
        kinds += [(agent, number) for agent, some in offers.items() if any(offer.covers(requested) for offer in some)]
    return Served(kinds=kinds)


async def _meter(
    connection: AsyncConnection, goal: Goal, meter: Meter | None, room: int, total: Compute, served: Served
) -> _Room:
    """Return the room for tasks beyond those let through before; where there is some, the goal and its hold are locked.

    Tasks that were let through and wait still take their room, though the compute of the goal does not show them.
    """
    attempts = total.attempts + total.running
    if goal.state is not GoalState.RUNNING or (meter is not None and not _is_due(meter, room, attempts)):
        return _NO_ROOM
    if await _lock_as_judged(connection, goal) is None:
        return _NO_ROOM
    if meter is None:
        await meters.create(connection, goal.id, attempts)
        return _NO_ROOM
    locked_meter = await meters.lock(connection, goal.id, served)
    if locked_meter is None or not _is_due(locked_meter, room, attempts):
        return _NO_ROOM
    await meters.settle(connection, goal.id, locked_meter, attempts)
    return _free_room(locked_meter, room, attempts)


def _is_due(meter: Meter, room: int, attempts: int) -> bool:
    # `is_ready`: its tasks are set aside. Before that they cannot be let through one by one.
    has_changed = meter.allowed_attempts - attempts != meter.waiting_tasks
    return meter.is_ready and (has_changed or (meter.has_free_tasks and sum(_free_room(meter, room, attempts)) > 0))


def _free_room(meter: Meter, room: int, attempts: int) -> _Room:
    # Allowed attempts that have not begun, and more than wait, are of tasks that were cancelled or delayed, or of one
    # that was leased just now, after the attempts were counted. By the next check that is clear, and they are settled.
    free = room - max(meter.waiting_tasks, meter.allowed_attempts - attempts)
    return _Room(tasks=max(0, free), spare=max(0, min(free + meter.stuck_tasks, meter.stuck_tasks)))


async def _change_tasks(
    connection: AsyncConnection, counts: Mapping[str, _Room], excess: Sequence[RunningAttempt], served: Served
) -> tuple[int, int]:
    """Let so many tasks of each goal through, and take those attempts back; return how many of both there were."""
    some = [(goal_id, room) for goal_id, room in counts.items() if sum(room) > 0]
    chosen = {goal_id: await meters.choose(connection, goal_id, *room, served) for goal_id, room in some}
    # All at once, as others lock tasks of several goals in the order of their ids, too.
    ids = [task_id for ids in chosen.values() for task_id in ids]
    await meters.lock_tasks(connection, [*ids, *(lease.task_id for lease in excess)])
    let_through = sum([await meters.let_through(connection, goal_id, ids) for goal_id, ids in chosen.items() if ids])
    return let_through, await _take_back(connection, excess)


async def _lock_as_judged(connection: AsyncConnection, goal: Goal) -> Goal | None:
    """Lock a goal that was judged without a lock; None where its limits have changed since, so the next turn decides.

    Its client has been told that it goes on by the new ones.
    """
    locked_goal = await goals.lock(connection, goal.id)
    return locked_goal if locked_goal and locked_goal.constraints == goal.constraints else None


async def _allow(connection: AsyncConnection, goal: Goal) -> None:
    # Locks are taken in the order goal, hold, tasks; so the goal first, although only its hold changes.
    if await _lock_as_judged(connection, goal) is not None:
        await holds.reopen(connection, goal.id, Hold.BUDGET)


async def _stop_goal(connection: AsyncConnection, goal: Goal, reason: str) -> list[str]:
    locked_goal = await _lock_as_judged(connection, goal)
    if locked_goal is None or locked_goal.state is GoalState.STOPPED:
        return []
    await service.stop_locked(connection, locked_goal, reason)
    return [goal.id]


async def _hold_goal(connection: AsyncConnection, goal: Goal, reason: str) -> list[str]:
    if goal.hold is not None:
        return []
    locked_goal = await _lock_as_judged(connection, goal)
    if locked_goal is None or locked_goal.state is not GoalState.RUNNING or locked_goal.hold is not None:
        return []
    await holds.close(connection, goal.id, Hold.BUDGET)
    await goals.append_event(connection, GoalEvent.HELD, goal.id, {"reason": reason})
    return [goal.id]


async def _take_back(connection: AsyncConnection, excess: Sequence[RunningAttempt]) -> int:
    """Take these attempts back unharmed, so that older ones can end; return their number."""
    taken_back = 0
    for lease in sorted(excess, key=lambda lease: lease.task_id):
        attempt = await attempts.lock(connection, lease.task_id, lease.token, lease.worker_id)
        if attempt is not None:
            await give_back(connection, attempt, "the compute budget is kept for tasks of the goal that began earlier")
            taken_back += 1
    return taken_back


async def _cancel_tasks(connection: AsyncConnection, hold: LockedHold) -> None:
    """Cancel a batch of the tasks of a stopped goal; workers hear of running ones with their next heartbeat or call."""
    ids = await holds.live_task_ids(connection, hold, BATCH)
    if ids:
        goal = await goals.read(connection, hold.goal_id)
        reason = f"the research goal has stopped: {goal.reason}" if goal else "the research goal has stopped"
        await cancel.cancel(connection, ids, Selection(goal_id=hold.goal_id), reason)
