"""Statistics of tasks are made every few seconds, so they must not read the whole queue each time."""

import re

from app.db.database import Database

_FILL = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at)
SELECT gen_random_uuid(), 'pending', 'ranking', 2, '{}', '{}', 60, 3, '{}', '', now() FROM generate_series(1, 5000)
"""


async def test_they_come_from_few_rows(database: Database) -> None:
    """A column, or an expression in an index, with the target of the server makes PostgreSQL read ten times as many."""
    connection, messages = await database.connect(), list[str]()
    try:
        connection.add_log_listener(lambda _, message: messages.append(str(message)))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(_FILL)
        await connection.execute("ANALYZE VERBOSE tasks")
        await transaction.rollback()
    finally:
        await connection.close()
    sizes = [int(size) for message in messages for size in re.findall(r"(\d+) rows in sample", message)]
    assert sizes == [3000], "a migration that adds a column sets its target: ALTER COLUMN ... SET STATISTICS 10"
