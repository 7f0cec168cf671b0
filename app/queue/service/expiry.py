"""Taking back leases that expired, and tasks that beat but hang past their deadline."""

import json
import random
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.db.duties import Turn
from app.queue.rules.tasks import (
    LeasePolicy,
    SweepPolicy,
    SweepSnapshot,
    after_failure,
    after_rescue,
    reason_to_hold_back,
)
from app.queue.service.leases import retry_policy
from app.queue.store import attempts, lease_ledger, tasks
from app.queue.store.attempts import Attempt, Ending

_ENDED_SECONDS = 3600.0


async def sweep(connection: AsyncConnection, policy: LeasePolicy, turn: Turn) -> dict[str, Any]:
    """One sweep over the live leases."""
    # Leases of workers that ended while nobody was sweeping count too.
    since = _ENDED_SECONDS + turn.seconds_since_last
    live, expired = await attempts.count_leases(connection, policy.deadline_grace_seconds, since)
    snapshot = SweepSnapshot(
        expired=expired,
        live=live,
        seconds_since_last_sweep=turn.seconds_since_last,
        held_back_seconds=turn.held_back_seconds,
    )
    reason = reason_to_hold_back(snapshot, SweepPolicy())
    if reason is not None:
        began = await now(connection) - timedelta(seconds=turn.held_back_seconds or 0.0)
        return {"held_back": True, "held_back_since": began.isoformat(), "reason": reason}
    taken = await attempts.overdue(connection, policy.deadline_grace_seconds, since) if expired else []
    for attempt in taken:
        await _take_back(connection, attempt)
    return {"live": live, "taken_back": len(taken)}


async def promote(connection: AsyncConnection) -> dict[str, Any]:
    """Let delayed tasks run whose time has come."""
    return {"promoted": await tasks.promote(connection)}


async def _take_back(connection: AsyncConnection, attempt: Attempt) -> None:
    """A hung task has used up its attempt; a lease that fell silent has not."""
    moment = await now(connection)
    if attempt.lease_expires_at > moment:
        message = "the task ran past its hard deadline while its worker kept beating"
        verdict = after_failure(
            retry_policy(attempt),
            failures=attempt.failures,
            rescues=attempt.rescues,
            retryable=True,
            now=moment,
            draw=random.random(),  # noqa: S311 - jitter, not a secret
        )
        ending = Ending(outcome="expired", error=_error("timeout", message), is_fault=True)
        await attempts.end(connection, attempt, verdict, ending)
        return
    message = "the lease was not acknowledged in time" if attempt.state == "assigned" else "the lease was not renewed"
    verdict = after_rescue(retry_policy(attempt), failures=attempt.failures, rescues=attempt.rescues, reason=message)
    await attempts.end(connection, attempt, verdict, Ending(outcome="expired", error=_error("lease_expired", message)))


def _error(code: str, message: str) -> str:
    return json.dumps({"code": code, "message": message, "retryable": True})


async def trim(connection: AsyncConnection) -> dict[str, Any]:
    """Shorten the ledger of leases: of each worker only the last lines are of use."""
    return {"trimmed": await lease_ledger.trim(connection)}
