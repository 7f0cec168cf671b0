"""Fingerprints of recent submits, by agent type and payload, to detect duplicates."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion

# The update changes nothing but locks the row of a stored digest: of two submits of the same work the second waits here
# for the first.
_LOCK = text("""
INSERT INTO fingerprints (digest, task_id)
SELECT * FROM unnest(CAST(:digests AS bytea[]), CAST(:ids AS uuid[])) AS new (digest, task_id) ORDER BY digest
ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest
RETURNING digest, task_id
""")

# A statement of its own after the locks, so that it sees whether the first submit has committed. A task that failed or
# was cancelled is no reason to refuse another try.
_TAKE_OVER = text("""
UPDATE fingerprints AS stored SET task_id = new.task_id, seen_at = now()
FROM unnest(CAST(:digests AS bytea[]), CAST(:ids AS uuid[])) AS new (digest, task_id)
WHERE stored.digest = new.digest AND (
    stored.seen_at <= now() - make_interval(secs => :window)
    OR NOT (EXISTS (SELECT FROM tasks t WHERE t.id = stored.task_id)
            OR EXISTS (SELECT FROM task_history h WHERE h.id = stored.task_id AND h.state = 'completed')))
RETURNING stored.digest
""")

_PRUNE = deletion("fingerprints", "seen_at < now() - interval '1 day'", "seen_at")


async def register(
    connection: AsyncConnection, tasks: Mapping[bytes, UUID], window_seconds: float
) -> dict[bytes, UUID]:
    """Register each digest for its new task; return the earlier tasks of digests registered within the window."""
    rows = await connection.execute(_LOCK, {"digests": list(tasks), "ids": list(tasks.values())})
    earlier_ids = {row.digest: row.task_id for row in rows if row.task_id != tasks[row.digest]}
    if not earlier_ids:
        return {}
    values = {"digests": list(earlier_ids), "ids": [tasks[digest] for digest in earlier_ids], "window": window_seconds}
    free_digests = set((await connection.execute(_TAKE_OVER, values)).scalars())
    return {digest: task_id for digest, task_id in earlier_ids.items() if digest not in free_digests}


async def prune(connection: AsyncConnection, limit: int = BATCH) -> int:
    """Delete fingerprints older than any window, at most `limit`; return the number deleted."""
    return (await connection.execute(_PRUNE, {"limit": limit})).rowcount
