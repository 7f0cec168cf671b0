"""Tasks that are not leased for the time being, because their goal is paused, out of budget, or has stopped.

From the commit of a hold on no claim leases a task of its goal: each claim passes over the tasks of closed goals.
Passing over many would cost every claim, so the tasks are then taken out of the index that claims read, in batches,
by `run_at` infinity; and brought back in batches, in their old order and at their old distances, when the goal goes on.
Submits to a held goal put their tasks there at once. Near the end of its budget a goal is metered: its tasks are held,
and let through as there is room for them.

Lock order: goals, holds, tasks by id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.queue.rules.holds import Hold
from app.queue.store import lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A hold that we have the lock of, and where the work on it stands."""

    goal_id: str
    reason: Hold
    is_closed: bool
    is_swept: bool
    swept_seq: int
    has_shifts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Goals whose new tasks have to be held, and those that take no new tasks any more."""

    held: frozenset[str] = frozenset()
    stopped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """How many attempts a metered goal was allowed in all; ready once its tasks are out of the way."""

    is_ready: bool
    allowed: int


# For the claim: the goals whose tasks it has to pass over. Computed once a statement.
CLOSED = "SELECT h.goal_id FROM holds h WHERE h.is_closed"

_CLOSE = text("""
INSERT INTO holds AS known (goal_id, reason) VALUES (:goal_id, :reason)
ON CONFLICT (goal_id) DO UPDATE
SET reason = excluded.reason, is_closed = true, is_metered = false, is_swept = false, swept_seq = 0, shifts = NULL,
    since = now()
WHERE NOT known.is_closed OR known.reason <> excluded.reason
""")

_OPEN = text("""
UPDATE holds SET is_closed = false, is_metered = false, shifts = NULL WHERE goal_id = :goal_id AND reason = :reason
""")

# What is out of the way already stays there.
_HAND_OVER = text("""
UPDATE holds SET reason = :to, since = now() WHERE goal_id = :goal_id AND reason = :reason AND is_closed
""")

# Until its tasks are out of the way it is closed; then they pass as they are let.
_METER = text("""
INSERT INTO holds AS known (goal_id, reason, is_metered, base) VALUES (:goal_id, 'budget', true, :base)
ON CONFLICT (goal_id) DO UPDATE
SET is_metered = true, is_closed = NOT known.is_swept, released = 0, base = excluded.base
WHERE known.reason = 'budget'
""")

_METERED = text("""
SELECT goal_id, is_closed, released, base FROM holds WHERE is_metered AND goal_id = ANY (CAST(:goal_ids AS text[]))
""")

_LET = text("UPDATE holds SET released = released + :count WHERE goal_id = :goal_id")

_GATE = text("""
WITH held AS MATERIALIZED (
    SELECT goal_id FROM holds WHERE goal_id = ANY (CAST(:goal_ids AS text[])) ORDER BY goal_id FOR SHARE
)
SELECT asked.id, asked.id IN (SELECT goal_id FROM held) AS is_held, coalesce(g.state = 'stopped', false) AS has_stopped
FROM unnest(CAST(:goal_ids AS text[])) AS asked (id) LEFT JOIN goals g ON g.id = asked.id
""")

# Whoever comes second finds that there is nothing left to do. Skipping what is locked would starve the work on a goal
# to which somebody submits all the time.
_NEXT = text("""
SELECT goal_id, reason, is_closed, is_swept, swept_seq, shifts IS NOT NULL AS has_shifts FROM holds
WHERE goal_id = (
    SELECT goal_id FROM holds WHERE NOT (is_closed OR is_metered) OR NOT is_swept ORDER BY since LIMIT 1
) AND (NOT (is_closed OR is_metered) OR NOT is_swept)
FOR UPDATE
""")

_AHEAD = text("SELECT id, seq FROM tasks WHERE goal_id = :goal_id AND seq > :after ORDER BY seq LIMIT :limit")

_TAKE_AWAY = text("""
WITH ours AS (
    SELECT id FROM tasks
    WHERE id = ANY (:ids) AND state IN ('blocked', 'pending') AND run_at IS DISTINCT FROM 'infinity'
    ORDER BY id FOR UPDATE
)
UPDATE tasks t SET due_at = t.run_at, run_at = 'infinity' FROM ours WHERE t.id = ours.id
""")

_SWEPT = text("""
UPDATE holds SET swept_seq = :seq, is_swept = :done, is_closed = is_closed AND NOT (is_metered AND :done)
WHERE goal_id = :goal_id
""")

_STRAYS = text("""
SELECT t.id, t.goal_id, h.reason
FROM (SELECT generate_series(1, 4)::smallint AS priority WHERE EXISTS (SELECT FROM holds WHERE is_closed)) asked
CROSS JOIN LATERAL (
    SELECT id, goal_id FROM tasks
    WHERE tasks.priority = asked.priority AND tasks.priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since >= :since OFFSET 0
) t
JOIN holds h ON h.goal_id = t.goal_id AND h.is_closed
LIMIT :limit
""")

# A lane may have gone on meanwhile: then the tasks of the goal move along, all by the same, so that the first of them
# is where the goal would stand if it came anew, and the others follow at their distances.
_SHIFT = text("""
UPDATE holds SET shifts = coalesce((
    SELECT jsonb_object_agg(lane.agent_type || '/' || lane.priority, greatest(0, lane.virtual_time - head.tag))
    FROM lanes lane CROSS JOIN LATERAL (
        SELECT tag FROM tasks t
        WHERE t.goal_id = :goal_id AND t.agent_type = lane.agent_type AND t.priority = lane.priority
          AND t.run_at = 'infinity'
        ORDER BY tag LIMIT 1
    ) head
), '{}') WHERE goal_id = :goal_id
""")

_BACK = text("""
WITH head AS MATERIALIZED (
    SELECT id FROM tasks WHERE goal_id = :goal_id AND run_at = 'infinity'
    ORDER BY agent_type, priority, tag, seq LIMIT :limit
), ours AS MATERIALIZED (
    SELECT id FROM tasks WHERE id IN (SELECT id FROM head) AND run_at = 'infinity' ORDER BY id FOR UPDATE
), back AS (
    UPDATE tasks t
    SET run_at = CASE WHEN t.due_at > now() THEN t.due_at END, due_at = NULL, waiting_since = now(),
        tag = t.tag + coalesce((h.shifts ->> (t.agent_type || '/' || t.priority))::float8, 0)
    FROM ours CROSS JOIN holds h WHERE t.id = ours.id AND h.goal_id = :goal_id
    RETURNING t.agent_type, t.priority, t.tag, t.state = 'pending' AND t.run_at IS NULL AS is_ready
), ready AS (
    SELECT agent_type, priority, min(tag) AS tag FROM back WHERE is_ready GROUP BY agent_type, priority
)
SELECT (SELECT count(*) FROM head) AS found, ready.* FROM (SELECT) one LEFT JOIN ready ON true
""")

_END = text("DELETE FROM holds WHERE goal_id = :goal_id")

_LIVE = text("SELECT id FROM tasks WHERE goal_id = :goal_id ORDER BY seq LIMIT :limit")

# A submit that was under way when its goal stopped has ended by then, one way or the other.
_FORGET = text("""
DELETE FROM holds h WHERE reason = 'stopped' AND is_swept AND since < now() - make_interval(secs => :after)
  AND NOT EXISTS (SELECT FROM tasks t WHERE t.goal_id = h.goal_id)
