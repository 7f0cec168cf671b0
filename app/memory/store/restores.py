"""Rows of a checkpoint that is restored: the tables they belong to, their insertion, and what follows it."""

import json
from collections.abc import Collection, Mapping, Sequence
from types import GenericAlias
from typing import Any

from sqlalchemy import ARRAY, Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import tables as admin
from app.agents.store import tables as agents
from app.goals.store import tables as goals
from app.kernel.events import TaskEvent
from app.llm.store import tables as llm
from app.memory.store import resource_classes
from app.memory.store import tables as memory
from app.queue.store import lanes
from app.queue.store import tables as queue

# The parts of the content in the order in which a restore inserts them. Table objects rather than names, so that
# whoever restores has the definitions of all tables loaded, whatever else the process imports.
TABLES: Mapping[str, Table] = {
    "goals": goals.goals,
    "goal_iterations": goals.goal_iterations,
    "goal_compute": goals.goal_compute,
    "llm_spending": llm.llm_spending,
    "llm_models": llm.llm_models,
    "llm_budgets": llm.llm_budgets,
    "holds": goals.holds,
    "lanes": queue.lanes,
    "resource_lanes": queue.resource_lanes,
    "pauses": queue.pauses,
    "config_versions": admin.config_versions,
    "agent_results": agents.agent_results,
    "weights": agents.weights,
    "context": memory.context_entries,
    "tasks": queue.tasks,
    "dependencies": queue.task_dependencies,
}
_ROWS_PER_INSERT = 1000

# With no task at all it sets nothing: setval of null is null.
_SET_SEQUENCE = text("SELECT setval(pg_get_serial_sequence('tasks', 'seq'), max(seq)) FROM tasks")
_RETURN_TO_LANES = text(
    f"UPDATE tasks t SET tag = {lanes.TAG_ON_RETURN} WHERE id = ANY (CAST(:released_ids AS uuid[]))"
)
_FORGET_MODELS = text("DELETE FROM llm_models")
# Keys of `default` are confined by any key of another namespace, be it revoked; a checkpoint brings none along.
_DIVIDE = text("""
INSERT INTO keys (id, role, label, namespace, secret_hash, revoked_at)
SELECT substr(md5(gen_random_uuid()::text), 1, 12), 'reader', 'of a restored namespace', name,
       sha256(CAST(gen_random_uuid()::text AS bytea)), now()
FROM (
    SELECT substring(stored FROM '^@([^/]+)/') AS name FROM (
        SELECT goal_id AS stored FROM tasks UNION SELECT id FROM goals UNION SELECT namespace FROM context_entries
    ) named
) of_namespace WHERE name IS NOT NULL ORDER BY name LIMIT 1
""")
# A JSON row has null both for an entry whose value is the JSON null and for one without a value.
_RESTORE_NULLS = text("UPDATE context_entries SET value = CAST('null' AS jsonb) WHERE value IS NULL AND NOT deleted")
_FORGET_TURNS = text("DELETE FROM loop_ticks")
_APPEND_EVENTS = text(f"""
INSERT INTO events (kind, task_id, agent_type, goal_id, token, priority, detail)
SELECT CASE WHEN id = ANY (CAST(:released_ids AS uuid[])) THEN '{TaskEvent.RELEASED}' ELSE '{TaskEvent.SUBMITTED}' END,
       id, agent_type, goal_id, nullif(token, 0), priority, CAST(:detail AS jsonb)
FROM tasks ORDER BY seq
""")


def unknown_columns(table: Table, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Columns of the rows that the table does not have."""
    return {name for row in rows for name in row} - {column.name for column in table.c}


def column_types(table: Table) -> dict[str, type | GenericAlias]:
    """The Python type of each column, as `list[float]` of an array."""
    types = {column.name: column.type for column in table.c}
    return {
        name: GenericAlias(list, kind.item_type.python_type) if isinstance(kind, ARRAY) else kind.python_type
        for name, kind in types.items()
    }


async def insert_rows(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows as they were, identities included. Absent columns get their defaults; rows that exist stay."""
    columns = ", ".join(f'"{name}"' for name in sorted({name for row in rows for name in row}))
    query = text(
        f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE "
        f"SELECT {columns} FROM jsonb_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS jsonb)) "
        "ON CONFLICT DO NOTHING"
    )
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        batch = [dict(row) for row in rows[start : start + _ROWS_PER_INSERT]]
        await connection.execute(query, {"rows": json.dumps(batch)})


async def forget_models(connection: AsyncConnection) -> None:
    """Forget the language models that a service has listed at its start, for the list that is restored."""
    await connection.execute(_FORGET_MODELS)


async def finish_restore(connection: AsyncConnection, released_ids: Collection[str], reason: str) -> None:
    """After the rows are in: continue the sequence of tasks, repair JSON nulls, and append an event for each task.

    Resource classes are those of the tasks, and released tasks go behind what their lanes have come to.
    What turns of duties remember is forgotten, as they took place in a database without these tasks.
    """
    await connection.execute(_SET_SEQUENCE)
    await connection.execute(_RESTORE_NULLS)
    await connection.execute(_DIVIDE)
    await resource_classes.restore(connection)
    await connection.execute(_RETURN_TO_LANES, {"released_ids": list(released_ids)})
    await connection.execute(_FORGET_TURNS)
    detail = json.dumps({"reason": reason})
    await connection.execute(_APPEND_EVENTS, {"released_ids": list(released_ids), "detail": detail})
