"""Holds: tasks of a goal are not leased while it is paused or out of budget, or once it has stopped.

From the commit of a hold on, claims skip the tasks of its goal. Skipping many would make every claim slower, so they
are then set aside in batches: `run_at` infinity takes them out of the index that claims read. When the goal goes on
they are brought back in batches, in their old order and at their old distances. Submits to a held goal set their tasks
aside at once. Near the end of its budget a goal is metered: see `meters`.

Lock order: goals, holds, tasks by id, free ones first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.lanes import SPAN
from app.queue.rules.holds import Hold
from app.queue.store import lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedHold:
    """A hold that this transaction has locked, and the progress of setting its tasks aside or bringing them back."""

    goal_id: str
    reason: Hold
    is_closed: bool
    is_swept: bool
    swept_seq: int
    has_shifts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Goals whose new tasks are to be set aside, and goals that accept no new tasks."""

    held_goals: frozenset[str] = frozenset()
    stopped_goals: frozenset[str] = frozenset()


# Whether a claim may lease one of `tasks`: its goal is not closed. The probe at the end decides, and costs the same
# however many goals are held. The first condition spares it while none is closed. The second, a set that is read once
# for each statement, spares it for the tasks that the sweep has yet to set aside, of which there may be many.
IS_OPEN = """(
    NOT EXISTS (SELECT FROM holds h WHERE h.is_closed)
    OR coalesce(goal_id, '') NOT IN (SELECT h.goal_id FROM holds h WHERE h.is_closed AND NOT h.is_swept)
    AND (SELECT h.is_closed FROM holds h WHERE h.goal_id = tasks.goal_id) IS NOT TRUE
)"""

_CLOSE = text("""
INSERT INTO holds AS stored (goal_id, reason) VALUES (:goal_id, :reason)
ON CONFLICT (goal_id) DO UPDATE
SET reason = excluded.reason, is_closed = true, is_metered = false, is_swept = false, swept_seq = 0, shifts = NULL,
    since = now()
WHERE NOT stored.is_closed OR stored.is_metered OR stored.reason <> excluded.reason
""")

_OPEN = text("""
UPDATE holds SET is_closed = false, is_metered = false, shifts = NULL WHERE goal_id = :goal_id AND reason = :reason
""")

# Tasks that are set aside already stay so.
_CHANGE_REASON = text("""
UPDATE holds SET reason = :to, since = now() WHERE goal_id = :goal_id AND reason = :reason AND is_closed
""")

_GATE = text("""
WITH held AS MATERIALIZED (
    SELECT goal_id FROM holds WHERE goal_id = ANY (CAST(:goal_ids AS text[])) ORDER BY goal_id FOR SHARE
)
SELECT goal.id, goal.id IN (SELECT goal_id FROM held) AS is_held, coalesce(g.state = 'stopped', false) AS has_stopped
FROM unnest(CAST(:goal_ids AS text[])) AS goal (id) LEFT JOIN goals g ON g.id = goal.id
""")


def gated(goal_ids: str) -> str:
    """Return SQL for those of these goals, an array, whose new tasks need to be set aside or refused."""
    return f"""ARRAY(SELECT goal_id FROM holds WHERE goal_id = ANY (CAST({goal_ids} AS text[]))
        UNION ALL SELECT id FROM goals WHERE id = ANY (CAST({goal_ids} AS text[])) AND state = 'stopped')"""


# No SKIP LOCKED: a goal to which clients submit all the time, with FOR SHARE on its hold, would never get its turn. The
# condition is repeated, because of two that wait for the lock the second may find nothing left to do.
_IS_PENDING = "(NOT (is_closed OR is_metered) OR NOT is_swept)"
_NEXT = text(f"""
SELECT goal_id, reason, is_closed, is_swept, swept_seq, shifts IS NOT NULL AS has_shifts FROM holds
WHERE goal_id = (SELECT goal_id FROM holds WHERE {_IS_PENDING} ORDER BY since LIMIT 1) AND {_IS_PENDING}
FOR UPDATE
""")
HAS_PENDING = f"EXISTS (SELECT FROM holds WHERE {_IS_PENDING})"
_ANY = "''"
_FIRST_HELD = """SELECT goal_id FROM tasks WHERE run_at = 'infinity' AND goal_id > {after}
    ORDER BY goal_id, agent_type, priority, tag, seq LIMIT 1"""
HAS_HELD = f"(EXISTS (SELECT FROM holds) OR EXISTS ({_FIRST_HELD.format(after=_ANY)}))"