""")


async def close(connection: AsyncConnection, goal_id: str, reason: Hold) -> None:
    """No task of the goal is leased any more, from our commit on. The caller holds the lock of the goal."""
    await connection.execute(_CLOSE, {"goal_id": goal_id, "reason": reason.value})
    notify.note(connection, notify.GOALS)


async def open_up(connection: AsyncConnection, goal_id: str, reason: Hold) -> bool:
    """Let the tasks come back, where they are held for this reason. The caller holds the lock of the goal."""
    found = (await connection.execute(_OPEN, {"goal_id": goal_id, "reason": reason.value})).rowcount
    notify.note(connection, notify.GOALS)
    return found > 0


async def hand_over(connection: AsyncConnection, goal_id: str, reason: Hold, to: Hold) -> None:
    """Hold the tasks for another reason than before, without a gap. The caller holds the lock of the goal."""
    await connection.execute(_HAND_OVER, {"goal_id": goal_id, "reason": reason.value, "to": to.value})


async def gate(connection: AsyncConnection, goal_ids: Collection[str]) -> Gate:
    """How new tasks of these goals are to be taken in. What is held stays so until our transaction ends.

    Call it before any task is locked.
    """
    rows = (await connection.execute(_GATE, {"goal_ids": sorted(goal_ids)})).all()
    return Gate(
        held=frozenset(row.id for row in rows if row.is_held),
        stopped=frozenset(row.id for row in rows if row.has_stopped),
    )


async def next_to_do(connection: AsyncConnection) -> Held | None:
    """A hold on which there is work, locked."""
    row = (await connection.execute(_NEXT)).mappings().first()
    return Held(**{**row, "reason": Hold(row["reason"])}) if row else None


async def sweep(connection: AsyncConnection, held: Held, limit: int) -> int:
    """Take the next tasks of a closed goal out of the way; returns how many."""
    values = {"goal_id": held.goal_id, "after": held.swept_seq, "limit": limit}
    rows = (await connection.execute(_AHEAD, values)).all()
    taken = await take_away(connection, [row.id for row in rows])
    seq = rows[-1].seq if rows else held.swept_seq
    await connection.execute(_SWEPT, {"goal_id": held.goal_id, "seq": seq, "done": len(rows) < limit})
    return taken


async def take_away(connection: AsyncConnection, ids: Sequence[UUID]) -> int:
    """Take these out of the way as far as they are not leased; waits for whoever is about to lease one."""
    return (await connection.execute(_TAKE_AWAY, {"ids": list(ids)})).rowcount if ids else 0


async def strays(connection: AsyncConnection, since: datetime, limit: int = 1000) -> list[Any]:
    """Ready tasks of closed goals that became ready at `since` or later: id, goal_id and reason.

    They came back from a worker, or were submitted while their goal was being closed.
    """
    return list((await connection.execute(_STRAYS, {"since": since, "limit": limit})).all())


async def bring_back(connection: AsyncConnection, held: Held, limit: int) -> int:
    """Let the next tasks of a goal run that is open again; the hold ends with the last. Returns how many."""
    if not held.has_shifts:
        await connection.execute(_SHIFT, {"goal_id": held.goal_id})
    found = await _back(connection, held.goal_id, limit)
    if found < limit:
        await connection.execute(_END, {"goal_id": held.goal_id})
    return found


async def meter(connection: AsyncConnection, goal_id: str, attempts: int) -> None:
    """Let the tasks of the goal through only as they are allowed to, from now on, after so many attempts.

    The caller holds the lock of the goal. A pause or stop stays what it is.
    """
    await connection.execute(_METER, {"goal_id": goal_id, "base": attempts})
    notify.note(connection, notify.GOALS)


async def metered(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, Meter]:
    """Those of the goals that are metered."""
    rows = (await connection.execute(_METERED, {"goal_ids": list(goal_ids)})).mappings()
    return {row["goal_id"]: Meter(is_ready=not row["is_closed"], allowed=row["released"] + row["base"]) for row in rows}


async def let_through(connection: AsyncConnection, goal_id: str, count: int) -> int:
    """Let up to so many of the tasks of a metered goal run, those whose turn it is; returns how many there were."""
    await connection.execute(_SHIFT, {"goal_id": goal_id})
    found = await _back(connection, goal_id, count)
    await connection.execute(_LET, {"goal_id": goal_id, "count": found})
    return found


async def _back(connection: AsyncConnection, goal_id: str, limit: int) -> int:
    rows = (await connection.execute(_BACK, {"goal_id": goal_id, "limit": limit})).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["agent_type"]))
    return int(rows[0]["found"])


async def live(connection: AsyncConnection, held: Held, limit: int) -> list[UUID]:
    """Tasks of a stopped goal that have not ended; when there is none, the work on its hold is done."""
    ids = list((await connection.execute(_LIVE, {"goal_id": held.goal_id, "limit": limit})).scalars())
    if not ids:
        await connection.execute(_SWEPT, {"goal_id": held.goal_id, "seq": 0, "done": True})
    return ids


async def again(connection: AsyncConnection, goal_id: str) -> None:
    """There is work on this hold once more."""
    await connection.execute(_SWEPT, {"goal_id": goal_id, "seq": 0, "done": False})
    notify.note(connection, notify.GOALS)


async def forget(connection: AsyncConnection, after_seconds: float = 600.0) -> int:
    """Drop the holds of goals that stopped a while ago and have no tasks left; returns how many."""
    return (await connection.execute(_FORGET, {"after": after_seconds})).rowcount
