"""Attempts: locked by their lease, ended without a result (failed, released, expired, lost), and recorded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.database import allow_whole_tables
from app.db.retention import pruning
from app.kernel.events import TaskEvent
from app.kernel.states import TaskState
from app.queue.rules.tasks import Verdict
from app.queue.store import counters, events, lanes, lease_ledger, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A leased task whose row this transaction has locked."""

    id: UUID
    state: TaskState
    agent_type: str
    priority: int
    goal_id: str | None
    failures: int
    rescues: int
    unacknowledged: int
    returns: int
    max_attempts: int
    retry_delays: Sequence[float]
    token: int
    worker_id: UUID
    leased_at: datetime
    lease_expires_at: datetime
    deadline_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCounts:
    """Numbers of live leases, and among them of those that are overdue, and of before the clock was set back.

    They were counted `at` a time; the first of them is overdue from `first_overdue_at` on, if any ever is.
    """

    live: int
    overdue: int
    ahead: int
    at: datetime
    first_overdue_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """End of an attempt: its outcome for the record, error and usage as JSON text, and whether the agent failed."""

    outcome: str
    error: str | None = None
    usage: str | None = None
    is_fault: bool = False


# Attempts that one call takes up at most.
_BATCH = 500
_COLUMNS = (
    "t.id, t.state, t.agent_type, t.priority, t.goal_id, t.failures, t.rescues, t.unacknowledged, t.returns, "
    "t.max_attempts, t.retry_delays, t.token, t.worker_id, coalesce(t.leased_at, now()) AS leased_at, "
    "coalesce(t.lease_expires_at, now()) AS lease_expires_at, coalesce(t.deadline_at, now()) AS deadline_at"
)

# The fence: only this lease of this worker, and only until it expires. A worker that was believed lost and comes back
# holds an old token, so nothing that it says can touch the attempt of another.
_LOCK = text(f"""
SELECT {_COLUMNS} FROM tasks t
WHERE id = :id AND token = :token AND worker_id = :worker_id AND lease_expires_at > now() FOR UPDATE
""")

_LOCK_OF_WORKER = text(f"""
SELECT {_COLUMNS} FROM {lease_ledger.last_lease(":worker_id")} last
JOIN tasks t ON t.id = last.task_id AND t.token = last.token AND t.worker_id = :worker_id
FOR UPDATE OF t
""")

# Goes by the last lease of each worker: an index of leased tasks would be full of dead entries. Of workers that have
# ended only the recent ones count: a claim under way may have served one while it was ending.
_LEASED = f"""
SELECT h.id, h.leased_at, w.lost_after_seconds,
       h.lease_expires_at <= now() OR h.deadline_at + make_interval(secs => :grace) <= now() AS overdue,
       least(h.lease_expires_at, h.deadline_at + make_interval(secs => :grace)) AS overdue_at
FROM workers w CROSS JOIN LATERAL {lease_ledger.last_lease("w.id")} last
CROSS JOIN LATERAL {lease_ledger.held_task("w.id")} h
WHERE w.ended_at IS NULL OR w.ended_at > now() - make_interval(secs => :since)
"""

_OVERDUE = text(f"""
SELECT {_COLUMNS} FROM tasks t JOIN ({_LEASED}) leased ON leased.id = t.id AND leased.overdue
WHERE t.worker_id IS NOT NULL
  AND (t.lease_expires_at <= now() OR t.deadline_at + make_interval(secs => :grace) <= now())
ORDER BY t.id LIMIT :limit FOR UPDATE OF t SKIP LOCKED
""")

# What began in a time to come did so before the clock was set back. Its worker renews those that are older, or is lost.
_IS_AHEAD = "leased.leased_at > now() + interval '1 min'"
_COUNT = text(f"""
SELECT count(*) AS live, count(*) FILTER (WHERE overdue) AS overdue, count(*) FILTER (WHERE {_IS_AHEAD}) AS ahead,
       now() AS at, min(overdue_at) AS first_overdue_at
FROM ({_LEASED}) leased
""")
# Its worker renews it, if that is there: for so long it may be silent.
_CUT = text(f"""
WITH ahead AS MATERIALIZED (
    SELECT t.id, leased.lost_after_seconds FROM tasks t JOIN ({_LEASED}) leased ON leased.id = t.id
    WHERE t.worker_id IS NOT NULL AND {_IS_AHEAD} ORDER BY t.id LIMIT :limit FOR UPDATE OF t SKIP LOCKED
)
UPDATE tasks t
SET leased_at = least(t.leased_at, now()), deadline_at = t.deadline_at - greatest(t.leased_at - now(), interval '0'),
    lease_expires_at = least(
        t.lease_expires_at, now() + make_interval(secs => greatest(:seconds, ahead.lost_after_seconds)))
FROM ahead WHERE t.id = ahead.id AND {counters.COUNTS_ITSELF}
""")
# Time that has not passed counts for nobody. All at once, and none is skipped: only this turn knows of it. A heartbeat
# may have come since then.
_MOVE = text(f"""
WITH earlier AS MATERIALIZED (
    SELECT t.id, leased.lost_after_seconds FROM tasks t JOIN ({_LEASED}) leased ON leased.id = t.id
    WHERE t.worker_id IS NOT NULL AND t.leased_at <= now() - make_interval(secs => :by) ORDER BY t.id FOR UPDATE OF t
)
UPDATE tasks t
SET leased_at = t.leased_at + make_interval(secs => :by), deadline_at = t.deadline_at + make_interval(secs => :by),
    lease_expires_at = least(t.lease_expires_at + make_interval(secs => :by),
                             now() + make_interval(secs => greatest(:seconds, earlier.lost_after_seconds)))
FROM earlier WHERE t.id = earlier.id AND {counters.COUNTS_ITSELF}
""")

