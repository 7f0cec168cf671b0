"""Which live task a worker holds: the last line of the ledger of leases, as long as the task still agrees with it.

The ledger is only added to and read from its end, so the answer costs the same however many leases a worker has had,
also while somebody's old snapshot keeps dead rows from being cleaned up.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion


def last_lease(worker: str) -> str:
    """A subquery: the last line of the ledger for the worker that the SQL expression names."""
    return (
        "(SELECT l.n, l.task_id, l.token, l.request_id FROM leases l "
        f"WHERE l.worker_id = {worker} ORDER BY l.n DESC LIMIT 1)"
    )


def held(worker: str) -> str:
    """A subquery, lateral to `last`: the live task that the worker holds by the last line of the ledger, or nothing.

    OFFSET 0 keeps it one look by the task's id. Otherwise the planner may join all live tasks, and walk over all that
    is dead among them, as soon as it takes them for few or the workers for many.
    """
    return (
        "(SELECT * FROM tasks held WHERE held.id = last.task_id AND held.token = last.token "
        f"AND held.worker_id IS NOT DISTINCT FROM {worker} OFFSET 0)"
    )


def joined(worker: str) -> str:
    """Joins `last`, the last line of the ledger, and `held`, the live task that the worker holds; both may be null."""
    return f"""LEFT JOIN LATERAL {last_lease(worker)} last ON true
    LEFT JOIN LATERAL {held(worker)} held ON true"""


_TRIM = text(f"""
DELETE FROM leases old USING workers w CROSS JOIN LATERAL {last_lease("w.id")} last
WHERE old.worker_id = w.id AND old.n <= last.n - :keep AND old.n > last.n - :keep - :reach
""")

_FORGET = deletion(
    "leases", "NOT EXISTS (SELECT FROM workers w WHERE w.id = leases.worker_id)", "leases.worker_id, leases.n"
)


async def trim(connection: AsyncConnection, keep: int = 100, reach: int = 20_000) -> int:
    """Keep the last lines of each worker in the ledger; returns how many were dropped.

    Looks no further back than `reach` lines, more than a worker writes between two turns: further back are only the
    dead entries of what was dropped before.
    """
    return (await connection.execute(_TRIM, {"keep": keep, "reach": reach})).rowcount


async def forget(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Drop the lines of workers that nobody remembers; returns how many."""
    return (await connection.execute(_FORGET, {"limit": limit})).rowcount