# Changing a share lock into one for an update might wait for somebody who waits for this.
_LOCK_CLOSED = text("""
SELECT goal_id, reason FROM holds WHERE goal_id = ANY (CAST(:goal_ids AS text[])) AND is_closed
ORDER BY goal_id FOR UPDATE
""")

# One probe of the index for each goal, in the whole order of it: or the planner might walk over tasks that wait.
_LOST = text(f"""
WITH RECURSIVE held AS (
    SELECT goal_id, 1 AS number FROM ({_FIRST_HELD.format(after="CAST(:after AS text)")}) first
    UNION ALL
    SELECT following.goal_id, number + 1 FROM held
    CROSS JOIN LATERAL ({_FIRST_HELD.format(after="held.goal_id")}) following
    WHERE number < :limit
)
SELECT coalesce(array_agg(goal_id ORDER BY goal_id) FILTER (
           WHERE NOT EXISTS (SELECT FROM holds h WHERE h.goal_id = held.goal_id)
       ), '{{}}') AS lost,
       CASE WHEN count(*) = :limit THEN max(goal_id) ELSE '' END AS last
FROM held
""")

# As of a goal that was resumed: what is there comes back, and then the row goes.
_OPEN_LOST = text("""
INSERT INTO holds (goal_id, reason, is_closed, is_swept)
SELECT lost.id, CASE WHEN g.state = 'stopped' THEN 'stopped' ELSE 'paused' END, coalesce(g.state = 'stopped', false),
       g.state IS DISTINCT FROM 'stopped'
FROM unnest(CAST(:goal_ids AS text[])) AS lost (id) LEFT JOIN goals g ON g.id = lost.id ORDER BY lost.id
ON CONFLICT DO NOTHING
""")

_AHEAD = text("SELECT id, seq FROM tasks WHERE goal_id = :goal_id AND seq > :after ORDER BY seq LIMIT :limit")

_SET_ASIDE = text("""
WITH live AS (
    SELECT id FROM tasks
    WHERE id = ANY (:ids) AND state IN ('blocked', 'pending') AND run_at IS DISTINCT FROM 'infinity'
    ORDER BY state = 'blocked', id FOR UPDATE
)
UPDATE tasks t SET due_at = t.run_at, run_at = 'infinity' FROM live WHERE t.id = live.id
""")

_SWEPT = text("""
UPDATE holds SET swept_seq = :seq, is_swept = :done, is_closed = is_closed AND NOT (is_metered AND :done)
WHERE goal_id = :goal_id
""")

# Those that became ready first, so that a look costs the same however many there are. IS TRUE keeps the closed goals a
# set that is read once.
_READY_IN_CLOSED = text("""
WITH ready AS MATERIALIZED (
    SELECT lane.priority, t.*
    FROM (SELECT generate_series(1, 4)::smallint AS priority WHERE EXISTS (SELECT FROM holds WHERE is_closed)) lane
    CROSS JOIN LATERAL (
        SELECT id, goal_id, waiting_since FROM tasks
        WHERE tasks.priority = lane.priority AND tasks.priority <= 4
          AND state = 'pending' AND blockers = 0 AND run_at IS NULL AND waiting_since >= :since
        ORDER BY waiting_since LIMIT :window
    ) t
), strays AS (
    SELECT id, goal_id FROM ready WHERE (goal_id IN (SELECT h.goal_id FROM holds h WHERE h.is_closed)) IS TRUE
    LIMIT :limit
)
SELECT strays.*, looked.until FROM (
    SELECT min(last) AS until FROM (
        SELECT max(waiting_since) AS last FROM ready
        GROUP BY priority HAVING count(*) = :window AND max(waiting_since) > :since
    ) cut
) looked LEFT JOIN strays ON true
""")
_WINDOW = 10_000

# A lane may have advanced meanwhile. Then all tags of the goal in it move by the same, so that its first task comes
# where a new one would, and the others keep their distances: the goal neither goes ahead of others nor falls behind.
_CLASS_SUFFIX = "CASE WHEN {number} = 0 THEN '' ELSE '/' || {number} END"
_SHIFT_SUFFIX = _CLASS_SUFFIX.format(number=f"({lanes.sql_class_of('t.tag')})")
SHIFT = text(f"""
UPDATE holds SET shifts = coalesce((
    SELECT jsonb_object_agg(lane.agent_type || '/' || lane.priority || {_CLASS_SUFFIX.format(number="class")},
                            greatest(0, lane.virtual_time - head.tag))
    FROM (
        SELECT agent_type, priority, 0 AS class, virtual_time FROM lanes
        UNION ALL SELECT agent_type, priority, resource_class, virtual_time FROM resource_lanes
    ) lane CROSS JOIN LATERAL (
        SELECT tag FROM tasks t
        WHERE t.goal_id = :goal_id AND t.agent_type = lane.agent_type AND t.priority = lane.priority
          AND t.run_at = 'infinity' AND t.tag >= -class * {SPAN:.0f}::float8
          AND t.tag < CASE WHEN class = 0 THEN 'infinity' ELSE (1 - class) * {SPAN:.0f}::float8 END
        ORDER BY tag LIMIT 1
    ) head
), '{{}}') WHERE goal_id = :goal_id
""")

