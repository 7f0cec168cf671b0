"""Finished tasks of any number, filled by SQL as the service would have left them."""

import asyncpg

from benchmarks.testbed import Testbed

_CHUNK = 100_000

# Of today, one in a hundred failed, with the numbers that the live tasks have gone on from.
_FILL = """
INSERT INTO task_history (id, seq, state, agent_type, goal_id, priority, payload, labels, timeout_seconds, max_attempts,
                          retry_delays, request_hash, created_at, waiting_since, leased_at, finished_at, worker_id,
                          token, failures, result, error)
SELECT gen_random_uuid(), nextval(pg_get_serial_sequence('tasks', 'seq')),
       CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END,
       (ARRAY['evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection'])[1 + n % 6],
       'goal-' || (n / $3), 1 + (n / 6) % 4, '{"topic": "planetary motion"}', '{}', 600, 3, '{5,30,120}', '',
       at.finished, at.finished, at.finished, at.finished, gen_random_uuid(), 1, (n % 100 = 0)::int,
       '{"orbit": "ellipse"}', CASE WHEN n % 100 = 0 THEN '{"code": "bad_input", "message": "no numbers"}'::jsonb END
FROM generate_series($1::int, $2::int - 1) AS n
CROSS JOIN LATERAL (
    SELECT greatest(date_trunc('day', now(), 'UTC'), now() - make_interval(secs => ($4 - n) / 500.0)) AS finished
) at
"""


async def fill(testbed: Testbed, count: int, per_goal: int) -> None:
    """Add finished tasks, with fresh statistics and everything on disk."""
    connection = await asyncpg.connect(testbed.database_url)
    try:
        await connection.execute("SET synchronous_commit = off")
        for first in range(0, count, _CHUNK):
            await connection.execute(_FILL, first, min(first + _CHUNK, count), per_goal, count)
        await connection.execute("VACUUM ANALYZE task_history")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