# Leases that no ledger leads to: somebody wrote to the table by hand. Both figures are of one snapshot, and exact.
_COUNT_STRAYS = text(f"""
SELECT (SELECT coalesce(sum(tasks), 0) FROM ({counters.COUNTS}) counts
        WHERE {counters.PHASE} IN ('{TaskState.ASSIGNED}', '{TaskState.EXECUTING}'))::bigint
     - (SELECT count(*) FROM ({_LEASED}) leased)
""")

# No index serves this, so it reads the whole table, and only where there is a stray.
_STRAYS = text(f"""
WITH leased AS MATERIALIZED ({_LEASED})
SELECT {_COLUMNS} FROM tasks t
WHERE t.worker_id IS NOT NULL AND coalesce(t.lease_expires_at, '-infinity') <= now()
  AND NOT EXISTS (SELECT FROM leased WHERE leased.id = t.id)
ORDER BY t.id LIMIT :limit FOR UPDATE OF t SKIP LOCKED
""")

_REQUEUE = text(f"""
UPDATE tasks t SET state = 'pending', worker_id = NULL, lease_expires_at = NULL, deadline_at = NULL, leased_at = NULL,
    failures = :failures, rescues = :rescues,
    unacknowledged = coalesce(CAST(:unacknowledged AS integer), unacknowledged), returns = returns + :returns,
    run_at = :run_at,
    error = coalesce(CAST(:error AS jsonb), error),
    waiting_since = now(), avoid_worker_id = CAST(:avoid AS uuid),
    tag = {lanes.TAG_ON_RETURN}
WHERE id = :id RETURNING agent_type, priority, tag
""")

_RECORD = text("""
INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome, error, usage)
VALUES (:task_id, :attempt, :token, :worker_id, :leased_at, :outcome, CAST(:error AS jsonb), CAST(:usage AS jsonb))
""")

_STATUS = text("""
SELECT 'live' AS place, state, token, worker_id, lease_expires_at,
       lease_expires_at > now() AS is_leased, NULL::bytea AS result_hash,
       CASE WHEN run_at = 'infinity' THEN due_at ELSE run_at END AS run_at
FROM tasks WHERE id = :id
UNION ALL
SELECT 'finished', state, token, worker_id, NULL, false, result_hash, NULL FROM task_history WHERE id = :id
""")

_OUTCOME = text("""
SELECT outcome FROM task_attempts WHERE task_id = :id AND token = :token AND worker_id = :worker_id
""")


async def lock(connection: AsyncConnection, task_id: UUID, token: int, worker_id: UUID) -> Attempt | None:
    """Lock the attempt of this lease; None when the lease is over."""
    rows = await _attempts(connection, _LOCK, {"id": task_id, "token": token, "worker_id": worker_id})
    return rows[0] if rows else None


async def lock_of_worker(connection: AsyncConnection, worker_id: UUID) -> Attempt | None:
    """Lock the attempt that a worker runs; None when it runs none."""
    rows = await _attempts(connection, _LOCK_OF_WORKER, {"worker_id": worker_id})
    return rows[0] if rows else None


async def lock_overdue(connection: AsyncConnection, grace_seconds: float, since_seconds: float) -> list[Attempt]:
    """Lock attempts whose lease has expired or whose deadline is more than `grace_seconds` ago, at most a batch.

    Considers live workers and those that ended within the last `since_seconds`; skips rows that others have locked.
    """
    values = {"grace": grace_seconds, "since": since_seconds, "limit": _BATCH}
    return await _attempts(connection, _OVERDUE, values)


async def count_leases(connection: AsyncConnection, grace_seconds: float, since_seconds: float) -> LeaseCounts:
    """Numbers of leases, and when the first of them is overdue."""
    values = {"grace": grace_seconds, "since": since_seconds}
    return LeaseCounts(**(await connection.execute(_COUNT, values)).mappings().one())