# OFFSET 0 keeps the look at each task one by its id: the index of held tasks would be walked through for every one.
BRING_BACK = f"""
WITH head AS MATERIALIZED (
    {{head}}
), locked AS MATERIALIZED (
    SELECT free.id FROM (SELECT id FROM head ORDER BY is_blocked, id) head
    CROSS JOIN LATERAL (SELECT id, run_at FROM tasks WHERE tasks.id = head.id OFFSET 0 FOR UPDATE) free
    WHERE free.run_at = 'infinity'
), back AS (
    UPDATE tasks t
    SET run_at = CASE WHEN t.due_at > now() THEN t.due_at END, due_at = NULL, waiting_since = now(),
        tag = t.tag + coalesce((
            h.shifts ->> (t.agent_type || '/' || t.priority || {_SHIFT_SUFFIX})
        )::float8, 0)
    FROM locked CROSS JOIN holds h WHERE t.id = locked.id AND h.goal_id = :goal_id
    RETURNING t.agent_type, t.priority, t.tag, t.state = 'pending' AND t.run_at IS NULL AS is_ready
), ready AS (
    SELECT agent_type, priority, min(tag) AS tag FROM back
    WHERE is_ready GROUP BY agent_type, priority, {lanes.sql_class_of("tag")}
)
SELECT (SELECT count(*) FROM {{counted}}) AS tasks, ready.* FROM (SELECT) one LEFT JOIN ready ON true
"""
_HEAD = """SELECT id, state = 'blocked' AS is_blocked FROM tasks WHERE goal_id = :goal_id AND run_at = 'infinity'
    ORDER BY agent_type, priority, tag, seq LIMIT :limit"""
_BRING_BACK_HEAD = text(BRING_BACK.format(head=_HEAD, counted="head"))
_END = text("DELETE FROM holds WHERE goal_id = :goal_id")


# `after` outlasts any submit that was under way when its goal stopped, and did not see that.
_PRUNE = text("""
DELETE FROM holds h WHERE reason = 'stopped' AND is_swept AND since < now() - make_interval(secs => :after)
  AND NOT EXISTS (SELECT FROM tasks t WHERE t.goal_id = h.goal_id)
""")


async def close(connection: AsyncConnection, goal_id: str, reason: Hold) -> None:
    """Lease no more tasks of a goal, which the caller has locked, from the commit on."""
    await connection.execute(_CLOSE, {"goal_id": goal_id, "reason": reason.value})
    notify.note(connection, notify.GOALS)


async def reopen(connection: AsyncConnection, goal_id: str, reason: Hold) -> None:
    """Lease tasks of a locked goal again, if it is held for this reason."""
    await connection.execute(_OPEN, {"goal_id": goal_id, "reason": reason.value})
    notify.note(connection, notify.GOALS)


async def change_reason(connection: AsyncConnection, goal_id: str, reason: Hold, to: Hold) -> None:
    """Go on holding the tasks of a locked goal, for another reason."""
    await connection.execute(_CHANGE_REASON, {"goal_id": goal_id, "reason": reason.value, "to": to.value})


async def lock_gate(connection: AsyncConnection, goal_ids: Collection[str]) -> Gate:
    """Return how new tasks of these goals are to be inserted, and keep their holds until the transaction ends.

    To be called before any task is locked, by the lock order.
    """
    rows = (await connection.execute(_GATE, {"goal_ids": sorted(goal_ids)})).all()
    return Gate(
        held_goals=frozenset(row.id for row in rows if row.is_held),
        stopped_goals=frozenset(row.id for row in rows if row.has_stopped),
    )


async def lock_next(connection: AsyncConnection) -> LockedHold | None:
    """Lock the oldest hold whose tasks are to be set aside or brought back; None when there is none."""
    row = (await connection.execute(_NEXT)).mappings().first()
    return LockedHold(**{**row, "reason": Hold(row["reason"])}) if row else None


