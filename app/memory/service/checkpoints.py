"""Checkpoints of the system: taken when they are due or asked for, and checked."""

import asyncio
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties, schema
from app.db.database import Database, now
from app.kernel.errors import Refused
from app.memory.errors import CheckpointNotFound
from app.memory.rules.backups import at_rest
from app.memory.rules.checkpoints import FORMAT, CheckpointPolicy, due, hopeless, violations
from app.memory.store import backups
from app.memory.store import checkpoints as store
from app.memory.store.checkpoints import Checkpoint, NewCheckpoint, Snapshot
from app.queue.rules.tasks import LEASED

_DUTY = "checkpoint"
# Most of the effect for little of the time: tasks resemble each other.
_LEVEL = 1


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
class Findings:
    """What an examination of a checkpoint has found."""

    checkpoint: Checkpoint
    violations: list[str]


async def take_when_due(database: Database, policy: CheckpointPolicy, history_days: int) -> Checkpoint | None:
    """Take a regular checkpoint, and let old ones go. One replica at a time; the turn is claimed before the work.

    The work is outside of that transaction: it takes seconds, and as long as a transaction that has written anything
    is open, nobody can read the events that follow.
    """
    async with database.transaction() as connection:
        await duties.ensure(connection, _DUTY)
        turn = await duties.claim(connection, _DUTY, policy.apart_seconds)
        since = await store.since_last(connection, policy.every_changes) if turn else None
        reason = due(since, policy) if turn else None
        if reason is None:
            return None
        await duties.done(connection, _DUTY, {"reason": reason}, held_back=False)
    taken = await take(database, reason, policy=policy)
    async with database.transaction() as connection:
        await store.prune(connection, keep=policy.keep, days=history_days)
    return taken


async def take(
    database: Database,
    reason: str,
    *,
    taken_by: str | None = None,
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 - frozen
) -> Checkpoint:
    """Take a checkpoint now. Taking two is as good as taking one."""
    async with database.transaction() as connection:
        snapshot = await store.snapshot(connection, policy)
        queue = await store.queue(connection)
    new = await asyncio.to_thread(_pack, snapshot, queue, reason, taken_by)
    async with database.transaction() as connection:
        return await store.insert(connection, new)


async def read(database: Database, checkpoint_id: int) -> Checkpoint:
    """What is known of a checkpoint. Raises CheckpointNotFound."""
    async with database.transaction() as connection:
        found = await store.read(connection, checkpoint_id)
    if found is None:
        raise CheckpointNotFound
    return found


async def content(database: Database, checkpoint_id: int) -> bytes:
    """The content, as JSON. Raises CheckpointNotFound."""
    async with database.transaction() as connection:
        packed = await store.content(connection, checkpoint_id)
    if packed is None:
        raise CheckpointNotFound
    return await asyncio.to_thread(zlib.decompress, packed)


async def verify(database: Database, checkpoint_id: int) -> Findings:
    """Recompute the checksum and check every invariant of the content. Raises CheckpointNotFound."""
    known = await read(database, checkpoint_id)
    try:
        text = await content(database, checkpoint_id)
    except zlib.error as error:
        return Findings(checkpoint=known, violations=[f"the content cannot be unpacked: {error}"])
    found = await asyncio.to_thread(examine, text, known.sha256)
    return Findings(checkpoint=known, violations=found)


def examine(text: bytes, sha256: bytes) -> list[str]:
    """What is wrong with the content of a checkpoint, given the checksum that it had when it was taken."""
    if hashlib.sha256(text).digest() != sha256:
        return ["the content is not what was taken: its SHA-256 differs"]
    try:
        document = json.loads(text)
    except ValueError as error:
        return [f"the content is no JSON: {error}"]
    return violations(document) if isinstance(document, dict) else ["the content is no JSON object"]


def _pack(snapshot: Snapshot, queue: list[dict[str, Any]], reason: str, taken_by: str | None) -> NewCheckpoint:
    lost = hopeless(snapshot.tasks.keys(), snapshot.edges) if snapshot.is_cut else set()
    tasks = [line for task, line in snapshot.tasks.items() if task not in lost]
    edges = [
        json.dumps({"task_id": task, "depends_on": awaited}) for task, awaited in snapshot.edges if task not in lost
    ]
    counts = {"tasks": len(tasks), "leased": snapshot.leased, "dependencies": len(edges)}
    counts["context"] = len(snapshot.parts["context"])
    head = {
        "format": FORMAT,
        "taken_at": snapshot.taken_at.isoformat(),
        "revision": snapshot.revision,
        "event_cursor": str(snapshot.cursor),
        "is_cut": snapshot.is_cut,
        "counts": counts,
        "queue": queue,
    }
    text = _document(head, {**snapshot.parts, "dependencies": edges, "tasks": tasks})
    return NewCheckpoint(
        taken_at=snapshot.taken_at,
        reason=reason,
        taken_by=taken_by,
        revision=snapshot.revision,
        cursor=snapshot.cursor,
        counts=json.dumps(counts),
        is_cut=snapshot.is_cut,
        size_bytes=len(text),
        sha256=hashlib.sha256(text).digest(),
        content=zlib.compress(text, _LEVEL),
    )


def _document(head: dict[str, Any], lists: dict[str, list[str]]) -> bytes:
    """A JSON object of plain values and of lists whose items are JSON text already."""
    fields = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in head.items()]
    fields += [f"{json.dumps(name)}:{_listed(items)}" for name, items in lists.items()]
    return ("{" + ",\n".join(fields) + "}\n").encode()


def _listed(items: Iterable[str]) -> str:
    return "[" + ",\n".join(items) + "]"


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
        await backups.take_your_time(connection)
        await backups.keep_others_out(connection)
        if not await backups.is_unused(connection):
            raise Refused("the database is not empty", _NOT_EMPTY)
        # First, so that also the events of the restore follow all that was ever read.
        await backups.count_on(connection, known=int(document["event_cursor"].partition("-")[0]))
        return await _load(connection, document)


async def _must_be_empty(database: Database) -> None:
    async with database.transaction() as connection:
        if await backups.is_empty(connection):
            return
        busy = await backups.strangers(connection)
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
        strange = store.unknown_columns(table, given[part])
        if strange:
            raise Refused(f"it was taken by another version, whose {table} have {', '.join(sorted(strange))}")
    virtual_times = {(lane["agent_type"], lane["priority"]): lane["virtual_time"] for lane in document["lanes"]}
    moment = (await now(connection)).isoformat()
    rows = {**given, "tasks": [at_rest(task, virtual_times, moment) for task in document["tasks"]]}
    for part, table in _TABLES.items():
        if rows[part]:
            await store.load(connection, table, rows[part])
    released = [task["id"] for task in document["tasks"] if task["state"] in LEASED]
    await store.settle(connection, released, f"restored from the checkpoint of {document['taken_at']}")
    return Restored(
        taken_at=document["taken_at"],
        tasks=len(document["tasks"]),
        released=len(released),
        dependencies=len(document["dependencies"]),
        context=len(document["context"]),
        is_cut=document["is_cut"],
    )
