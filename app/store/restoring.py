"""Rows of a checkpoint, put back into empty tables."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.tables import metadata

_ROWS = 1000

_TELL = text("""
INSERT INTO events (kind, task_id, agent_type, goal_id, token, priority, detail)
SELECT CASE WHEN id = ANY (CAST(:released AS uuid[])) THEN 'task.released' ELSE 'task.submitted' END,
       id, agent_type, goal_id, nullif(token, 0), priority, CAST(:detail AS jsonb)
FROM tasks ORDER BY seq
""")
_NEXT = text("SELECT setval(pg_get_serial_sequence('tasks', 'seq'), max(seq)) FROM tasks")
# JSON does not tell a value that is null from one that is not there.
_NULLS = text("UPDATE context_entries SET value = CAST('null' AS jsonb) WHERE value IS NULL AND NOT deleted")


def unknown_columns(table: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Columns of the rows that the table does not have."""
    return {name for row in rows for name in row} - {column.name for column in metadata.tables[table].c}


async def load(connection: AsyncConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows as they were; columns that they do not know get their defaults. What is there already stays."""
    columns = sorted({name for row in rows for name in row})
    listed = ", ".join(f'"{name}"' for name in columns)
    query = text(
        f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE "
        f"SELECT {listed} FROM jsonb_populate_recordset(CAST(NULL AS {table}), CAST(:rows AS jsonb)) "
        "ON CONFLICT DO NOTHING"
    )
    for start in range(0, len(rows), _ROWS):
        await connection.execute(query, {"rows": json.dumps([dict(row) for row in rows[start : start + _ROWS]])})


async def settle(connection: AsyncConnection, released: Collection[str], reason: str) -> None:
    """After the rows are in: go on counting tasks where they end, and tell what has become of each."""
    await connection.execute(_NEXT)
    await connection.execute(_NULLS)
    await connection.execute(_TELL, {"released": list(released), "detail": json.dumps({"reason": reason})})