async def sweep(connection: AsyncConnection, hold: LockedHold, limit: int) -> int:
    """Set aside the next tasks of a closed goal, at most `limit`; return their number."""
    values = {"goal_id": hold.goal_id, "after": hold.swept_seq, "limit": limit}
    rows = (await connection.execute(_AHEAD, values)).all()
    count = await set_aside(connection, [row.id for row in rows])
    seq = rows[-1].seq if rows else hold.swept_seq
    await connection.execute(_SWEPT, {"goal_id": hold.goal_id, "seq": seq, "done": len(rows) < limit})
    return count


async def lock_closed(connection: AsyncConnection, goal_ids: Collection[str]) -> dict[str, Hold]:
    """Lock the holds of those of these goals that are closed now, before any of their tasks; return the reasons."""
    rows = (await connection.execute(_LOCK_CLOSED, {"goal_ids": sorted(goal_ids)})).all()
    return {row.goal_id: Hold(row.reason) for row in rows}


async def set_aside(connection: AsyncConnection, ids: Sequence[UUID]) -> int:
    """Set aside those of these tasks that are not leased; return their number. Waits for claims under way.

    The caller has locked the holds of their goals: a task that is set aside without one would never come back.
    """
    return (await connection.execute(_SET_ASIDE, {"ids": list(ids)})).rowcount if ids else 0


async def ready_in_closed_goals(
    connection: AsyncConnection, since: datetime, limit: int = 1000
) -> tuple[list[Any], datetime | None]:
    """Return tasks of closed goals that became ready at `since` or later, as rows of id and goal_id.

    They came back from a worker, or were submitted while their goal was being closed. With them comes the time from
    which on others have not been looked at; None where all have been.
    """
    values = {"since": since, "limit": limit, "window": _WINDOW}
    rows = (await connection.execute(_READY_IN_CLOSED, values)).all()
    strays = [row for row in rows if row.id is not None]
    return strays, since if len(strays) == limit else rows[0].until


async def reopen_lost(connection: AsyncConnection, after: str, limit: int = 1000) -> tuple[int, str]:
    """Let tasks come back that are set aside though their goals are not held, which nothing else would look at.

    Looks at `limit` goals after this one; returns the number of goals found, and after which goal to go on.
    """
    row = (await connection.execute(_LOST, {"after": after, "limit": limit})).one()
    if row.lost:
        await connection.execute(_OPEN_LOST, {"goal_ids": row.lost})
        notify.note(connection, notify.GOALS)
    return len(row.lost), row.last


async def bring_back(connection: AsyncConnection, hold: LockedHold, limit: int) -> int:
    """Bring back the next `limit` tasks of a reopened goal, and end its hold with the last; return their number."""
    if not hold.has_shifts:
        await connection.execute(SHIFT, {"goal_id": hold.goal_id})
    count = await run(connection, _BRING_BACK_HEAD, {"goal_id": hold.goal_id, "limit": limit})
    if count < limit:
        await connection.execute(_END, {"goal_id": hold.goal_id})
    return count


async def run(connection: AsyncConnection, statement: TextClause, values: dict[str, Any]) -> int:
    """Run a statement made of BRING_BACK, and tell of what became ready; return the number of tasks it counted."""
    rows = (await connection.execute(statement, values)).mappings().all()
    notify.note_work(connection, lanes.lowest_tags(row for row in rows if row["agent_type"]))
    return int(rows[0]["tasks"])


async def live_task_ids(connection: AsyncConnection, hold: LockedHold, limit: int) -> list[UUID]:
    """Return the next live tasks of a stopped goal; without any, its hold needs no more work and is marked so.

    Goes on from the last of the former batch, as cancelled tasks stay in the index while somebody keeps an old
    snapshot. At the end it looks from the beginning again, for tasks whose submit was under way.
    """
    values = {"goal_id": hold.goal_id, "after": hold.swept_seq, "limit": limit}
    rows = (await connection.execute(_AHEAD, values)).all()
    seq, is_done = rows[-1].seq if len(rows) == limit else 0, not rows and hold.swept_seq == 0
    await connection.execute(_SWEPT, {"goal_id": hold.goal_id, "seq": seq, "done": is_done})
    return [row.id for row in rows]


async def restart_sweep(connection: AsyncConnection, goal_id: str) -> None:
    """Mark the tasks of a held goal as not set aside, so that all are looked at again."""
    await connection.execute(_SWEPT, {"goal_id": goal_id, "seq": 0, "done": False})
    notify.note(connection, notify.GOALS)


async def prune(connection: AsyncConnection, after_seconds: float = 600.0) -> int:
    """Delete holds of goals that stopped more than `after_seconds` ago and have no live tasks; return their number."""
    return (await connection.execute(_PRUNE, {"after": after_seconds})).rowcount
