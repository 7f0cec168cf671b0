"""Releases of leases that no worker has heard of, many by one statement."""

import json
from collections.abc import Mapping

from app.db.hot_path import HotConnection, columns
from app.kernel.events import TaskEvent
from app.kernel.ids import WorkerId
from app.kernel.lanes import Lane
from app.queue.store import counters, lanes
from app.queue.store.claims import Lease

# Exactly as the claim has left it: a request that is repeated at another replica renews its lease, as a start does.
_UNTOUCHED = """t.id = c.task_id AND t.token = c.token AND t.worker_id IS NOT DISTINCT FROM c.worker_id
    AND date_part('epoch', t.lease_expires_at) = c.expires_at"""

# It counts neither as an attempt nor as a return: no worker has had the task.
_RELEASE = f"""
WITH call AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::float8[], $4::uuid[])
        AS c (task_id, token, expires_at, worker_id)
), held AS MATERIALIZED (
    SELECT t.id, t.state, t.worker_id, t.leased_at FROM tasks t JOIN call c ON {_UNTOUCHED} ORDER BY t.id
    FOR UPDATE OF t SKIP LOCKED
), released AS (
    UPDATE tasks t
    SET state = 'pending', worker_id = NULL, leased_at = NULL, lease_expires_at = NULL, deadline_at = NULL,
        run_at = NULL, waiting_since = now(), tag = {lanes.TAG_ON_RETURN}
    FROM held WHERE t.id = held.id AND {counters.COUNTS_ITSELF}
    RETURNING t.id, t.token, t.failures, t.agent_type, t.goal_id, t.priority, t.submitted_priority, t.tag,
              held.worker_id, held.leased_at, held.state
), recorded AS (
    INSERT INTO task_attempts (task_id, attempt, token, worker_id, leased_at, outcome)
    SELECT id, failures + 1, token, worker_id, leased_at, 'released' FROM released
), logged AS (
    INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token, detail, priority, seconds)
    SELECT '{TaskEvent.RELEASED}', id, agent_type, goal_id, worker_id, token, $5::jsonb, priority,
           greatest(extract(epoch FROM now() - leased_at), 0)
    FROM released
), counted AS (
    {counters.entry(counters.Move("released", "state", "'pending'"))}
)
SELECT c.worker_id, released.agent_type, released.priority, released.tag
FROM call c JOIN tasks t ON {_UNTOUCHED} LEFT JOIN released ON released.id = t.id
"""


async def release(
    connection: HotConnection, leases: Mapping[WorkerId, Lease], reason: str
) -> tuple[set[WorkerId], dict[Lane, float]]:
    """Return tasks to their lanes, unless their leases were renewed since they were claimed.

    Returns the workers whose leases are locked by somebody, and the lanes with the lowest tags that came back.
    """
    rows = await connection.fetch(
        _RELEASE,
        *columns(list(leases.values()), "task_id", "token", "expires_at"),
        list(leases),
        json.dumps({"reason": reason}),
    )
    locked = {WorkerId(row["worker_id"]) for row in rows if row["tag"] is None}
    return locked, lanes.lowest_tags([row for row in rows if row["tag"] is not None])
