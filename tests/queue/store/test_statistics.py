"""Statistics are made every few seconds under load, so they must cost little."""

import re

from app.db import retention
from app.db.database import Database
from tests.support.sql import fetch

_FILL = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at)
SELECT gen_random_uuid(), 'pending', 'ranking', 2, '{}', '{}', 60, 3, '{}', '', now() FROM generate_series(1, 5000)
"""
_COUNTED_ARRAYS = """
SELECT leaf.relid::regclass::text AS table, attname
FROM unnest(ARRAY['events', 'task_history']::regclass[]) AS parent, pg_partition_tree(parent) AS leaf
JOIN pg_attribute ON attrelid = leaf.relid
WHERE atttypid::regtype::text LIKE '%[]' AND attnum > 0 AND attstattarget IS DISTINCT FROM 0
"""


async def test_those_of_tasks_come_from_few_rows(database: Database) -> None:
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


async def test_none_are_made_of_arrays_in_events_and_history(own_database: Database) -> None:
    """In partitions that a migration has found, and in those that are made later: ANALYZE looked at each element."""
    async with own_database.transaction() as connection:
        new_names = await retention.create_ahead(connection, days=9)
    assert len(new_names) > 2
    rows = await fetch(own_database, _COUNTED_ARRAYS)
    assert [(row["table"], row["attname"]) for row in rows] == []
