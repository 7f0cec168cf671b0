"""Ledger of leases: a worker holds the task in its last line, as long as that task still agrees.

Lines are only added, and read from the end, so a look costs the same however many leases a worker has had, also while
an old snapshot keeps vacuum from removing dead rows. An index of live tasks by worker would collect a dead entry with
every lease, all of them at the one place where every look begins.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion
from app.kernel.ids import TaskId, WorkerId

# Of more workers the oldest are forgotten, whose lines are then looked up.
_MAX_WORKERS = 20_000


@dataclass(slots=True)
class GivenLeases:
    """Memory of one process: the task and the number of the last lease that it gave to each worker.

    Where that lease is over, the claim that follows at once need not look for the worker's last line: it writes the
    next one, which fails where another process has given the worker a lease meanwhile. It would not fail only if a
    hundred more leases had followed until then, so that the line was trimmed away.
    """

    _last: dict[WorkerId, tuple[TaskId, int]] = field(default_factory=dict)

    def note(self, worker_id: WorkerId, task_id: TaskId, number: int) -> None:
        """Note the last lease of a worker."""
        self._last[worker_id] = task_id, number
        if len(self._last) > _MAX_WORKERS:
            del self._last[next(iter(self._last))]

    def clear(self) -> None:
        """Forget all, as a server that was promoted may have lost the last leases, and give others by their numbers."""
        self._last.clear()

    def take(self, worker_id: WorkerId, task_id: TaskId) -> int | None:
        """The number of the worker's last lease, if it was of this task; only the first call is told."""
        last_task_id, number = self._last.pop(worker_id, (None, None))
        return number if last_task_id == task_id else None


_LINE = "l.n, l.task_id, l.token, l.request_id"
WITH_TIME = f"{_LINE}, l.leased_at"


def last_lease(worker: str, condition: str = "true", line: str = _LINE) -> str:
    """Return a subquery: the last line of the ledger for the worker that the SQL expression names.

    Where the condition does not hold, nothing is looked up.
    """
    return f"(SELECT {line} FROM leases l WHERE {condition} AND l.worker_id = {worker} ORDER BY l.n DESC LIMIT 1)"


def held_task(worker: str, columns: str = "*") -> str:
    """Return a subquery, lateral to `last`: the live task that the worker holds by that line, or no row."""
    # OFFSET 0 keeps it one look by the task's id. Otherwise the planner may join all live tasks, and walk over all that
    # is dead among them, as soon as it takes them for few or the workers for many.
    return (
        f"(SELECT {columns} FROM tasks held WHERE held.id = last.task_id AND held.token = last.token "
        f"AND held.worker_id IS NOT DISTINCT FROM {worker} OFFSET 0)"
    )


def last_and_held(worker: str, columns: str = "*", condition: str = "true", line: str = _LINE) -> str:
    """Return joins of `last`, the worker's last line, and `held`, the live task that it holds; both may be null.

    `line` are the columns of the line and `columns` those of the task: a statement that runs thousands of times a
    second names what it needs, as each column is looked up whenever it starts. Both are null where the condition does
    not hold.
    """
    return f"""LEFT JOIN LATERAL {last_lease(worker, condition, line)} last ON true
    LEFT JOIN LATERAL {held_task(worker, columns)} held ON true"""


# A goal's tasks may have ended since, and the ledger keeps the last lines of each worker alone.
_GOALS = text("""
SELECT DISTINCT goal_id FROM (
    SELECT t.goal_id FROM leases l JOIN tasks t ON t.id = l.task_id
    WHERE l.worker_id = :worker_id AND l.leased_at > now() - make_interval(secs => :seconds)
    UNION ALL
    SELECT h.goal_id FROM leases l JOIN task_history h ON h.id = l.task_id
    WHERE l.worker_id = :worker_id AND l.leased_at > now() - make_interval(secs => :seconds)
) held WHERE goal_id IS NOT NULL
""")

# By ctid and OFFSET 0, which keep it two probes for each worker: joined, the lines that are kept would be read as well.
# Those of workers that ended longer ago go with these.
_TRIM = text(f"""
WITH deleted AS (
    DELETE FROM leases WHERE ctid = ANY (ARRAY(
        SELECT line.ctid FROM workers w CROSS JOIN LATERAL {last_lease("w.id")} last
        CROSS JOIN LATERAL (
            SELECT ctid FROM leases
            WHERE worker_id = w.id AND n <= last.n - :keep AND n > last.n - :keep - :reach OFFSET 0
        ) line
        WHERE w.ended_at IS NULL OR w.ended_at > now() - interval '1 hour' LIMIT :limit
    ))
    RETURNING worker_id
)
SELECT coalesce(sum(lines), 0)::bigint AS total, coalesce(max(lines), 0) AS most
FROM (SELECT count(*) AS lines FROM deleted GROUP BY worker_id) of_worker
""")
# Of one turn: after a long break all might take longer than a statement may.
TRIMMED = 50_000

# Before the workers themselves: to look for lines without a worker would be to read all lines.
_PRUNE = deletion(
    "leases",
    "worker_id = ANY (ARRAY(SELECT id FROM workers WHERE ended_at < now() - make_interval(days => :days)))",
    "worker_id, n",
)


async def recent_goals(connection: AsyncConnection, worker_id: UUID, seconds: float) -> frozenset[str]:
    """The goals of the tasks that a worker was leased lately, as far back as the ledger goes."""
    values = {"worker_id": worker_id, "seconds": seconds}
    return frozenset((await connection.execute(_GOALS, values)).scalars())


async def trim(connection: AsyncConnection, reach: int, keep: int = 100) -> tuple[int, int]:
    """Delete all but the last `keep` lines of each worker, at most TRIMMED; return their number, and the most of one.

    It looks no further back than `reach` lines: there are only dead entries of lines that were deleted before.
    """
    row = (await connection.execute(_TRIM, {"keep": keep, "reach": reach, "limit": TRIMMED})).one()
    return row.total, row.most


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Delete lines of workers that ended more than `days` ago, at most `limit`; return the number deleted."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount
