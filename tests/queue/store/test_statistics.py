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
# An index has attributes of its own, of which only expressions have statistics of their own.
_OTHER_TARGETS = """
WITH place AS (
    SELECT coalesce(part.relid, parent) AS id
    FROM unnest(ARRAY['events', 'task_history', 'leases']::regclass[]) AS parent
    LEFT JOIN LATERAL pg_partition_tree(parent) AS part ON true
)
SELECT attrelid::regclass::text AS place, attname AS name
FROM pg_attribute LEFT JOIN pg_index ON indexrelid = attrelid
WHERE (attrelid IN (SELECT id FROM place) OR indrelid IN (SELECT id FROM place) AND indkey[attnum - 1] = 0)
  AND attnum > 0 AND NOT attisdropped
  AND attstattarget IS DISTINCT FROM CASE WHEN atttypid::regtype::text LIKE '%[]' THEN 0 ELSE 10 END
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


async def test_those_of_what_only_grows_come_from_few_rows_and_no_arrays(own_database: Database) -> None:
    """In what migrations have found, and in partitions that are made later: ANALYZE looked at each element."""
    async with own_database.transaction() as connection:
        new_names = await retention.create_ahead(connection, days=9)
    assert len(new_names) > 2
    rows = await fetch(own_database, _OTHER_TARGETS)
    assert [(row["place"], row["name"]) for row in rows] == [], "set them: ALTER COLUMN ... SET STATISTICS 10"
