"""Finished tasks: the one way for a task to enter `task_history`, and reads by id."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.namespaces import WITHIN
from app.queue.store.tables import KEPT_COLUMNS

_STATES = text(f"SELECT id, state FROM task_history WHERE id = ANY (:ids) AND {WITHIN}")


def entry(source: str, state: str, **outcome: str) -> str:
    """Return the INSERT that takes deleted tasks into history, to stand in the statement that deletes them.

    `source` is a FROM clause in which `deleted` has the columns of `tasks`. `state` is an SQL expression, as are those
    of `outcome`: further columns that the end of the task sets; all others go along as they are.
    """
    columns = {name: f"deleted.{name}" for name in KEPT_COLUMNS}
    columns |= {"state": state, "finished_at": "now()", **outcome}
    return f"INSERT INTO task_history ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM {source}"


async def states(connection: AsyncConnection, ids: Collection[UUID], namespace: str | None = None) -> dict[UUID, str]:
    """Return the final states of those of the tasks, of this namespace if one is given, that have finished."""
    rows = (await connection.execute(_STATES, {"ids": list(ids), "namespace": namespace})).all() if ids else []
    return {row.id: row.state for row in rows}
