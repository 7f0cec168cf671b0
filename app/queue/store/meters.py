"""Meters: near the end of its budget the tasks of a goal are set aside, and let through one by one.

A meter is part of a hold, and is locked with it. Lock order: goals, holds, tasks by id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.agents import AgentType
from app.queue.store import holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Number of attempts allowed to a metered goal in all; ready once its tasks have been set aside.

    Of the tasks that were let through `live_ids` have not ended, and `waiting_tasks` could be leased now, of which no
    present worker can run `stuck_tasks`. With `has_free_tasks` some that are set aside could be let through.
    """

    is_ready: bool
    allowed_attempts: int
    live_ids: Sequence[UUID] = ()
    waiting_tasks: int = 0
    stuck_tasks: int = 0
    has_free_tasks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Agent types with the resource classes of tasks, 0 for none, that present workers can run."""

    kinds: Collection[tuple[AgentType, int]] = ()

    def values(self) -> dict[str, list[Any]]:
        """The parameters of a statement."""
        return {"agents": [agent.value for agent, _ in self.kinds], "classes": [number for _, number in self.kinds]}


_IS_SERVED = """(agent_type, coalesce(resource_class, 0)) IN (
    SELECT * FROM unnest(CAST(:agents AS text[]), CAST(:classes AS smallint[]))
)"""

# Closed until its tasks have been set aside: while claims could still see them, they could exceed the meter.
_CREATE = text("""
INSERT INTO holds AS stored (goal_id, reason, is_metered, base) VALUES (:goal_id, 'budget', true, :base)
ON CONFLICT (goal_id) DO UPDATE
SET is_metered = true, is_closed = NOT stored.is_swept, released = 0, base = excluded.base, released_ids = '{}'
WHERE stored.reason = 'budget'
""")

# Those only that could run at once: any other would keep the room of one that could. Blocked ones are not in the index.
_IS_FREE = """goal_id = {goal} AND run_at = 'infinity' AND blockers = 0 AND state = 'pending'
      AND (due_at IS NULL OR due_at <= now())
    ORDER BY priority DESC, tag, seq"""
_READ = text(f"""
SELECT h.goal_id, h.is_closed, h.released + h.base AS allowed_attempts, live.ids AS live_ids, live.waiting_tasks,
       live.stuck_tasks, free.goal_id IS NOT NULL AS has_free_tasks
FROM holds h CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(released.id), '{{}}') AS ids,
           count(*) FILTER (WHERE task.state = 'pending' AND task.run_at IS NULL) AS waiting_tasks,
           count(*) FILTER (WHERE task.state = 'pending' AND task.run_at IS NULL AND NOT task.is_served) AS stuck_tasks
    FROM (SELECT DISTINCT unnest(h.released_ids)) AS released (id)
    CROSS JOIN LATERAL (
        SELECT state, run_at, {_IS_SERVED} AS is_served FROM tasks WHERE tasks.id = released.id OFFSET 0
    ) task
) live LEFT JOIN LATERAL (SELECT goal_id FROM tasks WHERE {_IS_FREE.format(goal="h.goal_id")} LIMIT 1) free ON true
WHERE h.is_metered AND h.goal_id IN (SELECT unnest(CAST(:goal_ids AS text[])))
""")

_LOCK = text("SELECT FROM holds WHERE goal_id = :goal_id FOR UPDATE")

_COUNT_RELEASED = text("""
UPDATE holds SET released = released + :count, released_ids = released_ids || CAST(:ids AS uuid[])
WHERE goal_id = :goal_id
""")

_SETTLE = text("""
UPDATE holds SET base = :allowed - released, released_ids = CAST(:ids AS uuid[]) WHERE goal_id = :goal_id
""")

_FREE = f"""
SELECT id, priority, tag, seq, {_IS_SERVED} AS is_served FROM tasks WHERE {_IS_FREE.format(goal=":goal_id")} LIMIT"""
_CHOOSE = text(f"{_FREE} :limit")
# Of so many of the most urgent.
_LOOK_AT = 1000
_CHOOSE_SERVED = text(f"""
SELECT id FROM ({_FREE} {_LOOK_AT}) urgent WHERE is_served ORDER BY priority DESC, tag, seq LIMIT :limit
""")
_BRING_BACK = text(
    holds.BRING_BACK.format(head="SELECT unnest(CAST(:ids AS uuid[])) AS id, false AS is_blocked", counted="back")
)
_LOCK_TASKS = text("SELECT FROM tasks WHERE id = ANY (CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")


async def create(connection: AsyncConnection, goal_id: str, attempts: int) -> None:
    """Meter a locked goal from now on, after so many attempts; a paused or stopped goal stays as it is."""
    await connection.execute(_CREATE, {"goal_id": goal_id, "base": attempts})
    notify.note(connection, notify.GOALS)


async def read(connection: AsyncConnection, goal_ids: Collection[str], served: Served) -> dict[str, Meter]:
    """Return the meters of those of the goals that are metered."""
    rows = (await connection.execute(_READ, {"goal_ids": list(goal_ids), **served.values()})).mappings()
    return {
        row["goal_id"]: Meter(
            is_ready=not row["is_closed"],
            allowed_attempts=row["allowed_attempts"],
            live_ids=row["live_ids"],
            waiting_tasks=row["waiting_tasks"],
            stuck_tasks=row["stuck_tasks"],
            has_free_tasks=row["has_free_tasks"],
        )
        for row in rows
    }


async def lock(connection: AsyncConnection, goal_id: str, served: Served) -> Meter | None:
    """Lock the hold of a locked goal, and return its meter; None where it is not metered any more."""
    await connection.execute(_LOCK, {"goal_id": goal_id})
    return (await read(connection, [goal_id], served)).get(goal_id)


async def settle(connection: AsyncConnection, goal_id: str, meter: Meter, attempts: int) -> None:
    """Allow a metered goal, whose hold is locked, as many attempts as have begun and tasks wait; forget ended ones."""
    values = {"goal_id": goal_id, "allowed": attempts + meter.waiting_tasks, "ids": list(meter.live_ids)}
    await connection.execute(_SETTLE, values)


async def choose(connection: AsyncConnection, goal_id: str, count: int, spare: int, served: Served) -> list[UUID]:
    """Return the `count` tasks of a metered goal that are to be let through next: the most urgent that could run.

    Those that present workers can run come first, and of them `spare` more.
    """
    values = {"goal_id": goal_id, **served.values()}
    urgent = (await connection.execute(_CHOOSE, {**values, "limit": count})).all() if count else []
    if not spare and all(row.is_served for row in urgent):
        return [row.id for row in urgent]
    ids = list((await connection.execute(_CHOOSE_SERVED, {**values, "limit": count + spare})).scalars())
    others = [row.id for row in urgent if row.id not in ids]
    return ids + others[: max(0, count - len(ids))]


async def lock_tasks(connection: AsyncConnection, ids: Collection[UUID]) -> None:
    """Lock tasks of several goals, of which each is changed by itself later, in the order of all locks of tasks."""
    if ids:
        await connection.execute(_LOCK_TASKS, {"ids": list(ids)})


async def let_through(connection: AsyncConnection, goal_id: str, ids: Sequence[UUID]) -> int:
    """Bring back these tasks of a metered goal whose hold is locked; return the number that were still set aside."""
    await connection.execute(holds.SHIFT, {"goal_id": goal_id})
    released_count = await holds.run(connection, _BRING_BACK, {"goal_id": goal_id, "ids": list(ids)})
    await connection.execute(_COUNT_RELEASED, {"goal_id": goal_id, "count": released_count, "ids": list(ids)})
    return released_count
