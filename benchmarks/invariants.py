"""Invariants after all cycles of a run, from the workers' answers and from the database: none may be broken."""

from collections.abc import Mapping

import asyncpg

from benchmarks.cycles import Ledger
from benchmarks.figures import Figure
from benchmarks.http_client import connect
from benchmarks.testbed import Testbed

# By the ledger of leases, which knows the order of a worker's own, and by history: none begins before the one before it
# has ended. Times are those of the database.
_OVERLAPS = """
SELECT count(*) FROM (
    SELECT h.finished_at, lead(l.leased_at) OVER (PARTITION BY l.worker_id ORDER BY l.n) AS following
    FROM leases l JOIN task_history h ON h.id = l.task_id AND h.worker_id = l.worker_id
) l WHERE following < finished_at
"""
_QUERIES: Mapping[str, str] = {
    "pending": "SELECT count(*) FROM tasks WHERE state = 'pending'",
    "held": "SELECT count(*) FROM tasks WHERE state IN ('assigned', 'executing')",
    "finished": "SELECT count(*) FROM task_history WHERE state = 'completed'",
    "repeated": "SELECT count(*) - count(DISTINCT id) FROM task_history",
    "overlapping": _OVERLAPS,
}


async def check(testbed: Testbed, ledger: Ledger, *, finished_otherwise: int) -> list[Figure]:
    """Figures that must all be 0; `finished_otherwise` are the tasks in history that no worker of the ledger did."""
    counts = await _counts(testbed)
    given = len(ledger.leased_tasks)
    counted_pending = await _pending_by_service(testbed)
    broken = {
        "tasks given to more than one worker": given - len(set(ledger.leased_tasks)),
        "tasks given and not completed": given - ledger.completed_count,
        "completions accepted, less those in history": ledger.completed_count + finished_otherwise - counts["finished"],
        "tasks in history twice": counts["repeated"],
        "leases of a worker that overlap": counts["overlapping"],
        "leases held at the end": counts["held"],
        "pending by the service's counts, less pending": counted_pending - counts["pending"],
    }
    return [Figure(name=name, value=abs(value), target=0, more_is_better=False) for name, value in broken.items()]


async def count_finished(testbed: Testbed) -> int:
    """Number of completed tasks in history."""
    return (await _counts(testbed, "finished"))["finished"]


async def _counts(testbed: Testbed, *names: str) -> dict[str, int]:
    connection = await asyncpg.connect(testbed.database_url)
    try:
        return {name: int(await connection.fetchval(_QUERIES[name])) for name in names or _QUERIES}
    finally:
        await connection.close()


async def _pending_by_service(testbed: Testbed) -> int:
    reader = await connect(testbed.port, testbed.key)
    queues = (await reader.get("/queues")).json()
    reader.close()
    return sum(phases["pending"] for lanes in queues["queues"].values() for phases in lanes.values())
