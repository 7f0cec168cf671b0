"""Dead letters for tests: a task that a worker has really failed, or thousands written straight into history."""

from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.database import Database
from app.queue.service.leases import Failure, fail
from app.queue.store.claims import Lease
from tests.support.factories import fence, holding
from tests.support.sql import fetch

_FILL = """
INSERT INTO task_history (id, seq, state, agent_type, goal_id, priority, payload, labels, timeout_seconds, max_attempts,
    retry_delays, request_hash, created_at, failures, rescues, token, worker_id, leased_at, finished_at, error)
SELECT gen_random_uuid(), nextval(pg_get_serial_sequence('tasks', 'seq')), $2, 'generation', $3, 2,
       jsonb_build_object('n', n), $4::jsonb, 60, 3, '{}', '', now(), 3, 1, 4, gen_random_uuid(), now(),
       coalesce($5, now()), jsonb_build_object('code', $6::text, 'message', 'no')
FROM generate_series(1, $1) AS n RETURNING id, seq
"""


async def failed(database: Database, code: str = "bad", **changes: Any) -> tuple[UUID, Lease]:
    """A task that has failed for good, and the lease under which it did."""
    worker_id, lease = await holding(database, **changes)
    async with database.transaction() as connection:
        wrong = Failure(code=code, message="it cannot be done", retryable=False)
        await fail(connection, fence(worker_id, lease), wrong)
    return lease.task_id, lease


async def fill(
    database: Database,
    count: int,
    *,
    state: str = "failed",
    goal_id: str | None = "goal",
    labels: str = "{}",
    finished_at: datetime | None = None,
    code: str = "bad",
) -> list[UUID]:
    """Ids of finished tasks, the oldest first."""
    rows = await fetch(database, _FILL, count, state, goal_id, labels, finished_at, code)
    return [row["id"] for row in sorted(rows, key=lambda row: row["seq"])]
