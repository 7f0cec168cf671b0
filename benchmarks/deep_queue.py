"""A queue of any length, filled by SQL: millions of tasks over HTTP would take longer than the measurement."""

import asyncpg

from benchmarks.testbed import Testbed

TASKS_PER_GOAL = 100
_CHUNK = 100_000

# All agent types, four priorities, many goals; ids in order of time as the service makes them, and ahead of every tag
# that it has passed.
_FILL = """
INSERT INTO tasks (id, state, agent_type, goal_id, priority, payload, labels, timeout_seconds, max_attempts,
                   retry_delays, request_hash, created_at, waiting_since, tag)
SELECT uuidv7(), 'pending',
       (ARRAY['evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection'])[1 + n % 6],
       'goal-' || (n / $3), 1 + (n / 6) % 4, '{"topic": "planetary motion"}', '{}', 600, 3, '{5,30,120}', '', now(),
       clock_timestamp(),
       (SELECT coalesce(max(virtual_time), 0) FROM lanes) + n
FROM generate_series($1::int, $2::int - 1) AS n
"""


async def fill(testbed: Testbed, count: int) -> None:
    """Add pending tasks until there are `count`, with fresh statistics and everything on disk."""
    connection = await asyncpg.connect(testbed.database_url)
    try:
        await connection.execute("SET synchronous_commit = off")
        present = await connection.fetchval("SELECT count(*) FROM tasks WHERE state = 'pending'")
        for first in range(present, count, _CHUNK):
            await connection.execute(_FILL, first, min(first + _CHUNK, count), TASKS_PER_GOAL)
        await connection.execute("VACUUM ANALYZE tasks")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
