"""What was submitted lately, by agent type and payload, so that a duplicate is noticed."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion

# Locks what is known already: of two submits of the same work the second waits here for the first.
_LOCK = text("""
INSERT INTO fingerprints AS known (digest, task_id)
SELECT * FROM unnest(CAST(:digests AS bytea[]), CAST(:ids AS uuid[])) AS new (digest, task_id) ORDER BY digest
ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
RETURNING digest, task_id
""")

# A statement of its own after the locks, so that it sees whether the first submit came about. A task that failed or was
# cancelled is no reason to refuse another try.
_TAKE_OVER = text("""
UPDATE fingerprints AS known SET task_id = new.task_id, seen_at = now()
FROM unnest(CAST(:digests AS bytea[]), CAST(:ids AS uuid[])) AS new (digest, task_id)
WHERE known.digest = new.digest AND (
    known.seen_at <= now() - make_interval(secs => :window)
    OR NOT (EXISTS (SELECT FROM tasks t WHERE t.id = known.task_id)
            OR EXISTS (SELECT FROM task_history h WHERE h.id = known.task_id AND h.state = 'completed')))
RETURNING known.digest
""")

_PRUNE = deletion("fingerprints", "seen_at < now() - interval '1 day'", "seen_at")


async def duplicates(
    connection: AsyncConnection, tasks: Mapping[bytes, UUID], window_seconds: float
) -> dict[bytes, UUID]:
    """Take each digest for its new task; of those taken within the window already, returns the task that has it."""
    rows = await connection.execute(_LOCK, {"digests": list(tasks), "ids": list(tasks.values())})
    others = {row.digest: row.task_id for row in rows if row.task_id != tasks[row.digest]}
    if not others:
        return {}
    values = {"digests": list(others), "ids": [tasks[digest] for digest in others], "window": window_seconds}
    taken_over = set((await connection.execute(_TAKE_OVER, values)).scalars())
    return {digest: task_id for digest, task_id in others.items() if digest not in taken_over}


async def prune(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Forget what no window reaches back to; returns how many."""
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount
