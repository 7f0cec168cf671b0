"""Sizes of the tables that change with every task, with their partitions."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from benchmarks.testbed import Testbed

_TABLES = ("tasks", "task_history", "events", "leases", "queue_changes", "queue_counts")

_SIZES = """
SELECT t.name, sum(pg_table_size(p.relid)) AS own, sum(pg_indexes_size(p.relid)) AS indexes
FROM unnest($1::text[]) WITH ORDINALITY AS t (name, place)
CROSS JOIN LATERAL pg_partition_tree(t.name::regclass) p WHERE p.isleaf
GROUP BY t.name, t.place ORDER BY t.place
"""
_SIMPLE = """
SELECT relname AS name, pg_table_size(oid) AS own, pg_indexes_size(oid) AS indexes FROM pg_class WHERE relname = $1
"""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A table and its indexes, in MiB."""

    name: str
    table_mib: float
    index_mib: float


async def measure(testbed: Testbed) -> Sequence[Size]:
    """Measure the present sizes."""
    connection = await asyncpg.connect(testbed.database_url)
    try:
        partitioned = {row["name"]: row for row in await connection.fetch(_SIZES, list(_TABLES))}
        rows = [partitioned.get(name) or await connection.fetchrow(_SIMPLE, name) for name in _TABLES]
    finally:
        await connection.close()
    return [
        Size(name=row["name"], table_mib=float(row["own"]) / _MIB, index_mib=float(row["indexes"]) / _MIB)
        for row in rows
        if row is not None
    ]
