"""How many live tasks there are, by lane and phase, at a cost that does not grow with their number.

A trigger on `tasks` adds a line for every change; a duty folds old lines into totals. A count is the totals and the
lines that are not folded yet, read in one statement, so it is exact at any moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.agents import AgentType
from app.domain.lanes import Lane
from app.domain.tasks import Priority

_NAME = "counts"
# Tasks in these phases make up the queue; the others are with a worker.
QUEUED = frozenset({"blocked", "delayed", "pending"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Live tasks of a lane that are in one phase: a task's state, or `delayed` for a pending one with a future run_at."""

    lane: Lane
    phase: str
    tasks: int


_XMIN = "(pg_snapshot_xmin(pg_current_snapshot())::text)::bigint + convener_transaction_offset()"

_READ = text(f"""
SELECT agent_type, priority, phase, sum(tasks)::bigint AS tasks FROM (
    SELECT agent_type, priority, phase, tasks FROM queue_counts
    UNION ALL
    SELECT agent_type, priority, phase, tasks FROM queue_changes
    WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)
) known GROUP BY agent_type, priority, phase HAVING sum(tasks) <> 0
""")

# Below the oldest running transaction no line can appear any more, so none is left behind and none is folded twice.
_FOLD = text(f"""
WITH mark AS MATERIALIZED (
    SELECT coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0) AS since, {_XMIN} AS until
), taken AS (
    DELETE FROM queue_changes c USING mark WHERE c.transaction >= mark.since AND c.transaction < mark.until
    RETURNING c.agent_type, c.priority, c.phase, c.tasks
), folded AS (
    INSERT INTO queue_counts AS known (agent_type, priority, phase, tasks)
    SELECT agent_type, priority, phase, sum(tasks) FROM taken GROUP BY agent_type, priority, phase
    HAVING sum(tasks) <> 0
    ON CONFLICT (agent_type, priority, phase) DO UPDATE SET tasks = known.tasks + excluded.tasks
), marked AS (
    INSERT INTO folds (name, transaction) SELECT '{_NAME}', until FROM mark
    WHERE EXISTS (SELECT FROM taken)
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)
SELECT count(*) FROM taken
""")

_ACTUAL = text("""
SELECT agent_type, priority, convener_phase(state, run_at) AS phase, count(*) AS tasks FROM tasks GROUP BY 1, 2, 3
""")

_ALONE = text("SELECT pg_advisory_xact_lock(7241, 8)")


async def read(connection: AsyncConnection) -> list[Count]:
    """All counts that are not zero, as of this statement."""
    return _counts((await connection.execute(_READ)).mappings())


async def fold(connection: AsyncConnection) -> int:
    """Fold the lines of transactions that are over; returns how many. One at a time: the caller holds a duty's turn."""
    return int((await connection.execute(_FOLD)).scalar_one())


async def actual(connection: AsyncConnection) -> list[Count]:
    """The truth, by counting every task: for checks only."""
    return _counts((await connection.execute(_ACTUAL)).mappings())


async def queue_up(connection: AsyncConnection) -> None:
    """Wait until no other transaction is past this line; they and we then see each other's tasks."""
    await connection.execute(_ALONE)


def queued(counts: Iterable[Count]) -> dict[Priority, int]:
    """Tasks that wait in the queue, by priority."""
    depth = dict.fromkeys(Priority, 0)
    for count in counts:
        if count.phase in QUEUED:
            depth[count.lane.priority] += count.tasks
    return depth


def _counts(rows: Iterable[Mapping[str, Any] | Any]) -> list[Count]:
    return [
        Count(
            lane=Lane(agent_type=AgentType(row["agent_type"]), priority=Priority(row["priority"])),
            phase=row["phase"],
            tasks=row["tasks"],
        )
        for row in rows
    ]
