"""Expiry of leases that were not renewed, and of tasks that hang past their deadline while their worker still beats."""

import json
import logging
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties, presence
from app.db.database import now
from app.db.duties import Turn
from app.kernel.presence import PresencePolicy, absence_reason
from app.kernel.states import TaskState
from app.queue.rules.tasks import LeasePolicy, SweepPolicy, SweepSnapshot, hold_back_reason
from app.queue.service.leases import judge_failure, judge_loss
from app.queue.store import attempts, lease_ledger, tasks
from app.queue.store.attempts import Attempt, Ending, LeaseCounts

log = logging.getLogger(__name__)
_ENDED_WORKERS_SECONDS = 3600.0
# By less the clock is only corrected, and no deadline is that near to what its worker keeps itself.
_SET_FORWARD_SECONDS = 60.0
PROMOTE = "promote delayed tasks"
# In one turn, some 50 ms: readers of events wait for the oldest open transaction that has written.
_PROMOTED = 1000
TRIM_LEDGER = "trim the ledger"
# How far back a turn looks, in lines of a worker: twice as far as the last one found any, and every so many
# turns, or after a pause, farther than any worker comes meanwhile.
_REACH_FACTOR, _LEAST_REACH, _FAR_REACH, _FAR_EVERY, _LATE = 2, 200, 20_000, 20, timedelta(minutes=2)


async def sweep(
    connection: AsyncConnection,
    policy: LeasePolicy,
    turn: Turn,
    callers: PresencePolicy = PresencePolicy(),  # noqa: B008 - it cannot be changed
) -> dict[str, Any]:
    """Expire overdue leases, unless the service itself was away, or probably was; return the counts."""
    # Leases of workers that ended while no sweep ran count too.
    since = _ENDED_WORKERS_SECONDS + turn.seconds_since_last
    grace = policy.deadline_grace_seconds
    moved: dict[str, Any] = {}
    if turn.set_forward_seconds >= _SET_FORWARD_SECONDS:
        moved = {"moved": await attempts.move(connection, turn.set_forward_seconds, since, policy.lease_seconds)}
        log.warning("the clock of the database was set forward by %.0f s", turn.set_forward_seconds)
    counts = await attempts.count_leases(connection, grace, since)
    cut_count = await attempts.cut(connection, grace, since, policy.lease_seconds) if counts.ahead else 0
    snapshot = SweepSnapshot(
        expired_count=counts.overdue,
        live_count=counts.live,
        seconds_since_last_sweep=turn.seconds_since_last,
        held_back_seconds=turn.held_back_seconds,
    )
    absence = absence_reason(await presence.read(connection), callers) if counts.overdue else None
    reason = absence or hold_back_reason(snapshot, SweepPolicy(grace_seconds=callers.interval_seconds))
    if reason is not None:
        # Written with the turn: the next sweep, perhaps of another process, knows since when leases are spared.
        began_at = await now(connection) - timedelta(seconds=turn.held_back_seconds or 0.0)
        return {"held_back": True, "held_back_since": began_at.isoformat(), "reason": reason}
    overdue = await attempts.lock_overdue(connection, grace, since) if counts.overdue else []
    for attempt in overdue:
        await _end_attempt(connection, attempt)
    result = {"live": counts.live, "taken_back": len(overdue)} | ({"cut": cut_count} if cut_count else {}) | moved
    # Of several that are overdue some may be left, as there were too many or somebody has locked them.
    return result if counts.overdue else result | {"none_before": _none_before(counts, policy).isoformat()}


def _none_before(counts: LeaseCounts, policy: LeasePolicy) -> datetime:
    """Until when no lease can be overdue, those that begin or are renewed from now on included."""
    least_seconds = min(policy.lease_seconds, policy.acknowledge_within_seconds, policy.deadline_grace_seconds)
    soonest = counts.at + timedelta(seconds=least_seconds)
    return min(soonest, counts.first_overdue_at or soonest)


async def sweep_strays(connection: AsyncConnection, policy: LeasePolicy) -> dict[str, Any]:
    """Expire overdue leases that no claim has written, so that no sweep by worker meets them; return their number."""
    strays = await attempts.lock_strays(connection, policy.deadline_grace_seconds, _ENDED_WORKERS_SECONDS)
    for attempt in strays:
        await _end_attempt(connection, attempt)
    return {"taken_back": len(strays)}


async def promote_delayed(connection: AsyncConnection) -> dict[str, Any]:
    """Make delayed tasks ready whose time has come, a batch of them; return their number, and whether it was full."""
    count = await tasks.promote(connection, _PROMOTED)
    return {"promoted": count} | ({"behind": True} if count == _PROMOTED else {})


async def _end_attempt(connection: AsyncConnection, attempt: Attempt) -> None:
    """End an overdue attempt: a hung task has used it up, a lease that was not renewed has not."""
    moment = await now(connection)
    if attempt.lease_expires_at > moment:
        message = "the task ran past its hard deadline while its worker kept beating"
        verdict = judge_failure(attempt, moment, retryable=True)
        ending = Ending(outcome="expired", error=_error("timeout", message), is_fault=True)
        await attempts.end(connection, attempt, verdict, ending)
        return
    code, message = "lease_expired", "the lease was not renewed"
    if attempt.state is TaskState.ASSIGNED:
        code, message = "unacknowledged", "the lease was not acknowledged in time"
    verdict = await judge_loss(connection, attempt, moment, message)
    await attempts.end(connection, attempt, verdict, Ending(outcome="expired", error=_error(code, verdict.reason)))


def _error(code: str, message: str) -> str:
    return json.dumps({"code": code, "message": message, "retryable": True})


async def trim_ledger(connection: AsyncConnection) -> dict[str, Any]:
    """Delete all but the last entries of each worker from the ledger of leases; return the number deleted.

    Further back are dead entries of those deleted before, walked over as long as somebody keeps an old snapshot.
    """
    last = (await duties.last_turns(connection, [TRIM_LEDGER])).get(TRIM_LEDGER)
    result = last.result if last and last.ago < _LATE else {}
    turns = int(result.get("turns_since_far", _FAR_EVERY)) + 1
    is_far = turns > _FAR_EVERY
    reach = _FAR_REACH if is_far else max(_LEAST_REACH, _REACH_FACTOR * int(result["of_one_worker"]))
    trimmed, trimmed_of_one = await lease_ledger.trim(connection, reach)
    # One that has found as many as it looked at, or may delete, may have left some: the next one looks far.
    is_behind = trimmed >= lease_ledger.TRIMMED
    turns = _FAR_EVERY if is_behind or trimmed_of_one >= reach else 0 if is_far else turns
    result = {"trimmed": trimmed, "of_one_worker": trimmed_of_one, "turns_since_far": turns}
    return result | ({"behind": True} if is_behind else {})