async def cut(connection: AsyncConnection, grace_seconds: float, since_seconds: float, lease_seconds: float) -> int:
    """Let leases of before the clock was set back end after `lease_seconds`; return their number.

    Those that began in a time to come begin now. At most a batch; skips rows that others have locked.
    """
    values = {"grace": grace_seconds, "since": since_seconds, "seconds": lease_seconds, "limit": _BATCH}
    return (await connection.execute(_CUT, values)).rowcount


async def move(connection: AsyncConnection, by_seconds: float, since_seconds: float, lease_seconds: float) -> int:
    """Let leases of before the clock was set forward have begun, and end, so much later; return their number.

    None lasts longer than `lease_seconds` from now on unless it is renewed.
    """
    # `grace` tells which are overdue, which does not matter here.
    values = {"by": by_seconds, "since": since_seconds, "seconds": lease_seconds, "grace": 0.0}
    return (await connection.execute(_MOVE, values)).rowcount


async def lock_strays(connection: AsyncConnection, grace_seconds: float, since_seconds: float) -> list[Attempt]:
    """Lock attempts whose lease has expired and that the ledger of their worker does not lead to, at most a batch."""
    values = {"grace": grace_seconds, "since": since_seconds}
    if (await connection.execute(_COUNT_STRAYS, values)).scalar_one() <= 0:
        return []
    await allow_whole_tables(connection)
    return await _attempts(connection, _STRAYS, {**values, "limit": _BATCH})


async def end(connection: AsyncConnection, attempt: Attempt, verdict: Verdict, ending: Ending) -> None:
    """Carry out the verdict on an attempt that the caller has locked: end or requeue its task, and record it."""
    if verdict.event is TaskEvent.FAILED:
        await tasks.finish(
            connection,
            attempt.id,
            TaskState.FAILED,
            failures=verdict.failures,
            rescues=verdict.rescues,
            unacknowledged=verdict.unacknowledged,
            error=ending.error,
            usage=ending.usage,
        )
    else:
        await _requeue(connection, attempt, verdict, ending)
    await record(connection, attempt, ending)
    await events.append(
        connection,
        verdict.event,
        task_id=attempt.id,
        agent_type=attempt.agent_type,
        goal_id=attempt.goal_id,
        worker_id=attempt.worker_id,
        token=attempt.token,
        detail=json.dumps({"reason": verdict.reason}),
        priority=attempt.priority,
        leased_at=attempt.leased_at,
        quality=0.0 if ending.is_fault else None,
    )


async def record(connection: AsyncConnection, attempt: Attempt, ending: Ending) -> None:
    """Record an attempt that did not complete its task."""
    values = {"task_id": attempt.id, "attempt": attempt.failures + 1, "token": attempt.token}
    times = {"worker_id": attempt.worker_id, "leased_at": attempt.leased_at}
    end = {"outcome": ending.outcome, "error": ending.error, "usage": ending.usage}
    await connection.execute(_RECORD, {**values, **times, **end})


async def task_status(connection: AsyncConnection, task_id: UUID) -> dict[str, Any] | None:
    """State, token, worker and result of a task, live or finished; None when there is no such task."""
    row = (await connection.execute(_STATUS, {"id": task_id})).mappings().first()
    return dict(row) if row else None


async def past_outcome(connection: AsyncConnection, task_id: UUID, token: int, worker_id: UUID) -> str | None:
    """Outcome of an earlier lease of this worker on the task; None when it held no such lease, or holds it still."""
    outcome: str | None = (
        await connection.execute(_OUTCOME, {"id": task_id, "token": token, "worker_id": worker_id})
    ).scalar()
    return outcome


async def _requeue(connection: AsyncConnection, attempt: Attempt, verdict: Verdict, ending: Ending) -> None:
    values = {"failures": verdict.failures, "rescues": verdict.rescues, "unacknowledged": verdict.unacknowledged}
    avoid = None if verdict.event is TaskEvent.RELEASED else attempt.worker_id
    place = {"id": attempt.id, "error": ending.error, "avoid": avoid, "run_at": verdict.run_at}
    returns = int(verdict.event is TaskEvent.RELEASED)
    rows = await connection.execute(_REQUEUE, {**values, **place, "returns": returns})
    if verdict.run_at is None:
        notify.note_work(connection, lanes.lowest_tags(rows.mappings()))


async def _attempts(connection: AsyncConnection, query: Any, values: dict[str, Any]) -> list[Attempt]:
    rows = (await connection.execute(query, values)).mappings()
    return [Attempt(**{**row, "state": TaskState(row["state"])}) for row in rows]


prune = pruning("task_attempts", "ended_at")
