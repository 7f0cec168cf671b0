"""Making room for urgent work: the least urgent that waits goes to the dead letters, where everybody can see it."""

import json

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.tasks import Priority
from app.store import announcements, dependencies
from app.store.tables import KEPT_COLUMNS

_KEPT = ", ".join(KEPT_COLUMNS)

# The newest of a priority go first: they have waited least.
_DISPLACE = text(f"""
WITH ours AS MATERIALIZED (
    SELECT id FROM tasks WHERE priority = :priority AND priority <= 4 AND state = 'pending' AND run_at IS NULL
    ORDER BY waiting_since DESC LIMIT :count FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tasks t USING ours WHERE t.id = ours.id RETURNING t.*
), kept AS (
    INSERT INTO task_history ({_KEPT}, state, finished_at, error)
    SELECT {_KEPT}, 'failed', now(), CAST(:error AS jsonb) FROM gone
), told AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, priority, detail)
    SELECT 'task.displaced', id, agent_type, goal_id, priority, CAST(:error AS jsonb) FROM gone
)
SELECT id, has_dependents FROM gone
""")


async def displace(connection: AsyncConnection, *, below: Priority, count: int) -> int:
    """Move up to `count` waiting tasks of a lower priority to the dead letters; returns how many were moved."""
    message = "the queue was full and more urgent work came"
    error = json.dumps({"code": "displaced", "message": message, "retryable": True})
    displaced = 0
    for priority in sorted(p for p in Priority if p < below):
        values = {"priority": priority.value, "count": count - displaced, "error": error}
        rows = (await connection.execute(_DISPLACE, values)).all()
        displaced += len(rows)
        for row in rows:
            if row.has_dependents:
                await dependencies.cancel_dependents(connection, row.id, "was displaced by more urgent work")
        if displaced >= count:
            break
    if displaced:
        announcements.note(connection, announcements.EVENTS)
    return displaced
