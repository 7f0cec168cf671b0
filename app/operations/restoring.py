"""Putting a checkpoint into an empty database."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.tasks import LEASED
from app.domain.transfers import Refused, at_rest
from app.operations.checkpoints import examine
from app.store import restoring, schema, transfers
from app.store.database import Database, now

# Rows go in in this order; the names are those of the parts, and of their tables where these differ.
_TABLES: Mapping[str, str] = {
    "goals": "goals",
    "goal_iterations": "goal_iterations",
    "goal_compute": "goal_compute",
    "holds": "holds",
    "lanes": "lanes",
    "pauses": "pauses",
    "config_versions": "config_versions",
    "agent_results": "agent_results",
    "weights": "weights",
    "context": "context_entries",
    "tasks": "tasks",
    "dependencies": "task_dependencies",
}
_NOT_EMPTY = "give it a database that is empty, or that has just been migrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore has brought back; `released` of the tasks were leased when the checkpoint was taken."""

    taken_at: str
    tasks: int
    released: int
    dependencies: int
    context: int
    is_cut: bool


async def restore(database: Database, content: bytes, sha256: bytes) -> Restored:
    """Put the content of a checkpoint into an empty database, migrating it first where it has no schema.

    Raises Refused for a damaged checkpoint, and for a database in use. Nothing else of this process may have a
    connection to it.
    """
    wrong = examine(content, sha256)
    if wrong:
        raise Refused("the checkpoint is damaged: " + "; ".join(wrong[:3]))
    document = json.loads(content)
    await _must_be_empty(database)
    await schema.migrate(database.engine)
    async with database.transaction() as connection:
        await transfers.take_your_time(connection)
        await transfers.keep_others_out(connection)
        if not await transfers.is_unused(connection):
            raise Refused("the database is not empty", _NOT_EMPTY)
        # First, so that also the events of the restore follow all that was ever read.
        await transfers.count_on(connection, known=int(document["event_cursor"].partition("-")[0]))
        return await _load(connection, document)


async def _must_be_empty(database: Database) -> None:
    async with database.transaction() as connection:
        if await transfers.is_empty(connection):
            return
        busy = await transfers.strangers(connection)
        if busy:
            raise Refused(f"the service is at work on this database: {busy} connections", "stop the API and the loops")
    revision = await schema.revision(database.engine)
    if revision != schema.head():
        found = f"a schema at revision {revision}" if revision else "tables that are not ours"
        raise Refused(f"the database is not empty: it has {found}", _NOT_EMPTY)


async def _load(connection: AsyncConnection, document: Mapping[str, Any]) -> Restored:
    # Checkpoints of earlier versions have fewer parts.
    given = {part: document.get(part, []) for part in _TABLES}
    for part, table in _TABLES.items():
        strange = restoring.unknown_columns(table, given[part])
        if strange:
            raise Refused(f"it was taken by another version, whose {table} have {', '.join(sorted(strange))}")
    virtual_times = {(lane["agent_type"], lane["priority"]): lane["virtual_time"] for lane in document["lanes"]}
    moment = (await now(connection)).isoformat()
    rows = {**given, "tasks": [at_rest(task, virtual_times, moment) for task in document["tasks"]]}
    for part, table in _TABLES.items():
        if rows[part]:
            await restoring.load(connection, table, rows[part])
    released = [task["id"] for task in document["tasks"] if task["state"] in LEASED]
    await restoring.settle(connection, released, f"restored from the checkpoint of {document['taken_at']}")
    return Restored(
        taken_at=document["taken_at"],
        tasks=len(document["tasks"]),
        released=len(released),
        dependencies=len(document["dependencies"]),
        context=len(document["context"]),
        is_cut=document["is_cut"],
    )
